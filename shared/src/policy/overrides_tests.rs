//! Overrides: whole on disk, running out, damage, races, audit.

use super::*;

fn off(ttl_s: Option<u64>) -> ModeOverride {
    ModeOverride::new(Mode::Off, ttl_s, "test", "cli:me", 1_000).unwrap()
}

fn note(_: Option<&ModeOverride>) -> Unaudited {
    let text = String::new;
    let (before, after) = (text(), text());
    Unaudited { actor: text(), action: text(), route: text(), before, after, reason: text() }
}

fn change(data: &DataDir, route: &str, to: Option<ModeOverride>, now: i64) -> Option<ModeOverride> {
    Overrides::change(data, route, to, note, now).unwrap()
}

#[test]
fn a_change_is_on_disk_whole_and_says_what_it_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    let path = data.overrides_path();
    assert_eq!(Overrides::read(&path).unwrap(), Overrides::default());
    assert_eq!(change(&data, "chat", Some(off(None)), 1_000), None);
    assert_eq!(Overrides::read(&path).unwrap().routes["chat"], off(None));
    assert_eq!(change(&data, "chat", None, 2_000), Some(off(None)));
    assert!(Overrides::read(&path).unwrap().routes.is_empty());
}

#[test]
fn what_ran_out_does_not_count_and_is_swept_by_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    change(&data, "chat", Some(off(Some(2))), 1_000);
    assert!(off(Some(2)).is_active(2_999) && !off(Some(2)).is_active(3_000));
    assert_eq!(change(&data, "other", Some(off(None)), 3_000), None);
    let left = Overrides::read(&data.overrides_path()).unwrap();
    assert_eq!(left.routes.keys().collect::<Vec<_>>(), ["other"]);
}

#[test]
fn a_damaged_file_is_an_error_with_its_line_and_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    fs::write(data.overrides_path(), "{\"routes\":\n{\"a\": {\"mode\": \"on\"}}}").unwrap();
    let error = Overrides::change(&data, "chat", None, note, 1).unwrap_err();
    assert!(matches!(error, OverrideError::Malformed { line: 2, .. }), "{error}");
    assert!(error.to_string().contains("observe"), "{error}");
}

#[test]
fn writers_that_race_all_leave_their_change() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    std::thread::scope(|scope| {
        for at in 0..8 {
            let data = &data;
            scope.spawn(move || change(data, &format!("r{at}"), Some(off(None)), 1_000));
        }
    });
    let all = Overrides::read(&data.overrides_path()).unwrap();
    assert_eq!((all.routes.len(), all.unaudited.len()), (8, 8));
}

#[test]
fn what_was_audited_is_not_audited_again_and_the_rest_waits() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::new(dir.path());
    (0..3).for_each(|at| drop(change(&data, &format!("r{at}"), Some(off(None)), 1_000)));
    let mut seen = 0;
    let mut append = |_: &Unaudited| {
        seen += 1;
        seen <= 2
    };
    assert_eq!(Overrides::audit(&data, &mut append).unwrap(), 1);
    assert_eq!(Overrides::audit(&data, |_| true).unwrap(), 0);
    assert_eq!((seen, Overrides::read(&data.overrides_path()).unwrap().unaudited.len()), (3, 0));
}

#[test]
fn too_long_a_reason_or_life_is_refused() {
    let with = |ttl_s, reason: &str| ModeOverride::new(Mode::Off, ttl_s, reason, "me", 0);
    assert!(with(None, &"x".repeat(REASON_CHARS_MAX + 1)).is_err());
    assert!(with(Some(0), "").is_err() && with(Some(TTL_S_MAX + 1), "").is_err());
    assert!(with(Some(TTL_S_MAX), &"x".repeat(REASON_CHARS_MAX)).is_ok());
}
