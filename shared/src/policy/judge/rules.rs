//! `[rules]`: what is decided without a model.
//!
//! Invariant: what no rule knows is left to the model; a list that is empty says nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::patterns::Patterns;
use super::phrases::{self, Phrases, RawPhrases, RuleHit};
use crate::policy::PolicyError;
use crate::policy::limits::Checker;
use crate::turn::{TurnError, words};

/// The name of a rule, as it stands in `order` and, after `rule:`, in a verdict's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleName {
    /// The user says that the answer was not right.
    Correction,
    /// The environment or an editor says that the task failed or succeeded, or the edit was taken.
    Outcome,
    /// The environment could not read the answer as an action.
    Protocol,
    /// A diff did not apply.
    PatchRejected,
    /// Tests were repaired or broken in this step.
    Tests,
    /// A tool says that the call was wrong.
    ToolError,
    /// A command failed by its own fault.
    ExitCode,
    /// The same call with the same result, or without end.
    RepeatedCall,
    /// A message to oneself.
    SelfMessage,
    /// Nothing but waiting, again.
    WaitLoop,
    /// A file was overwritten that was to be added to.
    Overwritten,
    /// An action on a screen that changed nothing.
    NoEffect,
    /// The answer was cut at the token limit.
    Truncated,
    /// The answer was empty.
    EmptyAnswer,
    /// The answer repeats itself, cannot be read, or is an error text in place of an answer.
    Garbage,
    /// The user asks the same again.
    Rephrased,
    /// A command that had failed was repaired.
    Recovered,
    /// The user says that the answer was right.
    Approval,
    /// A fault that is not the answer's; neutral.
    Environment,
}

words!(RuleName, "rule", {
    Correction = "correction", Outcome = "outcome", Protocol = "protocol",
    PatchRejected = "patch_rejected", Tests = "tests", ToolError = "tool_error",
    ExitCode = "exit_code", RepeatedCall = "repeated_call", SelfMessage = "self_message",
    WaitLoop = "wait_loop", Overwritten = "overwritten", NoEffect = "no_effect",
    Truncated = "truncated", EmptyAnswer = "empty_answer", Garbage = "garbage",
    Rephrased = "rephrased", Recovered = "recovered", Approval = "approval",
    Environment = "environment",
});

/// Declares tables of pattern lists: the checked one, the raw one, and how one becomes the other.
macro_rules! lists {
    ($(#[$doc:meta])* $name:ident, $raw:ident, $table:literal,
     { $($(#[$field_doc:meta])* $field:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Patterns),+
        }

        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $raw {
            $(#[serde(default)] $field: Vec<String>),+
        }

        impl $raw {
            fn check(self, check: &Checker<'_>) -> Result<$name, PolicyError> {
                Ok($name {
                    $($field: Patterns::check(
                        check, concat!("rules.", $table, ".", stringify!($field)), self.$field,
                    )?),+
                })
            }
        }
    };
}

lists!(
    /// `[rules.requests]`: about the user's request.
    RequestPatterns, RawRequests, "requests", {
        /// It asks to wait, to watch or to repeat: equal calls are what was asked for.
        polls,
        /// It asks to add to something that is there.
        appends,
        /// It asks for something that fails: a failing test, a reproduction, a look at an error.
        wants_failure,
        /// It asks whether something is up or reachable: a fault of the network is the answer.
        asks_status,
        /// It asks for repetition, filler or an error text: an odd answer may be the right one.
        odd_text,
        /// It asks for one of many: whoever asks again wants another one.
        draws,
        /// It asks for a message to the writer, or speaks of one.
        note_to_self,
        /// It asks for tests: that they fail may be their merit.
        wants_tests,
    }
);
lists!(
    /// `[rules.answers]`: about the text of the answer.
    AnswerPatterns, RawAnswers, "answers", {
        /// An error text that stands in place of an answer.
        placeholder,
        /// The answer gives nothing to thank for: a refusal, an apology for something lost.
        declines,
        /// In the reply to an answer that was cut: it was welcome all the same.
        cut_but_welcome,
    }
);
lists!(
    /// `[rules.calls]`: about a call, matched against `name {"argument":"value"}` or, for a shell,
    /// against the command.
    CallPatterns, RawCalls, "calls", {
        /// A message to the writer.
        self_message,
        /// Waits and does nothing else.
        waits,
        /// Shows what somebody else wrote: an error in its output is no error of the call.
        reads,
        /// Changes files.
        edits,
        /// A command that says something by its exit code, or whose failure is the finding.
        probes,
        /// Replaces the whole of a file.
        overwrites,
        /// Makes tests pass by not running them.
        skips_tests,
        /// Ignores the failure of a command.
        ignores_failure,
        /// Looks at a screen and changes nothing.
        looks,
        /// Does something more each time, though it says the same: keys, scrolling, sending.
        adds_up,
        /// Changes tests, or files whose names say that they hold tests.
        touches_tests,
    }
);
lists!(
    /// `[rules.results]`: about a tool's result or an environment's observation.
    ResultPatterns, RawResults, "results", {
        /// The task or step succeeded, in the environment's own words.
        success,
        /// The task or step failed, in the environment's own words.
        failure,
        /// A grader's word that decides nothing: pending, aborted, by default.
        undecided,
        /// The answer could not be read as an action.
        protocol,
        /// A diff or an edit did not apply.
        patch_rejected,
        /// A fault that is not the answer's: network, rate limit, maintenance.
        environment,
        /// With an exit code other than 0: the command itself was wrong.
        exit_faults,
        /// A file's earlier content is gone.
        overwritten,
        /// Failing tests that are nobody's news.
        excused,
        /// The action changed nothing.
        no_effect,
        /// How a result begins that is an error and no content.
        error_heads,
        /// A door that is closed, whatever the arguments: rights, money, versions.
        forbids,
        /// There is no such element on the page.
        missing_element,
        /// Nothing but waiting was done.
        waited,
        /// A person's message that is what a failing program printed.
        pasted_error,
        /// Beside such a print: a fault that is not the answer's, or a person's own words.
        pasted_unless,
    }
);

/// What is decided without a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Which rules apply, first to last; the first that speaks decides.
    pub order: Vec<RuleName>,
    /// What people say.
    pub phrases: Phrases,
    /// In a tool's error: the call itself was wrong.
    pub tool_error: Patterns,
    /// Whether exit codes are looked at.
    pub exit_code: bool,
    /// Identical calls with equal results in a row that are still fine.
    pub repeat_calls_max: usize,
    /// Identical calls in a row that are still fine whatever their results.
    pub repeat_calls_bound: usize,
    /// Whether an answer that was cut at its token limit is negative.
    pub truncated_is_negative: bool,
    /// About requests.
    pub requests: RequestPatterns,
    /// About answers.
    pub answers: AnswerPatterns,
    /// About calls.
    pub calls: CallPatterns,
    /// About results.
    pub results: ResultPatterns,
}

impl Rules {
    /// What a user's next message says about the answer before it; `None` when the rules are
    /// silent. A correction inside an approval ("thanks, but shorter please") is a correction.
    pub fn judge_user(&self, text: &str) -> Option<RuleHit<'_>> {
        self.phrases.judge(text)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRules {
    order: Option<Vec<String>>,
    #[serde(default)]
    correction: Vec<String>,
    #[serde(default)]
    approval: Vec<String>,
    #[serde(default)]
    tool_error: Vec<String>,
    exit_code: Option<bool>,
    repeat_calls_max: Option<f64>,
    repeat_calls_bound: Option<f64>,
    approval_chars_max: Option<f64>,
    truncated_is_negative: Option<bool>,
    #[serde(default)]
    phrases: BTreeMap<String, RawPhrases>,
    #[serde(default)]
    requests: RawRequests,
    #[serde(default)]
    answers: RawAnswers,
    #[serde(default)]
    calls: RawCalls,
    #[serde(default)]
    results: RawResults,
}

impl RawRules {
    pub(super) fn check(mut self, check: &Checker<'_>) -> Result<Rules, PolicyError> {
        let order = match self.order {
            None => RuleName::ALL.to_vec(),
            Some(names) => names.iter().map(|n| rule_name(check, n)).collect::<Result<_, _>>()?,
        };
        // The lists that have no language come first.
        let plain = self.phrases.entry(String::new()).or_default();
        plain.correction.append(&mut self.correction);
        plain.approval.append(&mut self.approval);
        let chars_max = check.count("judge.rules.approval_chars_max", self.approval_chars_max)?;
        let phrases = phrases::check(check, self.phrases, chars_max)?;
        Ok(Rules {
            order,
            phrases,
            tool_error: Patterns::check(check, "rules.tool_error", self.tool_error)?,
            exit_code: self.exit_code.unwrap_or(true),
            repeat_calls_max: check.count("judge.rules.repeat_calls_max", self.repeat_calls_max)?,
            repeat_calls_bound: check
                .count("judge.rules.repeat_calls_bound", self.repeat_calls_bound)?,
            truncated_is_negative: self.truncated_is_negative.unwrap_or(false),
            requests: self.requests.check(check)?,
            answers: self.answers.check(check)?,
            calls: self.calls.check(check)?,
            results: self.results.check(check)?,
        })
    }
}

fn rule_name(check: &Checker<'_>, name: &str) -> Result<RuleName, PolicyError> {
    name.parse().map_err(|_: TurnError| {
        let all: Vec<&str> = RuleName::ALL.iter().map(|rule| rule.as_str()).collect();
        check.refuse("rules.order", &format!("\"{name}\""), format!("any of {}", all.join(", ")))
    })
}
