//! The entry points that are fuzzed: one function per target, bytes in, nothing out.
//!
//! Why here: the fuzz targets (nightly) and the smoke test of `cargo test` (stable,
//! `shared/tests/fuzz_smoke.rs`) drive the same code.
//! Invariant: none of them panics, whatever the bytes; what a parser promises about any input is
//! asserted here.

use hone_shared::feedback::{Scales, Shape, parse};
use hone_shared::link::{History, LinkKey, canon, loose_text};
use hone_shared::policy::PolicySet;
use hone_shared::spool::DirReader;
use hone_shared::turn::Record;
use hone_shared::wire::sse::{Decoder, events};
use hone_shared::wire::{Named, parse_request, parse_response, parse_stream};

/// What a fuzzer drives with any bytes; panics when it finds a fault.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 10] = [
    ("sse", sse),
    ("openai_request", openai_request),
    ("openai_response", openai_response),
    ("responses", responses),
    ("anthropic", anthropic),
    ("link_canon", link_canon),
    ("spool_record", spool_record),
    ("spool_segment", spool_segment),
    ("policy_toml", policy_toml),
    ("feedback", feedback),
];

/// The event-stream grammar: the same events however the bytes are cut.
pub fn sse(bytes: &[u8]) {
    let mut found = Vec::new();
    let mut decoder = Decoder::new();
    let size = usize::from(bytes.first().copied().unwrap_or(0)) % 7 + 1;
    bytes.chunks(size).for_each(|chunk| decoder.feed(chunk, &mut |event| found.push(event)));
    decoder.finish(&mut |event| found.push(event));
    assert_eq!(found, events(bytes));
}

/// Requests to chat and legacy completions.
pub fn openai_request(bytes: &[u8]) {
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for coding in [None, Some("br"), Some("zstd"), Some("deflate")] {
            if let Ok(view) = parse_request(path, coding, bytes) {
                link(&view.messages, &view.named);
            }
        }
    }
}

/// Answers of chat and legacy completions.
pub fn openai_response(bytes: &[u8]) {
    response("/v1/chat/completions", bytes);
    response("/v1/completions", bytes);
}

/// The Responses API, both ways.
pub fn responses(bytes: &[u8]) {
    both("/v1/responses", bytes);
}

/// Anthropic messages, both ways.
pub fn anthropic(bytes: &[u8]) {
    both("/v1/messages", bytes);
}

/// Feedback in all four shapes: what is taken is whole, within its ranges, and survives the spool.
pub fn feedback(bytes: &[u8]) {
    for shape in Shape::ALL.iter().copied().map(Some).chain([None]) {
        let Ok(given) = parse(shape, bytes, &Scales::default()) else { continue };
        let feedback = given.by("tenant", 1.0, 0);
        assert!((0.0..=1.0).contains(&feedback.weight));
        assert!((1..=5).contains(&feedback.parts.len()));
        for (at, part) in feedback.parts.iter().enumerate() {
            assert!(part.value().is_none_or(|value| (-1.0..=1.0).contains(&value)));
            assert!(feedback.parts.iter().skip(at + 1).all(|other| other.kind() != part.kind()));
        }
        let record = Record::Feedback(Box::new(feedback));
        let Ok(Record::Feedback(read)) = Record::decode(record.kind(), &record.encode()) else {
            panic!("not read back")
        };
        assert_eq!(read.id.0, record.turn_id().0);
    }
}

/// Canonical forms and chains of any JSON.
pub fn link_canon(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let messages = match value {
        serde_json::Value::Array(messages) => messages,
        other => vec![other],
    };
    messages.iter().for_each(|message| {
        loose_text(message);
        assert_eq!(canon(message), canon(&message.clone()));
    });
    link(&messages, &Named::default());
}

/// Records of the spool: what is read back is what would be written.
pub fn spool_record(bytes: &[u8]) {
    let Some((kind, payload)) = bytes.split_first() else { return };
    if let Ok(record) = Record::decode(*kind, payload) {
        let again = Record::decode(record.kind(), &record.encode()).ok();
        match &record {
            // Its numbers are read to the last digit but one.
            Record::Feedback(_) => assert_eq!(again.map(|r| r.turn_id()), Some(record.turn_id())),
            _ => assert_eq!(again, Some(record)),
        }
    }
}

/// A segment of the spool: read to its end, whatever it holds.
pub fn spool_segment(bytes: &[u8]) {
    let Ok(dir) = tempfile::tempdir() else { return };
    if std::fs::write(dir.path().join("000000.seg"), bytes).is_err() {
        return;
    }
    let mut reader = DirReader::dead(dir.path());
    let mut items = 0;
    while let Ok(Some(_)) = reader.read_next() {
        items += 1;
        assert!(items <= bytes.len(), "more items than bytes");
    }
}

/// Policy files: parsed, or refused with reasons.
pub fn policy_toml(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for path in ["routes/a.toml", "judges/a.toml", "gates/a.toml"] {
        if let Err(error) = PolicySet::from_files([(path, text.as_ref())]) {
            assert!(!error.to_string().is_empty());
        }
    }
}

fn both(path: &str, bytes: &[u8]) {
    if let Ok(view) = parse_request(path, None, bytes) {
        link(&view.messages, &view.named);
    }
    response(path, bytes);
}

fn response(path: &str, bytes: &[u8]) {
    let _ = parse_response(path, None, None, bytes, true);
    let _ = parse_response(path, Some("application/json"), Some("gzip"), bytes, false);
    let cut = bytes.len() / 2;
    let whole = parse_stream(path, [bytes]).ok();
    assert_eq!(whole, parse_stream(path, [&bytes[..cut], &bytes[cut..]]).ok());
}

fn link(messages: &[serde_json::Value], named: &Named) {
    let history = History::of(&LinkKey::new(&[7; 32], "t"), "r", named, messages);
    assert_eq!(history.exact.prefixes.len(), messages.len() + 1);
}
