//! A small Python repository: one function in each file, its tests, and one or two bugs.
//!
//! Invariant: with the bugs undone every test passes, with any of them one fails; `oracle` names
//! the edit that undoes the first.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

/// File with the tests.
pub const TESTS: &str = "test_all.py";
/// Functions in a repository.
const FUNCTIONS: usize = 3;
const SIGNS: [&str; 4] = ["+", "-", "*", "/"];

/// A function of two numbers: name, parameters, sign.
type Formula = (&'static str, &'static str, &'static str, &'static str);

const FORMULAS: [Formula; 12] = [
    ("total", "price", "tax", "+"),
    ("change", "paid", "cost", "-"),
    ("area", "width", "height", "*"),
    ("speed", "distance", "hours", "/"),
    ("both", "left", "right", "+"),
    ("rest", "whole", "part", "-"),
    ("weight", "count", "each", "*"),
    ("share", "pot", "people", "/"),
    ("sum_up", "first", "second", "+"),
    ("profit", "income", "loss", "-"),
    ("volume", "base", "level", "*"),
    ("ratio", "above", "below", "/"),
];

/// One function, and the sign that stands where its own should.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Function {
    formula: Formula,
    wrong: Option<&'static str>,
}

impl Function {
    fn line(&self, sign: &str) -> String {
        let (_, a, b, _) = self.formula;
        format!("return {a} {sign} {b}")
    }

    fn source(&self) -> String {
        let (name, a, b, sign) = self.formula;
        let body = self.line(self.wrong.unwrap_or(sign));
        format!("def {name}({a}, {b}):\n    \"\"\"Return {a} {sign} {b}.\"\"\"\n    {body}\n")
    }

    fn test(&self) -> String {
        let (name, _, _, sign) = self.formula;
        let value = |a: i64, b: i64| match sign {
            "+" => a + b,
            "-" => a - b,
            "*" => a * b,
            _ => a / b,
        };
        let cases = [(6, 3), (20, 4)];
        let line = |(a, b): (i64, i64)| {
            format!("        self.assertEqual({name}({a}, {b}), {})\n", value(a, b))
        };
        let lines: String = cases.into_iter().map(line).collect();
        format!("\n    def test_{name}(self):\n{lines}")
    }
}

/// The repository of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    functions: Vec<Function>,
}

impl Repository {
    /// A fresh one with one or two bugs.
    pub fn draw(rng: &mut ChaCha8Rng) -> Self {
        let mut formulas = FORMULAS;
        formulas.shuffle(rng);
        let bugs = rng.random_range(1..=2);
        let mut functions: Vec<Function> = Vec::new();
        for (at, formula) in formulas.into_iter().take(FUNCTIONS).enumerate() {
            let others: Vec<&str> = SIGNS.into_iter().filter(|sign| *sign != formula.3).collect();
            let wrong = others.choose(rng).copied().filter(|_| at < bugs);
            functions.push(Function { formula, wrong });
        }
        functions.shuffle(rng);
        Self { functions }
    }

    /// Names and texts of its source files.
    pub fn sources(&self) -> Vec<(String, String)> {
        self.functions.iter().map(|f| (format!("{}.py", f.formula.0), f.source())).collect()
    }

    /// The text of its test file.
    pub fn tests(&self) -> String {
        let imports = self.functions.iter().map(|f| format!("from {0} import {0}\n", f.formula.0));
        let imports: String = imports.collect();
        let tests: String = self.functions.iter().map(Function::test).collect();
        format!("import unittest\n{imports}\n\nclass All(unittest.TestCase):{tests}")
    }

    /// The edit that undoes the bug in a file; the first bug's if there is none in it.
    pub fn repair(&self, file: &str) -> Option<(String, String)> {
        let wrong = |f: &&Function| f.wrong.is_some();
        let named = |f: &&Function| file.strip_suffix(".py") == Some(f.formula.0);
        let mut bugs = self.functions.iter().filter(wrong);
        let bug = bugs.clone().find(named).or_else(|| bugs.next())?;
        Some((bug.line(bug.wrong?), bug.line(bug.formula.3)))
    }

    /// Lines that could stand at the end of the function in `file`, one of them right.
    pub fn candidates(&self, file: &str) -> Vec<String> {
        let named = |f: &&Function| file.strip_suffix(".py") == Some(f.formula.0);
        let Some(function) = self.functions.iter().find(named) else { return Vec::new() };
        let (_, a, b, _) = function.formula;
        let bare = [format!("return {a}"), format!("return {b}")];
        SIGNS.into_iter().map(|sign| function.line(sign)).chain(bare).collect()
    }
}
