//! Tests of the words and the record encoding.

use super::*;

fn begin() -> Begin {
    Begin {
        turn_id: TurnId::now(),
        started_ms: 1_700_000_000_123,
        route: "chat".into(),
        mode: Mode::Learn,
        alias: "chat".into(),
        tenant: "t".into(),
        client: String::new(),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        headers: vec![("x-session-id".into(), "a\"b\n".into())],
        generation: Generation::base(),
        policy_version: u64::MAX,
        body: Bytes::from_static(b"{\"messages\":[]}\x00\xff"),
        body_len: 17,
        body_truncated: false,
        body_cut: None,
    }
}

#[test]
fn every_record_comes_back_as_it_was_written() {
    let done = Done {
        turn_id: TurnId::now(),
        status: 200,
        outcome: Outcome::ClientAbort,
        headers: vec![],
        first_byte_ms: Some(3),
        duration_ms: 9,
        generation: Some(Generation::parse(&"0f".repeat(32)).unwrap()),
        attempts: 2,
        body: Bytes::from_static(b"data: [DONE]\n\n"),
        body_len: 14,
        body_at: 0,
        body_truncated: true,
        body_cut: None,
    };
    let gap =
        Gap { route: "chat".into(), reason: DropReason::QueueFull, count: 7, from_ms: 1, at_ms: 1 };
    for record in [Record::Begin(begin()), Record::Done(done), Record::Gap(gap)] {
        assert_eq!(Record::decode(record.kind(), &record.encode()).unwrap(), record);
    }
}

#[test]
fn a_damaged_payload_is_an_error_and_never_a_panic() {
    let payload = Record::Begin(begin()).encode();
    assert!(matches!(Record::decode(9, &payload), Err(TurnError::UnknownKind(9))));
    assert!(matches!(Record::decode(1, &payload[..3]), Err(TurnError::TooShort(3))));
    assert!(matches!(Record::decode(1, &payload[..40]), Err(TurnError::TooShort(40))));
    assert!(matches!(Record::decode(2, &payload), Err(TurnError::Meta(_))));
    assert!(Record::decode(1, &[0xff; 64]).is_err());
}

#[test]
fn a_generation_is_base_or_64_lower_case_hex_digits() {
    assert!(Generation::parse("base").unwrap().is_base());
    let hex = "ab".repeat(32);
    let generation = Generation::parse(&hex).unwrap();
    assert_eq!((generation.as_str(), generation.short()), (hex.as_str(), "abababababab"));
    for bad in ["", "Base", "abc", &"AB".repeat(32), &"zz".repeat(32), "../../etc/passwd"] {
        assert!(Generation::parse(bad).is_err(), "{bad}");
        assert!(serde_json::from_value::<Generation>(serde_json::json!(bad)).is_err(), "{bad}");
    }
}

#[test]
fn words_have_one_text_form_in_json_and_in_tables() {
    for &mode in Mode::ALL {
        assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
        assert_eq!(mode.as_str().parse::<Mode>().unwrap(), mode);
    }
    for &outcome in Outcome::ALL {
        assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        assert_eq!(outcome.as_str().parse::<Outcome>().unwrap(), outcome);
    }
    for &reason in DropReason::ALL {
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        assert_eq!(reason.as_str().parse::<DropReason>().unwrap(), reason);
    }
    assert!("sometimes".parse::<Mode>().is_err());
}

#[test]
fn only_shadow_and_learn_train_and_only_learn_serves() {
    let facts = Mode::ALL.iter().map(|m| (m.captures(), m.trains(), m.serves()));
    let expected =
        [(false, false, false), (true, false, false), (true, true, false), (true, true, true)];
    assert!(facts.eq(expected));
}

#[test]
fn turn_ids_sort_by_time_and_survive_text() {
    let (a, b) = (TurnId::now(), TurnId::now());
    assert!(a < b);
    assert_eq!(a.to_string().parse::<TurnId>().unwrap(), a);
    assert_eq!(serde_json::to_value(a).unwrap(), a.to_string());
}

#[test]
fn ids_of_a_process_grow_and_tell_their_time() {
    let before = crate::clock::now_ms();
    let made = || (0..10_000).map(|_| TurnId::now()).collect::<Vec<_>>();
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(made)).collect();
    let ids: Vec<Vec<TurnId>> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(ids.iter().all(|ids| ids.is_sorted()));
    let all: std::collections::BTreeSet<TurnId> = ids.into_iter().flatten().collect();
    assert_eq!(all.len(), 40_000);
    for TurnId(id) in all {
        assert_eq!((id.get_version_num(), id.get_variant()), (7, uuid::Variant::RFC4122));
        let (seconds, nanos) = id.get_timestamp().unwrap().to_unix();
        let ms = seconds as i64 * 1000 + i64::from(nanos) / 1_000_000;
        assert!((before..before + 60_000).contains(&ms), "{ms} after {before}");
    }
}
