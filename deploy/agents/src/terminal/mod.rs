//! Terminal: a real shell in a scratch directory, used through a `shell` tool.
//!
//! A task is one to three goals about files, each checked in the file system (or in what a command
//! showed). The choices are every command that can be made of six verbs and the names at hand, but
//! for those that were just tried in vain; with `free`, any command line.
//!
//! Invariant: commands run in the [`Sandbox`] only.

mod goal;

use async_trait::async_trait;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::environment::{Environment, EnvironmentError, Seen, call, message, result};
use crate::form::{Action, Field, Form, Tool, Values};
use crate::sandbox::{Limits, Sandbox};
pub use goal::{Goal, Verb};

/// Names of files and directories, and words inside of files.
pub const WORDS: [&str; 20] = [
    "apple", "bread", "cedar", "delta", "ember", "flute", "grape", "honey", "ivory", "jelly",
    "lemon", "maple", "olive", "pearl", "river", "stone", "tulip", "wheat", "amber", "cloud",
];
const GOALS_MAX: usize = 3;
const SYSTEM: &str = "You work in a shell. Answer each task with one command.";

/// A shell and what is wanted of it.
#[derive(Debug)]
pub struct Terminal {
    free: bool,
    limits: Limits,
    sandbox: Option<Sandbox>,
    /// All goals, in order.
    goals: Vec<Goal>,
    reached: usize,
    choices: Vec<String>,
    /// Commands since the last goal was reached: not offered again.
    tried: Vec<String>,
}

impl Terminal {
    /// `free`: any command line, instead of the choices.
    pub fn new(free: bool) -> Self {
        Self::with(free, Limits::default())
    }

    /// With other limits of a command.
    pub fn with(free: bool, limits: Limits) -> Self {
        Self {
            free,
            limits,
            sandbox: None,
            goals: vec![],
            reached: 0,
            choices: vec![],
            tried: vec![],
        }
    }

    /// The goal that is next.
    pub fn goal(&self) -> Option<&Goal> {
        self.goals.get(self.reached)
    }

    fn sandbox(&self) -> Result<&Sandbox, EnvironmentError> {
        self.sandbox.as_ref().ok_or_else(|| EnvironmentError::Missing("no task was begun".into()))
    }
}

#[async_trait]
impl Environment for Terminal {
    fn kind(&self) -> &'static str {
        "terminal"
    }

    async fn begin(&mut self, rng: &mut ChaCha8Rng) -> Result<Vec<Value>, EnvironmentError> {
        let sandbox = Sandbox::new(self.limits).await?;
        let mut words = WORDS.to_vec();
        words.shuffle(rng);
        let mut words = words.into_iter();
        let mut verbs = Verb::ALL.to_vec();
        verbs.shuffle(rng);
        let count = rng.random_range(1..=GOALS_MAX);
        self.goals = verbs
            .into_iter()
            .take(count)
            .zip(std::iter::from_fn(|| words.next().zip(words.next())))
            .map(|(verb, (file, new))| Goal {
                verb,
                file: format!("{file}.txt"),
                new: new.to_owned(),
            })
            .collect();
        for (at, goal) in self.goals.iter().enumerate() {
            // A line that nobody guesses, so that showing a file can be checked.
            let word = WORDS.choose(rng).unwrap_or(&"apple");
            sandbox
                .write(&goal.file, &format!("{word} {}\n", rng.random_range(1000..9999) + at))?;
        }
        self.choices = commands(&self.goals);
        self.choices.shuffle(rng);
        (self.reached, self.tried, self.sandbox) = (0, vec![], Some(sandbox));
        let mut opening = vec![message("system", SYSTEM)];
        for (at, (task, command)) in [
            ("Task: Make the directory box.", "mkdir box"),
            ("Task: Move (mv) bus.txt to car.", "mv bus.txt car"),
        ]
        .into_iter()
        .enumerate()
        {
            let id = format!("call_example_{at}");
            opening.push(message("user", task));
            opening.push(call(&id, "shell", &json!({ "command": command })));
            opening.push(result(&id, "exit code: 0"));
        }
        opening.push(message("user", self.prompt()));
        Ok(opening)
    }

    fn form(&self) -> Form {
        let new = |choice: &&String| !self.tried.contains(*choice);
        let choices = self.choices.iter().filter(new).cloned().collect();
        let values = match self.free {
            true => Values::Text { chars_max: 120, pattern: None, guesses: choices },
            false => Values::OneOf(choices),
        };
        let fields = vec![Field { name: "command", values }];
        let about = "Runs a command line and returns its output and exit code.";
        Form { tools: vec![Tool { name: "shell", about, fields }], fields: vec![] }
    }

    fn oracle(&self) -> Action {
        let command = self.goal().map_or_else(|| "true".to_owned(), Goal::command);
        Action::new(Some("shell"), &[("command", &command)])
    }

    async fn act(&mut self, action: &Action) -> Result<Seen, EnvironmentError> {
        let sandbox = self.sandbox()?;
        let content = self.goal().and_then(|goal| sandbox.read(&goal.file));
        let ran = sandbox.shell(action.get("command")).await?;
        let reached = |goal: &Goal| goal.reached(sandbox, content.as_deref(), &ran);
        let progress = self.goal().is_some_and(reached);
        let text = ran.shown();
        self.reached += usize::from(progress);
        match progress {
            true => self.tried.clear(),
            false => self.tried.push(action.get("command").to_owned()),
        }
        Ok(Seen { text, image: None, progress })
    }

    fn prompt(&self) -> String {
        let Some(goal) = self.goal() else { return String::new() };
        format!("Task: {}", goal.words())
    }

    fn done(&self) -> Option<bool> {
        (self.reached >= self.goals.len()).then_some(true)
    }

    async fn end(&mut self) -> Result<(), EnvironmentError> {
        match self.sandbox.take() {
            None => Ok(()),
            Some(sandbox) => sandbox.destroy(),
        }
    }
}

/// Every command that can be made of the verbs and the names of the goals.
fn commands(goals: &[Goal]) -> Vec<String> {
    let names: Vec<&str> =
        goals.iter().flat_map(|goal| [goal.file.as_str(), goal.new.as_str()]).collect();
    let mut all = Vec::new();
    for verb in Verb::ALL {
        for name in &names {
            if !verb.takes_two() {
                all.push(format!("{} {name}", verb.word()));
                continue;
            }
            let others = names.iter().filter(|other| *other != name);
            all.extend(others.map(|other| format!("{} {name} {other}", verb.word())));
        }
    }
    all
}
