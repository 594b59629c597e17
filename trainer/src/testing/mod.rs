//! What the tests share: policies from TOML, a data directory with a tiny model, HTTP peers.
//!
//! Everything is real but small: a SQLite file, a registry directory, sockets on the loopback, a
//! random two-layer model. Nothing here is built outside tests.

mod insert;
pub mod lab;
pub mod peers;

use hone_shared::data_dir::DataDir;
use hone_shared::policy::{GatePolicy, JudgePolicy, PolicySet, RoutePolicy, TrainPolicy};

const GATE: &str = r#"
margin = 0.02
neutral_kl_max = 5.0
repetition_max = 1.0
ended_share_min = 0.0
phrase_share_max = 1.0
reply_tokens_max = 12
replies = 2
neutral_prompts = ["What is rain?", "Say hello."]
"#;

const JUDGE: &str = r#"
[rules]
exit_code = true
repeat_calls_max = 2
truncated_is_negative = false
correction = ['too long', '\bshorter\b', 'one (short )?sentence']
approval = ['\bthanks\b', '\bperfect\b']
tool_error = ['traceback', '^error:']
[llm]
enabled = LLM
votes = 3
votes_valid_min = 2
timeout_ms = 2000
prompt = "{fence} {request} {history} {answer} {next_state} {fence}"
[hint]
mode = "HINT"
"#;

const ROUTE: &str = r#"
mode = "MODE"
alias = "chat"
judge = "chat"
gate = "chat"
[matches]
paths = ["/v1/chat/completions"]
[round]
samples_min = 6
corrections_min = 2
age_ms_max = 3600000
idle_ms = 0
holdout_share = 0.34
[train]
rank = 4
alpha = 8
learning_rate = 0.003
updates = 6
replies = 2
reply_tokens_max = 12
prompt_tokens_max = 256
temperature = 1.0
threads = 1
"#;

/// The three files; `edits` replace words of them, such as `("MODE", "shadow")`.
fn files(edits: &[(&str, &str)]) -> [(&'static str, String); 3] {
    let defaults = [("MODE", "learn"), ("LLM", "false"), ("HINT", "verbatim")];
    let edit = |text: &str| {
        let edited = edits.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        defaults.iter().fold(edited, |text, (from, to)| text.replace(from, to))
    };
    [
        ("routes/chat.toml", edit(ROUTE)),
        ("judges/chat.toml", edit(JUDGE)),
        ("gates/chat.toml", edit(GATE)),
    ]
}

/// One route `chat`, with its judge and gate.
pub fn policies(edits: &[(&str, &str)]) -> PolicySet {
    let files = files(edits);
    PolicySet::from_files(files.iter().map(|(path, text)| (*path, text.as_str()))).unwrap()
}

/// The same, as files of a data directory.
pub fn write_policies(data: &DataDir, edits: &[(&str, &str)]) {
    for (path, text) in files(edits) {
        let path = data.policies_dir().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

/// The tests' route.
pub fn route_policy() -> RoutePolicy {
    policies(&[]).route("chat").unwrap().as_ref().clone()
}

/// A recipe with the defaults that the unit tests name.
pub fn train_policy() -> TrainPolicy {
    let mut policy = route_policy().train;
    policy.learning_rate = 1e-3;
    policy
}

/// The tests' judge.
pub fn judge_policy() -> JudgePolicy {
    policies(&[]).judges["chat"].as_ref().clone()
}

/// The tests' gate.
pub fn gate_policy() -> GatePolicy {
    policies(&[]).gates["chat"].as_ref().clone()
}
