//! Captures: whole, cut, shared budget, retries.

use super::*;

fn whole(bytes: &'static str) -> Captured {
    let len = bytes.len() as u64;
    Captured { bytes: Bytes::from(bytes), len, truncated: false, cut: None, at: 0 }
}

#[test]
fn chunks_are_joined_and_counted() {
    let budget = Budget::new(1 << 20);
    let mut capture = Capture::new(Arc::clone(&budget), 1 << 20);
    let body: Vec<u8> = (0..17_000u32).map(|n| (n % 253) as u8).collect();
    body.chunks(170).for_each(|chunk| capture.push(chunk));
    assert!(budget.held() >= 17_000);
    let captured = capture.take();
    assert_eq!((captured.bytes.to_vec(), captured.len, captured.truncated), (body, 17_000, false));
    assert_eq!(budget.held(), 0, "handed over, so no longer counted");
}

#[test]
fn a_long_stream_wastes_at_most_a_third() {
    for len in [10_000, 60_000, 300_000, 3_000_000] {
        let mut capture = Capture::new(Budget::new(1 << 30), 8 << 20);
        (0..len / 100).for_each(|_| capture.push(&[b'x'; 100]));
        assert!(capture.reserved <= len * 4 / 3, "{len}: {}", capture.reserved);
    }
}

#[test]
fn a_known_length_is_allocated_once_but_not_believed_beyond_reason() {
    let budget = Budget::new(1 << 30);
    let mut capture = Capture::new(Arc::clone(&budget), 8 << 20);
    capture.expect(2_000);
    assert_eq!(budget.held(), 2_000);
    capture.push(&[1; 2_000]);
    assert_eq!((capture.blocks.len(), capture.take().bytes.len()), (1, 2_000));
    capture.expect(8 << 20);
    assert!(budget.held() <= 64 << 10, "{}", budget.held());
}

#[test]
fn a_body_over_the_cap_keeps_both_ends_its_length_and_its_hash() {
    let mut capture = Capture::new(Budget::new(1 << 20), 12);
    ["0123456", "789abc", "defghi", "jk"].iter().for_each(|chunk| capture.push(chunk.as_bytes()));
    let captured = capture.take();
    let blake3 = blake3::hash(b"0123456789abcdefghijk").to_hex().to_string();
    let cut = Some(Cut { head_bytes: 9, blake3 });
    assert_eq!(
        captured,
        Captured { bytes: Bytes::from("012345678ijk"), len: 21, truncated: true, cut, at: 0 }
    );
}

#[test]
fn an_enormous_body_holds_little_memory() {
    let budget = Budget::new(64 << 20);
    let mut capture = Capture::new(Arc::clone(&budget), 8 << 20);
    let chunk = vec![7; 64 << 10];
    let mut most = 0;
    for _ in 0..1_000 {
        capture.push(&chunk);
        most = most.max(budget.held());
    }
    assert!(most <= (8 << 20) + (64 << 10), "{most}");
    assert!(budget.held() <= (1 << 20) + (64 << 10), "{}", budget.held());
    let captured = capture.take();
    assert_eq!((captured.bytes.len(), captured.len), ((1 << 20) + (64 << 10), 1_000 << 16));
    assert_eq!(budget.held(), 0);
}

#[test]
fn a_body_of_exactly_the_cap_is_whole() {
    let mut capture = Capture::new(Budget::new(1 << 20), 4);
    capture.push(b"0123");
    assert_eq!(capture.take(), whole("0123"));
}

#[test]
fn captures_share_one_budget_and_give_it_back() {
    let budget = Budget::new(10_000);
    let mut first = Capture::new(Arc::clone(&budget), 1 << 20);
    first.push(&[1; 8192]);
    let mut second = Capture::new(Arc::clone(&budget), 1 << 20);
    second.push(&[2; 8192]);
    let cut = second.take();
    assert!(cut.truncated && cut.cut.is_some());
    drop(first);
    assert_eq!(budget.held(), 0);
}

#[test]
fn a_body_that_did_not_all_come_past_has_no_hash() {
    let mut capture = Capture::new(Budget::new(1 << 20), 4);
    capture.push(b"012345");
    capture.cut();
    let captured = capture.take();
    assert!(captured.truncated && captured.cut.is_none());
}

#[test]
fn a_retry_starts_over() {
    let budget = Budget::new(1 << 20);
    let mut capture = Capture::new(Arc::clone(&budget), 4);
    capture.push(b"lost!");
    capture.restart();
    assert_eq!(budget.held(), 0);
    capture.push(b"kept");
    assert_eq!(capture.take(), whole("kept"));
}

/// A body that goes past in chunks of `size`, whose parts are taken, but for every third when
/// `refuse`. What the ingest makes of it, with what was kept and how often a part was taken.
fn in_parts(body: &[u8], size: usize, max: u64, refuse: bool) -> (Vec<u8>, Captured, usize) {
    let mut capture = Capture::in_parts(Budget::new(1 << 30), max, 16 << 10);
    let (mut parts, mut tried, mut taken) = (Vec::new(), 0, 0);
    for chunk in body.chunks(size) {
        if capture.is_part_due(chunk.len()) {
            assert_eq!(capture.taken(), parts.len() as u64);
            let part = capture.take_part();
            tried += 1;
            if refuse && tried % 3 != 0 {
                capture.put_back(part);
            } else {
                parts.extend_from_slice(&part);
                taken += 1;
                let buffer = part.try_into_mut().ok().map(|buffer| {
                    let mut buffer = Vec::from(buffer);
                    buffer.clear();
                    buffer
                });
                capture.refill(buffer);
            }
        }
        capture.push(chunk);
    }
    let captured = capture.take();
    assert_eq!(captured.at, parts.len() as u64);
    parts.truncate(captured.cut.as_ref().map_or(usize::MAX, |cut| cut.head_bytes as usize));
    parts.extend_from_slice(&captured.bytes);
    (parts, captured, taken)
}

#[test]
fn parts_and_rest_are_what_one_piece_would_have_been() {
    let body: Vec<u8> = (0..400_000u32).map(|n| (n % 251) as u8).collect();
    for (size, max) in [(170, 1 << 20), (1_200, 300_000), (20_000, 390_000), (7, 100_000)] {
        let mut whole = Capture::new(Budget::new(1 << 30), max);
        body.chunks(size).for_each(|chunk| whole.push(chunk));
        let whole = whole.take();
        for refuse in [false, true] {
            let (joined, rest, taken) = in_parts(&body, size, max, refuse);
            assert!(taken > 0, "chunks of {size}: {taken} parts");
            assert!(joined == whole.bytes, "chunks of {size}, at most {max}, refused {refuse}");
            assert_eq!(
                (rest.len, rest.truncated, rest.cut),
                (whole.len, whole.truncated, whole.cut.clone())
            );
        }
    }
}

#[test]
fn a_capture_in_parts_holds_little_however_long_the_body_is() {
    let budget = Budget::new(1 << 30);
    let mut capture = Capture::in_parts(Arc::clone(&budget), 8 << 20, 16 << 10);
    let mut most = 0;
    for _ in 0..30_000 {
        if capture.is_part_due(200) {
            drop(capture.take_part());
            capture.refill(Some(Vec::with_capacity(16 << 10)));
        }
        capture.push(&[b'x'; 200]);
        most = most.max(budget.held());
    }
    assert!(most <= 24 << 10, "{most}");
    drop(capture);
    assert_eq!(budget.held(), 0);
}

#[test]
fn a_short_body_is_never_taken_in_parts() {
    let mut capture = Capture::in_parts(Budget::new(1 << 30), 8 << 20, 16 << 10);
    for _ in 0..50 {
        assert!(!capture.is_part_due(170));
        capture.push(&[b'x'; 170]);
    }
    assert_eq!(capture.take().bytes.len(), 8_500);
}
