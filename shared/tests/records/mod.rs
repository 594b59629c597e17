//! What the spool's and the store's tests share: records, and a process that dies.
#![allow(dead_code, missing_docs, reason = "each test binary uses its part")]

pub mod talk;

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hone_shared::spool::{DirReader, Item, Position, SpoolConfig, SpoolWriter};
use hone_shared::turn::{Begin, Done, Generation, Mode, Outcome, Record, TurnId};

pub fn begin(body: Vec<u8>) -> Begin {
    Begin {
        turn_id: TurnId::now(),
        started_ms: 1_700_000_000_000,
        route: "chat".into(),
        mode: Mode::Learn,
        alias: "chat".into(),
        tenant: "tenant".into(),
        client: String::new(),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        headers: vec![("content-type".into(), "application/json".into())],
        generation: Generation::base(),
        policy_version: 1,
        body_len: body.len() as u64,
        body: Bytes::from(body),
        body_truncated: false,
        body_cut: None,
    }
}

pub fn done(turn_id: TurnId, body: Vec<u8>) -> Done {
    Done {
        turn_id,
        status: 200,
        outcome: Outcome::Complete,
        headers: vec![],
        first_byte_ms: Some(1),
        duration_ms: 2,
        generation: None,
        attempts: 1,
        body_len: body.len() as u64,
        body: Bytes::from(body),
        body_at: 0,
        body_truncated: false,
        body_cut: None,
    }
}

pub fn setup() -> (tempfile::TempDir, SpoolConfig) {
    let dir = tempfile::tempdir().unwrap();
    let cfg = SpoolConfig::new(dir.path().join("spool"));
    (dir, cfg)
}

/// Writes records as a process that then dies: the lock goes, nothing is closed.
pub fn dead_process(cfg: &SpoolConfig, records: &[Record]) -> PathBuf {
    let mut writer = SpoolWriter::create(cfg).unwrap();
    for record in records {
        writer.append(record).unwrap();
        writer.sync().unwrap();
    }
    writer.dir().to_owned()
}

pub fn read_all(reader: &mut DirReader) -> Vec<(Position, Item)> {
    std::iter::from_fn(|| reader.read_next().unwrap()).collect()
}

pub fn read_dead(dir: &Path) -> Vec<Item> {
    read_all(&mut DirReader::dead(dir)).into_iter().map(|(_, item)| item).collect()
}

pub fn items(records: &[Record]) -> Vec<Item> {
    records.iter().cloned().map(Item::Record).collect()
}

pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}
