//! Learning modes set at run time: they win over the files, survive restarts, and fall away by the
//! clock.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail loudly")]

use std::fs;
use std::time::{Duration, Instant};

use hone_shared::clock::now_ms;
use hone_shared::data_dir::DataDir;
use hone_shared::policy::{
    ModeOverride, Overrides, PolicyError, PolicySet, PolicyWatch, Unaudited, install_builtin,
};
use hone_shared::store::Store;
use hone_shared::toggle::{self, ToggleError};
use hone_shared::turn::Mode;

const SLOW: Duration = Duration::from_secs(3600);

fn data() -> (tempfile::TempDir, DataDir) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    install_builtin(&data.policies_dir()).unwrap();
    (dir, data)
}

/// Also for routes that are gone: as if the route was removed afterwards.
fn set(data: &DataDir, route: &str, mode: Mode, ttl_s: Option<u64>) {
    let held = ModeOverride::new(mode, ttl_s, "a test", "cli:test", now_ms()).unwrap();
    let note = |_: Option<&ModeOverride>| Unaudited {
        actor: "cli:test".to_owned(),
        action: "learning.set".to_owned(),
        route: route.to_owned(),
        before: String::new(),
        after: String::new(),
        reason: String::new(),
    };
    Overrides::change(data, route, Some(held), note, now_ms()).unwrap();
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

    toggle::reset(&data, "chat", "cli:test", "").unwrap();
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
    edit("gates/chat.toml", "margin = 0.02", "margin = 99");
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
    assert!(said[0].starts_with(&line("gates/chat.toml", "margin = 99")), "{said:?}");
    assert!(said[1].starts_with(&line("routes/completions.toml", "mood")), "{said:?}");
    assert!(said[2].starts_with(&line("routes/chat.toml", "nobody")), "{said:?}");
}

#[test]
fn every_change_is_audited_with_before_after_and_reason() {
    let (_dir, data) = data();
    let hour = ModeOverride::new(Mode::Observe, Some(3600), "exam week", "ops", now_ms()).unwrap();
    let until_ms = hour.until_ms.unwrap();
    let set = toggle::set(&data, "chat", hour).unwrap();
    assert_eq!((set.before, set.after, set.audited), (Mode::Learn, Mode::Observe, true));
    let reset = toggle::reset(&data, "chat", "cli:me", "over").unwrap();
    assert_eq!((reset.before, reset.after), (Mode::Observe, Mode::Learn));
    let again = toggle::reset(&data, "chat", "cli:me", "").unwrap();
    assert_eq!((again.before, again.after), (Mode::Learn, Mode::Learn));
    let rows = Store::open_read_only(&data.store_path()).unwrap().audit(10, None).unwrap();
    let said: Vec<_> = rows
        .iter()
        .rev()
        .map(|row| {
            let texts = [&row.actor, &row.action, &row.target, &row.reason];
            let change = [row.before.as_deref(), row.after.as_deref()].map(Option::unwrap);
            format!("{} | {}", texts.map(String::as_str).join(" "), change.join(" -> "))
        })
        .collect();
    let first = format!("ops learning.set chat exam week | learn -> observe until_ms={until_ms}");
    let second = format!("cli:me learning.reset chat over | observe until_ms={until_ms} -> learn");
    assert_eq!(said[..2], [first, second]);
}

#[test]
fn a_change_works_while_the_store_is_away_and_is_audited_later() {
    let (_dir, data) = data();
    fs::create_dir(data.store_path()).unwrap();
    let held = ModeOverride::new(Mode::Off, None, "now!", "ops", now_ms()).unwrap();
    let toggled = toggle::set(&data, "chat", held).unwrap();
    assert!(!toggled.audited);
    assert_eq!(toggle::audit_pending(&data).unwrap(), 1);
    let watch = PolicyWatch::follow(&data, SLOW).unwrap();
    assert_eq!(mode(&watch), Mode::Off);
    fs::remove_dir(data.store_path()).unwrap();
    assert_eq!(toggle::audit_pending(&data).unwrap(), 0);
    assert_eq!(toggle::audit_pending(&data).unwrap(), 0);
    let rows = Store::open_read_only(&data.store_path()).unwrap().audit(10, None).unwrap();
    assert_eq!((rows.len(), rows[0].reason.as_str()), (1, "now!"));
}

#[test]
fn a_route_that_does_not_exist_cannot_be_set_but_its_override_can_be_taken_back() {
    let (_dir, data) = data();
    let held = ModeOverride::new(Mode::Off, None, "", "ops", now_ms()).unwrap();
    let error = toggle::set(&data, "gone", held).unwrap_err();
    let ToggleError::NoRoute { known, .. } = &error else { panic!("{error}") };
    assert_eq!(known, "chat, completions");
    set(&data, "gone", Mode::Off, None);
    assert!(matches!(toggle::reset(&data, "never", "ops", ""), Err(ToggleError::NoRoute { .. })));
    toggle::reset(&data, "gone", "ops", "").unwrap();
    assert!(Overrides::read(&data.overrides_path()).unwrap().routes.is_empty());
}
