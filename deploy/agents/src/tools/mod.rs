//! Tools: questions that need a calculator or a database, by OpenAI tool calls.
//!
//! An episode asks two questions. Each is answered in two steps: a call, and, after its result, the
//! answer. With `free`, the model decides itself when to call and when to answer, and may call
//! several tools at once.
//!
//! Invariant: a question is right when its answer is the number that the environment computed for
//! itself, not when a call went well.

pub mod calculator;
pub mod database;

use async_trait::async_trait;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::environment::{Environment, EnvironmentError, Seen, call, io, message, result};
use crate::form::{Action, Field, Form, Tool, Values};
use database::Item;

const NAMES: [&str; 12] = [
    "apple", "banana", "cherry", "grape", "lemon", "mango", "olive", "orange", "peach", "pear",
    "pepper", "tomato",
];
const ITEMS: usize = 6;
const QUESTIONS: usize = 2;
const SYSTEM: &str = "Answer each question with one tool call, then with its result.\n\
    calculator: arithmetic. sql: the table items(name, price, stock).";
const NUMBER: &str = "^-?[0-9]{1,9}$";
/// What an expression and a query are made of: without quotes and backslashes, which small models
/// pile up where a string should end.
const EXPRESSION: &str = "^[0-9 +*/()-]{1,40}$";
const QUERY: &str = "^[A-Za-z0-9_ =*'(),.<>+/-]{1,90}$";

#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    words: String,
    call: Action,
    answer: i64,
    /// Expressions with the same numbers, for a policy that guesses.
    guesses: Vec<String>,
}

/// The questions and the tools.
#[derive(Debug, Default)]
pub struct Tools {
    free: bool,
    scratch: Option<TempDir>,
    items: Vec<Item>,
    questions: Vec<Question>,
    asked: usize,
    right: usize,
    /// The result of the call for this question.
    found: Option<String>,
    remark: &'static str,
}

impl Tools {
    /// `free`: nothing is forced.
    pub fn new(free: bool) -> Self {
        Self { free, ..Self::default() }
    }

    fn database(&self) -> Option<std::path::PathBuf> {
        Some(self.scratch.as_ref()?.path().join("shop.sqlite"))
    }

    fn question(&self) -> Option<&Question> {
        self.questions.get(self.asked)
    }

    fn answered(&mut self, said: &str) -> Seen {
        let right = self.question().is_some_and(|q| said.trim().parse() == Ok(q.answer));
        self.right += usize::from(right);
        self.asked += 1;
        self.found = None;
        // In the voice of what checks, as rubrics know it: a person would say what was wrong.
        self.remark = if right { "Checker: correct." } else { "Checker: wrong." };
        Seen { text: String::new(), image: None, progress: right }
    }

    fn called(&mut self, tool: &str, action: &Action) -> Seen {
        let text = match (tool, self.database()) {
            ("calculator", _) => match calculator::evaluate(action.get("expression")) {
                Ok(value) => value.to_string(),
                Err(why) => why,
            },
            ("sql", Some(path)) => database::query(&path, action.get("query")),
            _ => "error: no task was begun".to_owned(),
        };
        let wanted = self.question().map(|q| q.answer.to_string());
        let progress = wanted.as_deref() == Some(text.as_str());
        // After an error the call may be made again.
        self.found = (!text.starts_with("error")).then(|| text.clone());
        self.remark = "";
        Seen { text, image: None, progress }
    }
}

#[async_trait]
impl Environment for Tools {
    fn kind(&self) -> &'static str {
        "tool"
    }

    async fn begin(&mut self, rng: &mut ChaCha8Rng) -> Result<Vec<Value>, EnvironmentError> {
        let mut names = NAMES.to_vec();
        names.shuffle(rng);
        let item =
            |name| Item { name, price: rng.random_range(2..90), stock: rng.random_range(100..900) };
        self.items = names.into_iter().take(ITEMS).map(item).collect();
        let scratch = tempfile::Builder::new().prefix("hone-agents-").tempdir();
        self.scratch = Some(scratch.map_err(io("a scratch directory"))?);
        if let Some(path) = self.database() {
            database::create(&path, &self.items)?;
        }
        self.questions = (0..QUESTIONS)
            .map(|_| if rng.random() { sum(rng) } else { look_up(&self.items, rng) })
            .collect();
        (self.asked, self.right, self.found, self.remark) = (0, 0, None, "");
        let mut opening = vec![message("system", SYSTEM)];
        let example = |id: &str, question: &str, tool: &str, arguments: Value, found: &str| {
            let answer = json!({ "answer": found }).to_string();
            let asked = message("user", format!("Question: {question}"));
            [asked, call(id, tool, &arguments), result(id, found), message("assistant", answer)]
        };
        let price = json!({ "query": "SELECT price FROM items WHERE name = 'plum'" });
        let stock = json!({ "query": "SELECT stock FROM items WHERE name = 'fig'" });
        let times = json!({ "expression": "7 * 8" });
        let minus = json!({ "expression": "40 - 15" });
        opening.extend(example("call_a", "What is 7 * 8?", "calculator", times, "56"));
        opening.extend(example("call_b", "What is the price of the plum?", "sql", price, "12"));
        opening.extend(example("call_c", "What is the stock of the fig?", "sql", stock, "340"));
        opening.extend(example("call_d", "What is 40 - 15?", "calculator", minus, "25"));
        opening.push(message("user", self.prompt()));
        Ok(opening)
    }

    fn form(&self) -> Form {
        let text = |name, chars_max, pattern, guesses| Field {
            name,
            values: Values::Text { chars_max, pattern, guesses },
        };
        let answer = || {
            let found = self.found.clone().into_iter();
            let guesses = found.chain((0..9).map(|n| (n * 37 + 5).to_string())).collect();
            vec![text("answer", 10, Some(NUMBER), guesses)]
        };
        let sums = self.question().map_or_else(Vec::new, |q| q.guesses.clone());
        let columns = |item: &Item| ["price", "stock"].map(|column| select(column, item.name));
        let queries = self.items.iter().flat_map(columns).collect();
        let tools = || {
            let expression = vec![text("expression", 40, Some(EXPRESSION), sums)];
            let query = vec![text("query", 90, Some(QUERY), queries)];
            let about = "Reads the table items(name, price, stock).";
            vec![
                Tool { name: "calculator", about: "Computes.", fields: expression },
                Tool { name: "sql", about, fields: query },
            ]
        };
        match (self.free, self.found.is_some()) {
            (true, _) => Form { tools: tools(), fields: answer() },
            (false, false) => Form { tools: tools(), fields: vec![] },
            (false, true) => Form { tools: vec![], fields: answer() },
        }
    }

    fn oracle(&self) -> Action {
        match (self.question(), &self.found) {
            (Some(question), None) => question.call.clone(),
            (Some(question), Some(_)) => {
                Action::new(None, &[("answer", &question.answer.to_string())])
            }
            (None, _) => Action::default(),
        }
    }

    async fn act(&mut self, action: &Action) -> Result<Seen, EnvironmentError> {
        Ok(match action.tool.as_deref() {
            None => self.answered(action.get("answer")),
            Some(tool) => self.called(tool, action),
        })
    }

    fn prompt(&self) -> String {
        // After a call, its result speaks for itself.
        let question = self.question().filter(|_| self.found.is_none());
        let words = question.map_or_else(String::new, |q| format!("Question: {}", q.words));
        format!("{}\n{words}", self.remark).trim().to_owned()
    }

    fn done(&self) -> Option<bool> {
        (self.asked >= self.questions.len()).then_some(self.right == self.questions.len())
    }

    async fn end(&mut self) -> Result<(), EnvironmentError> {
        let scratch = self.scratch.take();
        scratch
            .map_or(Ok(()), |scratch| scratch.close())
            .map_err(io("removing a scratch directory"))
    }
}

fn select(column: &str, name: &str) -> String {
    format!("SELECT {column} FROM items WHERE name = '{name}'")
}

fn sum(rng: &mut ChaCha8Rng) -> Question {
    let (a, b) = (rng.random_range(11..100_i64), rng.random_range(2..100_i64));
    let signs = ["+", "-", "*"];
    let (sign, answer) = match signs.choose(rng) {
        Some(&"+") => ("+", a + b),
        Some(&"-") => ("-", a - b),
        _ => ("*", a * b),
    };
    let expression = format!("{a} {sign} {b}");
    let guesses =
        signs.iter().flat_map(|sign| [format!("{a} {sign} {b}"), format!("{b} {sign} {a}")]);
    Question {
        words: format!("What is {expression}?"),
        call: Action::new(Some("calculator"), &[("expression", &expression)]),
        answer,
        guesses: guesses.collect(),
    }
}

fn look_up(items: &[Item], rng: &mut ChaCha8Rng) -> Question {
    let item = items.choose(rng).cloned().unwrap_or(Item { name: "apple", price: 0, stock: 0 });
    let (column, answer) = if rng.random() { ("price", item.price) } else { ("stock", item.stock) };
    Question {
        words: format!("What is the {column} of the {}?", item.name),
        call: Action::new(Some("sql"), &[("query", &select(column, item.name))]),
        answer,
        guesses: vec!["1 + 1".into(), "10 * 10".into()],
    }
}
