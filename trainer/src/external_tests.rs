//! Commands that train well, badly, for ever, or not at all.

use super::*;
use crate::testing::lab::Lab;
use crate::testing::route_policy;
use std::cell::Cell;
use tempfile::TempDir;

struct Bench {
    lab: Lab,
    model: ModelConfig,
    round: TempDir,
    train: TrainPolicy,
    /// A whole adapter that a stand-in can copy.
    whole: TempDir,
}

fn bench() -> Bench {
    let lab = Lab::new();
    let model = ModelConfig::from_dir(&lab.model_dir).unwrap();
    let whole = tempfile::tempdir().unwrap();
    Lora::init(&model, 4, 8.0, 7).to_peft(whole.path(), "tiny").unwrap();
    let train = route_policy().train;
    Bench { lab, model, round: tempfile::tempdir().unwrap(), train, whole }
}

impl Bench {
    /// Runs `script` with `/bin/sh` as the command; `$1` is the whole adapter.
    fn run(&self, script: &str, timeout_s: u64, stop: &dyn Fn() -> bool) -> ExternalEnd {
        let whole = self.whole.path().display().to_string();
        let words = ["/bin/sh", "-c", script, "stand-in", &whole];
        let command = words.map(str::to_owned).to_vec();
        self.run_command(&ExternalPolicy { command, timeout_s, log_bytes_max: 4096 }, stop)
    }

    fn run_command(&self, policy: &ExternalPolicy, stop: &dyn Fn() -> bool) -> ExternalEnd {
        let it = External {
            round: self.round.path(),
            policy,
            train: &self.train,
            model_dir: &self.lab.model_dir,
            model: &self.model,
            incumbent: None,
        };
        it.run(&|| Ok(Vec::new()), stop).unwrap()
    }

    fn refusal(&self, script: &str, timeout_s: u64) -> String {
        match self.run(script, timeout_s, &|| false) {
            ExternalEnd::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }
}

const COPY: &str =
    "test -s \"$HONE_CONFIG\" && test -f samples/train.parquet && cp -r \"$1\" adapter";

#[test]
fn a_command_that_leaves_an_adapter_is_believed_and_not_run_twice() {
    let bench = bench();
    let script = format!("echo ran >> ../runs; {COPY}");
    for _ in 0..2 {
        match bench.run(&script, 60, &|| false) {
            ExternalEnd::Adapter(found) => assert_eq!(found, Lora::init(&bench.model, 4, 8.0, 7)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fs::read_to_string(bench.round.path().join("runs")).unwrap(), "ran\n");
}

#[test]
fn commands_that_fail_are_refused_with_what_is_wrong() {
    let bench = bench();
    assert!(bench.refusal("exit 3", 60).contains("exit status: 3"));
    assert!(bench.refusal("kill -9 $$", 60).contains("signal: 9"));
    assert!(bench.refusal("true", 60).contains("without an adapter"));
    let odd = "mkdir adapter; echo '{}' > adapter/adapter_config.json; echo x > adapter/adapter_model.safetensors";
    assert!(bench.refusal(odd, 60).contains("cannot be used"));
    let cut = format!(
        "{COPY}; head -c 900 \"$1\"/adapter_model.safetensors > adapter/adapter_model.safetensors"
    );
    assert!(bench.refusal(&cut, 60).contains("cannot be used"));
    assert!(bench.refusal("yes", 60).contains("said over 4096 bytes"));
    let missing = vec!["/nowhere/at/all".to_owned()];
    let policy = ExternalPolicy { command: missing, timeout_s: 1, log_bytes_max: 1 };
    let end = bench.run_command(&policy, &|| false);
    assert!(matches!(&end, ExternalEnd::Refused(why) if why.contains("/nowhere")), "{end:?}");
}

/// Whether a process is there and not a zombie.
fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_command_that_takes_too_long_is_ended_with_its_children() {
    let bench = bench();
    // Its child ignores the polite request.
    let script = "sh -c 'trap \"\" TERM; echo $$ > ../child; sleep 100 & wait; sleep 100' & wait";
    assert!(bench.refusal(script, 1).contains("took over 1 s"));
    let child = fs::read_to_string(bench.round.path().join("child")).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(!is_alive(child.trim()), "{child}");
}

#[test]
fn a_command_ends_with_the_trainer_and_is_run_again_in_its_directory() {
    let bench = bench();
    let asked = Cell::new(0);
    let soon = || asked.replace(asked.get() + 1) > 2;
    let script =
        format!("if test -f checkpoint; then {COPY}; else touch checkpoint; sleep 100; fi");
    assert!(matches!(bench.run(&script, 60, &soon), ExternalEnd::Interrupted));
    assert!(matches!(bench.run(&script, 60, &|| false), ExternalEnd::Adapter(_)));
}

#[test]
fn what_a_killed_trainer_left_running_is_ended_before_it_starts_again() {
    let bench = bench();
    let dir = bench.round.path().join("external");
    fs::create_dir_all(&dir).unwrap();
    let mut left = Command::new("sleep").arg("100").process_group(0).spawn().unwrap();
    let start = started(left.id()).unwrap();
    // Another process with the number of one that is gone is nobody's business.
    fs::write(dir.join(PID), format!("{} 1{start}", left.id())).unwrap();
    assert!(matches!(bench.run(COPY, 60, &|| false), ExternalEnd::Adapter(_)));
    assert!(left.try_wait().unwrap().is_none());
    fs::remove_file(dir.join(DONE)).unwrap();
    fs::write(dir.join(PID), format!("{} {start}", left.id())).unwrap();
    assert!(matches!(bench.run(COPY, 60, &|| false), ExternalEnd::Adapter(_)));
    assert!(!left.wait().unwrap().success());
}
