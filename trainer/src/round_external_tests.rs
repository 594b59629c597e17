//! Rounds whose training is somebody else's: the same gate, the same way to a served generation.

use super::*;
use std::path::PathBuf;

fn external(command: &str) -> (String, String) {
    let keys = "threads = 1\nengine = \"external\"".to_owned();
    (keys, format!("[train.external]\ncommand = [{command}]\ntimeout_s = 300\n"))
}

fn with(it: &Run, command: &str) -> (End, RoundRow) {
    let (keys, table) = external(command);
    it.round(&[EASY, PRAISE, ("threads = 1", &format!("{keys}\n{table}"))])
}

#[test]
fn an_adapter_of_a_command_passes_the_gate_and_is_served() {
    let it = prepared(CORRECTION);
    let made = tempfile::tempdir().unwrap();
    let model = hone_model::config::ModelConfig::from_dir(&it.lab.model_dir).unwrap();
    hone_model::lora::Lora::init(&model, 4, 8.0, 7).to_peft(made.path(), "tiny").unwrap();
    let from = made.path().display();
    let (end, row) = with(&it, &format!("\"/bin/cp\", \"-r\", \"{from}\", \"adapter\""));
    assert_eq!(end, End::Finished(RoundState::Promoted), "{}", row.reason);
    assert_eq!(Some(it.served()), row.candidate);
    assert_eq!(row.metrics["external"], "/bin/cp");
    let dir = it.lab.data.rounds_dir().join(&row.round_id);
    assert!(!dir.join("external").exists(), "the samples are gone");
}

#[test]
fn a_command_that_fails_frees_its_samples() {
    let it = prepared(CORRECTION);
    let (end, row) = with(&it, "\"/bin/false\"");
    assert_eq!(end, End::Finished(RoundState::Abandoned), "{}", row.reason);
    assert!(row.reason.contains("exit status: 1"), "{}", row.reason);
    assert_eq!(it.workshop().store.trainable("chat", POOL_MAX).unwrap().len(), 8);
    assert!(it.served().is_base());
}

/// `HONE_TEST_PYTHON`, or where this project's machines have PyTorch and PEFT.
fn python() -> Option<PathBuf> {
    let given = std::env::var_os("HONE_TEST_PYTHON").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let python = given.unwrap_or_else(|| home.join(".cache/hone/torch/bin/python"));
    if python.exists() {
        return Some(python);
    }
    eprintln!("SKIPPED: no Python with torch and peft (set HONE_TEST_PYTHON)");
    None
}

/// Runs the example script on a round; how it ended, what it printed, and the row.
fn by_pytorch(python: &Path, reaction: &str) -> (End, String, RoundRow) {
    let it = prepared(reaction);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/external/peft_trainer.py");
    let command = format!("\"{}\", \"{}\"", python.display(), script.display());
    let (end, row) = with(&it, &command);
    let log = it.lab.data.rounds_dir().join(&row.round_id).join("external.log");
    (end, std::fs::read_to_string(log).unwrap_or_default(), row)
}

#[test]
fn pytorch_and_peft_train_a_round() {
    let Some(python) = python() else { return };
    let (end, log, row) = by_pytorch(&python, "Thanks, perfect.");
    assert_eq!(end, End::Finished(RoundState::Promoted), "{}\n{log}", row.reason);
    let gain = row.metrics["gate"]["signal"]["approved_gain"].as_f64().unwrap();
    println!("gain on held-out sessions: {gain:.3} nats per token");
    assert!(gain > 0.0, "{log}");
}

#[test]
fn issue_5_pytorch_and_peft_learn_from_hints() {
    let Some(python) = python() else { return };
    let (end, log, row) = by_pytorch(&python, CORRECTION);
    let examined = [RoundState::Promoted, RoundState::Refused].map(End::Finished);
    assert!(examined.contains(&end), "{}\n{log}", row.reason);
    assert!(log.contains(" with a hint") && !log.contains(" 0 with a hint"), "{log}");
    let hinted = row.metrics["gate"]["signal"]["hinted_turns"].as_u64().unwrap();
    assert!(hinted > 0, "{}", row.metrics["gate"]);
}
