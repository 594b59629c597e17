//! Captures: whole, cut, shared budget, retries.

use super::*;

fn whole(bytes: &'static str) -> Captured {
    let len = bytes.len() as u64;
    Captured { bytes: Bytes::from(bytes), len, truncated: false, cut: None }
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
        Captured { bytes: Bytes::from("012345678ijk"), len: 21, truncated: true, cut }
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
