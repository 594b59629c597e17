//! The files of a round: whole or not there.

use super::*;

fn dir() -> (tempfile::TempDir, WorkDir) {
    let temp = tempfile::tempdir().unwrap();
    let work = WorkDir::open(temp.path(), "r").unwrap();
    (temp, work)
}

#[test]
fn starts_are_counted_across_openings() {
    let (temp, work) = dir();
    assert_eq!(work.count_start().unwrap(), 1);
    let again = WorkDir::open(temp.path(), "r").unwrap();
    assert_eq!(again.count_start().unwrap(), 2);
}

#[test]
fn a_missing_file_is_none_and_a_damaged_one_is_an_error() {
    let (_temp, work) = dir();
    assert_eq!(work.samples().unwrap(), None);
    std::fs::write(work.path().join(SAMPLES), b"{\"train\": [").unwrap();
    assert!(matches!(work.samples(), Err(WorkError::Json { .. })));
}

#[test]
fn metrics_are_trimmed_to_the_checkpoint_and_a_torn_line_goes() {
    let (_temp, work) = dir();
    for update in 0..4 {
        work.log(&Measured { update, ..Measured::default() }).unwrap();
    }
    let path = work.path().join(METRICS);
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"update\": 4, \"lo");
    std::fs::write(&path, text).unwrap();
    work.trim_metrics(3).unwrap();
    let updates: Vec<u64> = work.metrics().unwrap().iter().map(|m| m.update).collect();
    assert_eq!(updates, [0, 1, 2]);
    work.log(&Measured { update: 3, ..Measured::default() }).unwrap();
    assert_eq!(work.metrics().unwrap().len(), 4);
}

#[test]
fn only_the_newest_rounds_keep_their_files_and_unfinished_ones_always_do() {
    let temp = tempfile::tempdir().unwrap();
    let id = |i: usize| format!("00000000-0000-7000-8000-{i:012}");
    for i in 0..ROUNDS_KEPT_MAX + 5 {
        WorkDir::open(temp.path(), &id(i)).unwrap();
    }
    std::fs::create_dir(temp.path().join("not-a-round")).unwrap();
    assert_eq!(prune(temp.path(), &[id(1)]).unwrap(), 4);
    assert!(temp.path().join(id(1)).exists() && temp.path().join("not-a-round").exists());
    assert!(!temp.path().join(id(0)).exists() && temp.path().join(id(5)).exists());
}
