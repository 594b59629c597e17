//! What must hold of the gate for every stream of bytes: it never panics, its verdict does not
//! depend on the packets, and httparse with a naive body reader sees the same requests as it does.
//!
//! Used by the fuzz target and by a smoke test of the proxy.

use crate::gate::{Caps, Gate, Refusal};

const CAPS: Caps =
    Caps { head_bytes_max: 64 << 10, request_line_bytes_max: 8 << 10, fields_max: 100 };

/// What a gate did with a stream.
#[derive(Debug, PartialEq)]
struct Verdict {
    /// Requests of which every byte passed.
    whole: Vec<Vec<u8>>,
    /// What passed of the one after them.
    part: Vec<u8>,
    refusal: Option<Refusal>,
}

/// A small generator of sizes, so that an input replays.
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

fn run(stream: &[u8], mut packet: impl FnMut() -> usize) -> Verdict {
    let mut gate = Gate::new(CAPS);
    let mut verdict = Verdict { whole: Vec::new(), part: Vec::new(), refusal: None };
    let (mut held, mut rest) = (Vec::new(), stream);
    while !rest.is_empty() {
        let (bytes, later) = rest.split_at(packet().clamp(1, rest.len()));
        rest = later;
        held.extend_from_slice(bytes);
        loop {
            let offer = match gate.offer(&held) {
                Ok(offer) => offer,
                Err(refusal) => {
                    verdict.refusal = Some(refusal);
                    return verdict;
                }
            };
            assert!(offer.skip + offer.pass <= held.len());
            verdict.part.extend(held.drain(..offer.skip + offer.pass).skip(offer.skip));
            if !gate.answered() {
                break;
            }
            verdict.whole.push(std::mem::take(&mut verdict.part));
        }
        assert!(held.len() <= CAPS.head_bytes_max, "what is held is bounded");
    }
    verdict
}

/// Checks everything; panics if something does not hold.
pub fn check(stream: &[u8], mut seed: u64) {
    let at_once = run(stream, || usize::MAX);
    let largest = [1, 3, 17, 200, 5000][next(&mut seed) % 5];
    let in_packets = run(stream, || next(&mut seed) % largest + 1);
    assert_eq!(at_once.whole, in_packets.whole);
    assert_eq!(at_once.refusal, in_packets.refusal);
    assert!(in_packets.part.starts_with(&at_once.part), "only less is known earlier");
    for request in &at_once.whole {
        assert_eq!(reference(request), Some(request.len()), "{:?}", request.escape_ascii());
    }
    if !in_packets.part.is_empty() {
        assert_eq!(reference(&in_packets.part), None, "{:?}", in_packets.part.escape_ascii());
    }
}

/// Where httparse and the simplest reader of bodies see the end of a request; `None`: not yet.
fn reference(bytes: &[u8]) -> Option<usize> {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    let head = match request.parse(bytes).expect("httparse takes what passed") {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial => panic!("only whole heads pass"),
    };
    assert_eq!(&bytes[head - 4..head], b"\r\n\r\n");
    let all = |name: &str| -> Vec<&[u8]> {
        let same = request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
        same.map(|h| h.value).collect()
    };
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "one framing");
    assert!(all("host").len() == 1 || request.version == Some(0));
    if codings == [b"chunked"] {
        return chunks(&bytes[head..]).map(|n| head + n);
    }
    assert!(codings.is_empty());
    let length = lengths.first().map_or(0, |text| {
        let text = std::str::from_utf8(text).expect("digits");
        assert!(text.bytes().all(|b| b.is_ascii_digit()));
        text.parse::<usize>().expect("a length that fits")
    });
    let end = head.checked_add(length).expect("no overflow");
    (bytes.len() >= end).then_some(end)
}

fn chunks(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let (line, size) = match httparse::parse_chunk_size(bytes.get(at..)?) {
            Ok(httparse::Status::Complete((line, size))) => (line, usize::try_from(size).ok()?),
            Ok(httparse::Status::Partial) => return None,
            Err(error) => panic!("httparse refuses a chunk size: {error}"),
        };
        at = at.checked_add(line)?;
        if size == 0 {
            break;
        }
        at = at.checked_add(size)?;
        let end = bytes.get(at..at.checked_add(2)?)?;
        assert_eq!(end, b"\r\n");
        at += 2;
    }
    // Trailers, up to an empty line.
    loop {
        let line = bytes.get(at..)?.windows(2).position(|w| w == b"\r\n")?;
        at += line + 2;
        if line == 0 {
            return Some(at);
        }
    }
}
