//! GUI: a form in headless Chromium, read as its accessibility tree, used by click and type.
//!
//! Elements are numbered anew in every observation, and actions name the number: `click Save #3`,
//! `type Maple into City #1`. The label before the number is for the model; what counts is the
//! number. With `free`, any text; the word after `type` may be any, too.
//!
//! Invariant: actions reach the page as mouse and keyboard events of the browser.

pub mod browser;
mod cdp;
pub mod page;

use async_trait::async_trait;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use regex::Regex;
use serde_json::Value;

use crate::environment::{Environment, EnvironmentError, Seen, message};
use crate::form::{Action, Field, Form, Values};
use crate::terminal::WORDS;
use browser::{Browser, Element, View};
use page::{Sheet, Site};

const TEXTBOXES: [&str; 6] = ["Name", "City", "Email", "Phone", "Street", "Country"];
const CHECKBOXES: [&str; 4] = ["Newsletter", "Express", "Gift", "Invoice"];
const BUTTONS: [&str; 8] = ["Save", "Cancel", "Send", "Delete", "Print", "Open", "Close", "Help"];
const SYSTEM: &str = "You drive a web page. Answer with one action as JSON.";
const EXAMPLES: [(&str, &str); 2] = [
    (
        "#1 textbox Age = \"\"\n#2 button Next\nTask: type Forty into Age.",
        "{\"action\": \"type Forty into Age #1\"}",
    ),
    (
        "#1 textbox Age = \"Forty\"\n#2 button Next\nTask: click Next.",
        "{\"action\": \"click Next #2\"}",
    ),
];

/// What is wanted of the page, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    Type(&'static str, String),
    Check(&'static str),
    Press(&'static str),
}

impl Goal {
    fn words(&self) -> String {
        match self {
            Self::Type(label, word) => format!("type {word} into {label}."),
            Self::Check(label) | Self::Press(label) => format!("click {label}."),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Type(label, _) | Self::Check(label) | Self::Press(label) => label,
        }
    }

    /// Whether the page shows it done; pressing shows nothing.
    fn met(&self, view: &View) -> bool {
        let value = view.elements.iter().find(|e| e.name == self.label());
        let value = value.and_then(|element| element.value.as_deref());
        match self {
            Self::Type(_, word) => value == Some(word),
            Self::Check(_) => value == Some("on"),
            Self::Press(_) => false,
        }
    }
}

/// A browser and a form.
#[derive(Debug)]
pub struct Gui {
    free: bool,
    screenshots: bool,
    browser: Browser,
    site: Site,
    goals: Vec<Goal>,
    words: Vec<String>,
    view: View,
    click: Regex,
    fill: Regex,
}

impl Gui {
    /// Starts browser and page. `screenshots`: observations carry an image part (the engine of this
    /// repository reads text only).
    ///
    /// # Errors
    /// Chromium is not installed or does not start.
    pub async fn start(free: bool, screenshots: bool) -> Result<Self, EnvironmentError> {
        let pattern =
            |text| Regex::new(text).map_err(|error| EnvironmentError::Browser(error.to_string()));
        Ok(Self {
            free,
            screenshots,
            browser: Browser::start().await?,
            site: Site::start().await?,
            goals: vec![],
            words: vec![],
            view: View::default(),
            click: pattern(r"(?i)^\W*click\b.*?(\d+)\D*$")?,
            fill: pattern(r#"(?i)^\W*type\s+["'`]?(.{1,40}?)["'`]?\s+in(?:to)?\b.*?(\d+)\D*$"#)?,
        })
    }

    /// The goal that is next: the first that the page does not show as done.
    fn goal(&self) -> Option<&Goal> {
        self.goals.iter().find(|goal| !goal.met(&self.view))
    }

    fn numbered(&self, number: &str) -> Option<Element> {
        let at = number.parse::<usize>().ok()?.checked_sub(1)?;
        self.view.elements.get(at).cloned()
    }

    /// Carries an action out; the sentence about it.
    async fn perform(&mut self, text: &str) -> Result<String, EnvironmentError> {
        let line = text.lines().next().unwrap_or_default().trim();
        let (number, word) = if let Some(found) = self.fill.captures(line) {
            (found[2].to_owned(), Some(found[1].to_owned()))
        } else if let Some(found) = self.click.captures(line) {
            (found[1].to_owned(), None)
        } else {
            return Ok("error: say `click LABEL #N` or `type WORD into LABEL #N`".into());
        };
        let Some(element) = self.numbered(&number) else {
            return Ok(format!("error: there is no element #{number}"));
        };
        let done = match &word {
            Some(_) if element.role != "textbox" => {
                return Ok(format!("error: #{number} is a {}, not a textbox", element.role));
            }
            Some(word) => self.browser.fill(&element, word).await,
            None => self.browser.click(&element).await,
        };
        match done {
            Ok(()) => Ok(String::new()),
            // The page may have changed under the number; the browser itself is asked next.
            Err(EnvironmentError::Browser(why)) => Ok(format!("error: {why}")),
            Err(other) => Err(other),
        }
    }

    fn choices(&self) -> Vec<String> {
        let numbered = self.view.elements.iter().enumerate().map(|(at, e)| (at + 1, e));
        let of = |(number, element): (usize, &Element)| {
            let name = &element.name;
            let mut all = vec![format!("click {name} #{number}")];
            if element.role == "textbox" {
                all.extend(
                    self.words.iter().map(|word| format!("type {word} into {name} #{number}")),
                );
            }
            all
        };
        numbered.flat_map(of).collect()
    }
}

#[async_trait]
impl Environment for Gui {
    fn kind(&self) -> &'static str {
        "gui"
    }

    async fn begin(&mut self, rng: &mut ChaCha8Rng) -> Result<Vec<Value>, EnvironmentError> {
        let (mut boxes, mut checks, mut buttons) = (TEXTBOXES, CHECKBOXES, BUTTONS);
        boxes.shuffle(rng);
        checks.shuffle(rng);
        buttons.shuffle(rng);
        let capital = |word: &&str| {
            let (first, rest) = word.split_at(1);
            format!("{}{rest}", first.to_uppercase())
        };
        let words = WORDS.choose_multiple(rng, 2).map(capital);
        self.words = words.collect();
        self.goals = vec![Goal::Type(boxes[0], self.words.first().cloned().unwrap_or_default())];
        if rng.random() {
            self.goals.push(Goal::Check(checks[0]));
        }
        self.goals.push(Goal::Press(buttons[0]));
        let mut elements = vec![("textbox", boxes[0]), ("textbox", boxes[1])];
        elements.push(("checkbox", checks[0]));
        elements.extend([("button", buttons[0]), ("button", buttons[1])]);
        elements.shuffle(rng);
        let wanted = self.goals.iter().filter_map(|goal| match goal {
            Goal::Type(label, word) => Some((*label, word.clone())),
            Goal::Check(label) => Some((*label, "on".to_owned())),
            Goal::Press(_) => None,
        });
        let sheet = Sheet { elements, sends: buttons[0], wanted: wanted.collect() };
        let url = self.site.show(sheet);
        self.browser.open(&url).await?;
        self.view = self.browser.view().await?;
        let mut opening = vec![message("system", SYSTEM)];
        for (user, assistant) in EXAMPLES {
            opening.extend([message("user", user), message("assistant", assistant)]);
        }
        opening.push(message("user", self.prompt()));
        Ok(opening)
    }

    fn form(&self) -> Form {
        let choices = self.choices();
        let values = match self.free {
            true => Values::Text { chars_max: 80, pattern: None, guesses: choices },
            false => Values::OneOf(choices),
        };
        Form { tools: vec![], fields: vec![Field { name: "action", values }] }
    }

    fn oracle(&self) -> Action {
        let goal = self.goal();
        let label = goal.map_or("", Goal::label);
        let at = self.view.elements.iter().position(|e| e.name == label).map_or(0, |at| at + 1);
        let text = match goal {
            Some(Goal::Type(_, word)) => format!("type {word} into {label} #{at}"),
            _ => format!("click {label} #{at}"),
        };
        Action::new(None, &[("action", &text)])
    }

    async fn act(&mut self, action: &Action) -> Result<Seen, EnvironmentError> {
        let open = |gui: &Self| gui.goals.iter().filter(|goal| !goal.met(&gui.view)).count();
        let before = open(self);
        let said = self.perform(action.get("action")).await?;
        self.view = self.browser.view().await?;
        let status = if said.is_empty() { self.view.status.clone() } else { said };
        let image = match self.screenshots {
            true => Some(self.browser.screenshot().await?),
            false => None,
        };
        let progress = open(self) < before || self.site.sent();
        Ok(Seen { text: status, image, progress })
    }

    fn prompt(&self) -> String {
        let numbered = self.view.elements.iter().enumerate();
        let lines = numbered.map(|(at, Element { role, name, value, .. })| {
            let value = match (role.as_str(), value) {
                ("textbox", Some(text)) => format!(" = \"{text}\""),
                (_, Some(state)) => format!(" = {state}"),
                (_, None) => String::new(),
            };
            format!("#{} {role} {name}{value}\n", at + 1)
        });
        let page: String = lines.collect();
        let goal = self.goal().filter(|_| !self.site.sent());
        format!("{page}{}", goal.map_or_else(String::new, |g| format!("Task: {}", g.words())))
    }

    fn done(&self) -> Option<bool> {
        self.site.sent().then_some(true)
    }

    async fn end(&mut self) -> Result<(), EnvironmentError> {
        Ok(())
    }
}
