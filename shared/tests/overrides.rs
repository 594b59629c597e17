//! Learning modes set at run time: they win over the files, survive restarts, and fall away by the
//! clock.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use std::fs;
use std::time::{Duration, Instant};

use hone_shared::clock::now_ms;
use hone_shared::data_dir::DataDir;
use hone_shared::policy::{
    ModeOverride, Overrides, PolicyError, PolicySet, PolicyWatch, install_builtin,
};
use hone_shared::turn::Mode;

const SLOW: Duration = Duration::from_secs(3600);

fn data() -> (tempfile::TempDir, DataDir) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    install_builtin(&data.policies_dir()).unwrap();
    (dir, data)
}

fn set(data: &DataDir, route: &str, mode: Mode, ttl_s: Option<u64>) {
    let held = ModeOverride::new(mode, ttl_s, "a test", "cli:test", now_ms()).unwrap();
    Overrides::change(data, route, Some(held), now_ms()).unwrap();
}

fn mode(watch: &PolicyWatch) -> Mode {
    watch.current().route("chat").unwrap().mode
}

fn until(what: &str, check: impl Fn() -> bool) {
    let since = Instant::now();
    while !check() {
        assert!(since.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_override_wins_over_the_file_and_every_reader_of_the_directory_sees_it() {
    let (_dir, data) = data();
    let proxy = PolicyWatch::follow(&data, Duration::from_millis(5)).unwrap();
    let trainer = PolicyWatch::follow(&data, SLOW).unwrap();
    let before = proxy.current();
    assert_eq!((mode(&proxy), before.overridden.len()), (Mode::Learn, 0));
    assert_eq!(before.version, PolicySet::load(&data.policies_dir()).unwrap().version);

    set(&data, "chat", Mode::Observe, None);
    until("the proxy sees it", || mode(&proxy) == Mode::Observe);
    assert_ne!(proxy.current().version, before.version, "the version covers the overrides");
    assert_eq!(proxy.current().overridden["chat"].file_mode, Mode::Learn);
    assert_eq!(trainer.refresh().unwrap().version, proxy.current().version);
    let restarted = PolicyWatch::follow(&data, SLOW).unwrap();
    assert_eq!(mode(&restarted), Mode::Observe, "a restart does not turn learning on again");

    Overrides::change(&data, "chat", None, now_ms()).unwrap();
    until("the proxy is back", || mode(&proxy) == Mode::Learn);
    assert_eq!(proxy.current().version, before.version);
}

#[test]
fn an_override_falls_away_by_the_clock_with_no_file_changing() {
    let (_dir, data) = data();
    set(&data, "chat", Mode::Off, Some(1));
    let watch = PolicyWatch::follow(&data, Duration::from_millis(5)).unwrap();
    assert_eq!(mode(&watch), Mode::Off);
    let file = fs::read(data.overrides_path()).unwrap();
    until("it runs out", || mode(&watch) == Mode::Learn);
    assert_eq!(fs::read(data.overrides_path()).unwrap(), file);
}

#[test]
fn an_override_outlives_changed_and_broken_policy_files() {
    let (_dir, data) = data();
    set(&data, "chat", Mode::Off, None);
    let watch = PolicyWatch::follow(&data, SLOW).unwrap();
    let file = data.policies_dir().join("routes/chat.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"learn\"", "\"shadow\"")).unwrap();
    assert_eq!(watch.refresh().unwrap().overridden["chat"].file_mode, Mode::Shadow);
    assert_eq!(mode(&watch), Mode::Off);
    fs::write(&file, "mode = 1").unwrap();
    set(&data, "completions", Mode::Shadow, None);
    watch.refresh().unwrap_err();
    assert_eq!(mode(&watch), Mode::Off);
    let other = watch.current().route("completions").unwrap().mode;
    assert_eq!(other, Mode::Shadow, "a broken policy does not hold a toggle back");
}

#[test]
fn a_route_that_does_not_exist_is_reported_and_harms_nothing() {
    let (_dir, data) = data();
    set(&data, "gone", Mode::Off, None);
    let watch = PolicyWatch::follow(&data, SLOW).unwrap();
    assert_eq!(mode(&watch), Mode::Learn);
    assert_eq!(watch.problems(), ["overrides.json: there is no route `gone`"]);
    assert_eq!(watch.current().version, PolicySet::load(&data.policies_dir()).unwrap().version);
}

#[test]
fn a_damaged_file_stops_a_start_and_changes_nothing_while_running() {
    let (_dir, data) = data();
    set(&data, "chat", Mode::Off, None);
    let watch = PolicyWatch::follow(&data, SLOW).unwrap();
    fs::write(data.overrides_path(), "{").unwrap();
    watch.refresh().unwrap();
    assert_eq!(mode(&watch), Mode::Off, "the last good overrides stay");
    assert!(watch.problems()[0].contains("overrides.json, line 1"), "{:?}", watch.problems());
    let error = PolicyWatch::follow(&data, SLOW).err().unwrap();
    assert!(matches!(error, PolicyError::Overrides(_)), "{error}");
}

#[test]
fn all_mistakes_of_all_files_are_said_at_once_with_their_lines() {
    let (_dir, data) = data();
    let dir = data.policies_dir();
    let edit = |file: &str, from: &str, to: &str| {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        fs::write(dir.join(file), text.replace(from, to)).unwrap();
    };
    edit("judges/chat.toml", "votes = 3", "votes = 99");
    edit("routes/chat.toml", "gate = \"chat\"", "gate = \"nobody\"");
    edit("routes/completions.toml", "mode", "mood");
    let error = PolicySet::load(&dir).unwrap_err();
    let said: Vec<String> = error.each().iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    let line = |file: &str, word: &str| {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        let at = text.lines().position(|line| line.contains(word)).unwrap() + 1;
        format!("{file}, line {at}: ")
    };
    assert!(said[0].starts_with(&line("judges/chat.toml", "votes = 99")), "{said:?}");
    assert!(said[1].starts_with(&line("routes/completions.toml", "mood")), "{said:?}");
    assert!(said[2].starts_with(&line("routes/chat.toml", "nobody")), "{said:?}");
}
