//! SWE: a small repository with failing tests, repaired by a search/replace patch tool.
//!
//! After every patch the real tests run, in the sandbox; the observation is the diff, the tests'
//! verdict and the file whose test fails. The choices are the lines of that file, and up to five
//! lines to put in their place, but for those that were just tried in vain; with `free`, any texts.
//!
//! Invariant: solved means that the tests, as they were written at the beginning, pass.

pub mod patch;
mod repository;

use async_trait::async_trait;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::environment::{Environment, EnvironmentError, Seen, message};
use crate::form::{Action, Field, Form, Values};
use crate::sandbox::{Limits, Ran, Sandbox};
pub use repository::{Repository, TESTS};

const SYSTEM: &str = "You repair Python code: one line is replaced by another. Answer as JSON.";
const EXAMPLE: &str = "half.py:\ndef half(a, b):\n    \"\"\"Return a / b.\"\"\"\n    return a - b\n\
                       FAIL: test_half";
/// Lines of the tests' output that are kept.
const LINES_MAX: usize = 6;

/// A repository and its tests.
#[derive(Debug, Default)]
pub struct Swe {
    free: bool,
    sandbox: Option<Sandbox>,
    repository: Option<Repository>,
    tests: String,
    /// The source files as they are now.
    files: Vec<(String, String)>,
    /// What failed in the last run: tests by name.
    failing: Vec<String>,
    verdict: String,
    /// Lines that were put in since the last test was repaired: not offered again.
    tried: Vec<String>,
}

impl Swe {
    /// `free`: any patch, instead of the choices.
    pub fn new(free: bool) -> Self {
        Self { free, ..Self::default() }
    }

    fn sandbox(&self) -> Result<&Sandbox, EnvironmentError> {
        self.sandbox.as_ref().ok_or_else(|| EnvironmentError::Missing("no task was begun".into()))
    }

    /// Runs the tests as they were at the beginning, whatever was done to their file.
    async fn run_tests(&mut self) -> Result<(), EnvironmentError> {
        let sandbox = self.sandbox()?;
        sandbox.write(TESTS, &self.tests)?;
        for (name, text) in &self.files {
            sandbox.write(name, text)?;
        }
        let ran = sandbox.shell("exec python3 -B -m unittest test_all").await?;
        self.failing = failing(&ran, &self.files);
        self.verdict = shortened(&ran);
        Ok(())
    }

    /// The file that the next patch should be about.
    fn file(&self) -> Option<&(String, String)> {
        let failing = self.failing.first()?;
        self.files.iter().find(|(name, _)| name.strip_suffix(".py") == Some(failing))
    }
}

#[async_trait]
impl Environment for Swe {
    fn kind(&self) -> &'static str {
        "swe"
    }

    async fn begin(&mut self, rng: &mut ChaCha8Rng) -> Result<Vec<Value>, EnvironmentError> {
        let repository = Repository::draw(rng);
        // Python maps more than it uses.
        let limits = Limits {
            output_bytes_max: 20_000,
            time: std::time::Duration::from_secs(15),
            ..Limits::default()
        };
        self.sandbox = Some(Sandbox::new(limits).await?);
        (self.files, self.tests) = (repository.sources(), repository.tests());
        self.tried.clear();
        self.repository = Some(repository);
        self.run_tests().await?;
        if self.failing.is_empty() {
            let why = format!("the tests cannot be run with /usr/bin/python3: {}", self.verdict);
            return Err(EnvironmentError::Missing(why));
        }
        let example = json!({ "search": "return a - b", "replace": "return a / b" });
        Ok(vec![
            message("system", SYSTEM),
            message("user", EXAMPLE),
            message("assistant", example.to_string()),
            message("user", self.prompt()),
        ])
    }

    fn form(&self) -> Form {
        let (name, text) = self.file().cloned().unwrap_or_default();
        let lines: Vec<String> =
            text.lines().map(|line| line.trim().to_owned()).filter(|l| !l.is_empty()).collect();
        let all = self.repository.as_ref().map_or_else(Vec::new, |r| r.candidates(&name));
        let new = |line: &&String| !lines.contains(*line) && !self.tried.contains(*line);
        let candidates = all.iter().filter(new).cloned().collect();
        let values = |choices: Vec<String>| match self.free {
            true => Values::Text { chars_max: 80, pattern: None, guesses: choices },
            false => Values::OneOf(choices),
        };
        let search = Field { name: "search", values: values(lines) };
        let replace = Field { name: "replace", values: values(candidates) };
        Form { tools: vec![], fields: vec![search, replace] }
    }

    fn oracle(&self) -> Action {
        let name = self.file().map_or("", |(name, _)| name.as_str());
        let repair = self.repository.as_ref().and_then(|repository| repository.repair(name));
        let (search, replace) = repair.unwrap_or_default();
        Action::new(None, &[("search", &search), ("replace", &replace)])
    }

    async fn act(&mut self, action: &Action) -> Result<Seen, EnvironmentError> {
        let applied = patch::apply(&self.files, action.get("search"), action.get("replace"));
        let applied = match applied {
            Err(text) => return Ok(Seen { text, ..Seen::default() }),
            Ok(applied) => applied,
        };
        let before = self.failing.len();
        for (name, text) in &mut self.files {
            if *name == applied.file {
                text.clone_from(&applied.text);
            }
        }
        self.run_tests().await?;
        let progress = self.failing.len() < before;
        match progress {
            true => self.tried.clear(),
            false => self.tried.push(action.get("replace").to_owned()),
        }
        let text = format!("{}$ python3 -m unittest\n{}", applied.diff, self.verdict);
        Ok(Seen { text, image: None, progress })
    }

    fn prompt(&self) -> String {
        match (self.file(), self.failing.first()) {
            (Some((name, text)), Some(test)) => format!("{name}:\n{text}FAIL: test_{test}"),
            _ => String::new(),
        }
    }

    fn done(&self) -> Option<bool> {
        self.failing.is_empty().then_some(true)
    }

    async fn end(&mut self) -> Result<(), EnvironmentError> {
        self.sandbox.take().map_or(Ok(()), Sandbox::destroy)
    }
}

/// Functions whose tests fail. When the tests do not even load, all of those whose file cannot
/// be read as Python, else all.
fn failing(ran: &Ran, files: &[(String, String)]) -> Vec<String> {
    if ran.exit == Some(0) {
        return Vec::new();
    }
    let of = |name: &str| {
        let failed = |line: &str| {
            ["FAIL: ", "ERROR: "]
                .iter()
                .any(|kind| line.starts_with(&format!("{kind}test_{name} ")))
                || line.contains(&format!("/{name}.py\", line"))
        };
        ran.output.lines().any(failed)
    };
    let names: Vec<String> =
        files.iter().filter_map(|(name, _)| name.strip_suffix(".py")).map(str::to_owned).collect();
    let found: Vec<String> = names.iter().filter(|name| of(name)).cloned().collect();
    if found.is_empty() { names } else { found }
}

/// The lines of the tests' output that say something, and the exit code.
fn shortened(ran: &Ran) -> String {
    let telling = |line: &&str| {
        let heads = ["FAIL", "ERROR", "AssertionError", "Ran ", "OK"];
        heads.iter().any(|head| line.starts_with(head)) || line.contains("Error: ")
    };
    let lines: Vec<&str> = ran.output.lines().filter(telling).collect();
    let cut = lines.len().saturating_sub(LINES_MAX);
    let ran = Ran { output: lines[cut..].join("\n"), ..ran.clone() };
    ran.shown()
}
