//! The spool against a model: a plain list of records.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails may panic")]

mod records;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;

use hone_shared::spool::{DirReader, SpoolConfig};
use hone_shared::turn::{Begin, Done, DropReason, Gap, Part, Record, TurnId};
use proptest::prelude::*;
use records::{begin, dead_process, done, items, read_all, read_dead, segments, setup};

fn any_record() -> impl Strategy<Value = Record> {
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        proptest::collection::vec(any::<u8>(), 1000..3000),
        (0usize..20_000).prop_map(|n| vec![b'a'; n]),
    ];
    let text = "[ -~\u{e9}\u{4e2d}]{0,12}";
    (0u8..4, body, text, any::<u64>()).prop_map(|(kind, body, text, number)| match kind {
        0 => Record::Begin(Begin { route: text, policy_version: number, ..begin(body) }),
        1 => Record::Done(Done { duration_ms: number, ..done(TurnId::now(), body) }),
        2 => Record::Part(Part {
            turn_id: TurnId::now(),
            at: number,
            after_ms: 1,
            head: None,
            body: body.into(),
        }),
        _ => Record::Gap(Gap {
            route: text,
            reason: DropReason::Closed,
            count: number,
            from_ms: 1,
            at_ms: 1,
        }),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The model: a list. Whatever the sizes of records and segments, and wherever the last segment
    /// is torn, a prefix of the list comes back, and it is the longest one whose frames are whole.
    #[test]
    fn any_sequence_comes_back_up_to_the_tear(
        sent in proptest::collection::vec(any_record(), 0..24),
        segment_bytes_max in 1u64..20_000,
        tear in 0.0f64..=1.0,
        junk in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let (_dir, cfg) = setup();
        let dir = dead_process(&SpoolConfig { segment_bytes_max, ..cfg }, &sent);
        let placed = read_all(&mut DirReader::dead(&dir));
        prop_assert_eq!(placed.iter().map(|p| p.1.clone()).collect::<Vec<_>>(), items(&sent));
        if let Some(last) = segments(&dir).pop() {
            let number = placed.last().map_or(0, |p| p.0.segment);
            let len = fs::metadata(&last).unwrap().len();
            let cut = (len as f64 * tear) as u64;
            let ends: BTreeMap<usize, u64> = placed.iter().enumerate()
                .filter(|(_, p)| p.0.segment == number)
                .map(|(i, _)| (i, placed.get(i + 1).map_or(len, |next| next.0.offset)))
                .collect();
            let whole = placed.iter().enumerate()
                .take_while(|(i, p)| p.0.segment < number || ends[i] <= cut).count();
            let file = OpenOptions::new().write(true).open(&last).unwrap();
            file.set_len(cut).unwrap();
            let mut file = OpenOptions::new().append(true).open(&last).unwrap();
            file.write_all(&junk).unwrap();
            let read = read_dead(&dir);
            // Junk behind a torn frame may complete its length: it is still noticed and cut.
            prop_assert_eq!(&read[..whole], &items(&sent[..whole])[..]);
            prop_assert_eq!(read.len(), whole);
        }
    }
}
