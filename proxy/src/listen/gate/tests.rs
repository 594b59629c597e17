//! The gate against packets of every size.

use super::*;

const CAPS: Caps = Caps { head_bytes_max: 4096, request_line_bytes_max: 256, fields_max: 10 };

/// Runs a stream through a gate in packets; after each request the next one is let in. What passed,
/// request by request, and the refusal, if there was one.
fn run(stream: &[u8], packet: usize) -> (Vec<Vec<u8>>, Option<Refusal>) {
    let mut gate = Gate::new(CAPS);
    let (mut held, mut passed) = (Vec::new(), vec![Vec::new()]);
    for bytes in stream.chunks(packet) {
        held.extend_from_slice(bytes);
        loop {
            let offer = match gate.offer(&held) {
                Ok(offer) => offer,
                Err(refusal) => return (passed, Some(refusal)),
            };
            let request = held.drain(..offer.skip + offer.pass).skip(offer.skip);
            passed.last_mut().unwrap().extend(request);
            if !gate.answered() {
                break;
            }
            passed.push(Vec::new());
        }
    }
    (passed, None)
}

#[test]
fn requests_pass_whole_and_one_by_one_however_they_are_cut() {
    let requests: [&[u8]; 4] = [
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost:a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET http://a/ HTTP/1.0\r\n\r\n",
    ];
    let stream = requests.join(&b"\r\n"[..]);
    for packet in 1..stream.len() {
        let (passed, refusal) = run(&stream, packet);
        assert_eq!(refusal, None);
        assert_eq!(passed[..4], requests, "packets of {packet}");
    }
}

#[test]
fn a_refused_request_passes_no_byte_of_its_head_however_it_is_cut() {
    let long_line = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(300));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "x".repeat(5000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(10));
    for (request, refusal) in [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", Refusal::LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", Refusal::LineEnd),
        ("GET / HTTP/1.1\r\nHost: a\r\nx: a\0b\r\n\r\n", Refusal::Control),
        ("GET / HTTP/1.1\r\nHost: a\r\n x\r\n\r\n", Refusal::Folded),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Refusal::FieldName),
        ("GET / HTTP/1.1\r\n\r\n", Refusal::Host),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Host),
        ("get / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("GET /\r\n\r\n", Refusal::RequestLine),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", Refusal::Version),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Method),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        (&long_line, Refusal::TargetLong),
        (&large, Refusal::HeadLarge),
        (&many, Refusal::FieldsMany),
    ] {
        for packet in (1..40).chain([request.len()]) {
            let (passed, found) = run(request.as_bytes(), packet);
            assert_eq!(found, Some(refusal), "{request:?} in packets of {packet}");
            assert_eq!(passed, [Vec::<u8>::new()]);
        }
    }
}

#[test]
fn a_body_that_is_wrong_in_the_same_packet_is_refused_with_its_head() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n";
    let mut gate = Gate::new(CAPS);
    assert_eq!(gate.offer(request), Err(Refusal::ChunkSize));
    let (passed, found) = run(request, request.len() - 3);
    assert_eq!((passed, found), (vec![Vec::new()], Some(Refusal::ChunkSize)));
}

#[test]
fn only_a_websocket_request_may_switch_and_only_after_it_has_passed() {
    let asked =
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nraw";
    let mut gate = Gate::new(CAPS);
    assert!(!gate.may_switch());
    let offer = gate.offer(asked).unwrap();
    assert_eq!(offer.pass, asked.len() - 3, "what follows waits for the answer");
    assert!(gate.may_switch());
    gate.open();
    assert_eq!(gate.offer(b"raw").unwrap().pass, 3);
}
