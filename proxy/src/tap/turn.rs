//! The two halves of a turn, and when each is handed to the spool.
//!
//! [`Begin`] goes out when the request body is complete, so that a prompt survives even if the
//! proxy is killed before the answer; [`Done`] goes out once, at pingora's `logging` hook or, when
//! that never runs, when the tap is dropped. What a long response has brought goes out before, as
//! [`Part`]s.
//!
//! Invariant: for every tap exactly one `Begin` is offered to the recorder, and one `Done` after it
//! if it was taken; parts only in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hone_shared::clock::now_ms;
use hone_shared::spool::Place;
use hone_shared::turn::{Begin, Done, Generation, Headers, Outcome, Part, PartHead, TurnId};
use http::HeaderMap;
use pingora::http::ResponseHeader;

use super::capture::Capture;
use super::recorder::Recorder;
use crate::admit::headers;
use crate::route::Pinned;

/// The recording of one turn.
pub struct Tap {
    recorder: Arc<Recorder>,
    turn_id: TurnId,
    started: Instant,
    pinned: Pinned,
    begin: Option<Box<Opening>>,
    /// Where the first half stands, once it was taken.
    begun: Option<Place>,
    request: Capture,
    response: Capture,
    status: u16,
    response_headers: Headers,
    reported: Option<Generation>,
    first_byte_ms: Option<u64>,
    finished: bool,
}

/// What is known about a request before its body, until it is handed over.
#[derive(Debug)]
struct Opening {
    started_ms: i64,
    tenant: String,
    client: String,
    method: String,
    path: String,
    headers: Headers,
}

/// The head of a request, as the tap needs it.
pub struct RequestHead<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path without the query.
    pub path: &'a str,
    /// All headers; only those on the allow list are kept.
    pub headers: &'a HeaderMap,
    /// Name of the tenant.
    pub tenant: String,
    /// Name of the client: [`hone_shared::secret::client_of`].
    pub client: String,
    /// Body length, where known.
    pub content_length: Option<u64>,
}

impl Tap {
    /// Starts recording. From here on the turn counts: it will be stored, dropped with a reason, or
    /// pending.
    pub fn open(recorder: Arc<Recorder>, pinned: Pinned, head: RequestHead<'_>) -> Self {
        recorder.opened();
        let caps = &pinned.policy.capture;
        let mut request = Capture::new(Arc::clone(recorder.budget()), caps.request_bytes_max);
        if let Some(length) = head.content_length {
            request.expect(length);
        }
        let budget = Arc::clone(recorder.budget());
        let response = Capture::in_parts(budget, caps.response_bytes_max, recorder.part_bytes());
        let opening = Opening {
            started_ms: now_ms(),
            tenant: head.tenant,
            client: head.client,
            method: head.method.to_owned(),
            path: head.path.to_owned(),
            headers: headers::recorded_request(head.headers),
        };
        Self {
            recorder,
            turn_id: TurnId::now(),
            started: Instant::now(),
            pinned,
            begin: Some(Box::new(opening)),
            begun: None,
            request,
            response,
            status: 0,
            response_headers: Vec::new(),
            reported: None,
            first_byte_ms: None,
            finished: false,
        }
    }

    /// Name of the turn, and of its route.
    pub fn name(&self) -> (TurnId, &str) {
        (self.turn_id, &self.pinned.policy.name)
    }

    /// The generation that the request is pinned to.
    pub fn generation(&self) -> &Generation {
        &self.pinned.generation
    }

    /// The request goes upstream (again): its body will come past from the beginning.
    pub fn attempt(&mut self) {
        if self.begin.is_some() {
            self.request.restart();
        }
    }

    /// Whether the request body is still to come, or part of it.
    pub fn wants_body(&self) -> bool {
        self.begin.is_some()
    }

    /// Bytes of the request body that came past.
    pub fn request_len(&self) -> u64 {
        self.request.passed()
    }

    /// A piece of the request body; `end` when it is the last. Hands the first half over at the
    /// end.
    pub fn request_chunk(&mut self, chunk: &[u8], end: bool) {
        if self.begin.is_none() {
            return; // A replay of a body that was handed over already.
        }
        self.request.push(chunk);
        if end {
            self.hand_over_begin();
        }
    }

    /// The head of the final response.
    pub fn response_head(&mut self, head: &ResponseHeader) {
        self.status = head.status.as_u16();
        self.response_headers = headers::recorded_response(&head.headers);
        let length = head.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
        if let Some(length) = length.and_then(|text| text.parse().ok()) {
            self.response.expect(length);
        }
        let reported = head.headers.get(headers::GENERATION).and_then(|v| v.to_str().ok());
        self.reported = reported.and_then(|text| Generation::parse(text).ok());
    }

    /// Waits, at most `most`, until the first half of the turn would outlive this process, if the
    /// machine is so busy that it does not yet: a turn that was answered shall be known.
    pub async fn outlives(&mut self, most: Duration) {
        if let Some(place) = self.begun {
            self.recorder.left(place, most).await;
        }
    }

    /// A piece of the response body.
    pub fn response_chunk(&mut self, chunk: &[u8]) {
        if self.first_byte_ms.is_none() && !chunk.is_empty() {
            self.first_byte_ms = Some(self.elapsed_ms());
        }
        if self.begun.is_some() && self.response.is_part_due(chunk.len()) {
            self.hand_over_part();
        }
        self.response.push(chunk);
    }

    /// Hands over what is held of the response, or keeps it when there is no room.
    fn hand_over_part(&mut self) {
        let at = self.response.taken();
        let head = (at == 0).then(|| {
            Box::new(PartHead {
                status: self.status,
                headers: self.response_headers.clone(),
                first_byte_ms: self.first_byte_ms,
                generation: self.reported.clone(),
            })
        });
        let (turn_id, after_ms) = (self.turn_id, self.elapsed_ms());
        let part = Part { turn_id, at, after_ms, head, body: self.response.take_part() };
        match self.recorder.part(part) {
            Ok(buffer) => self.response.refill(buffer),
            Err(body) => self.response.put_back(body),
        }
    }

    /// The exchange ended; `status` is what the client got when no response of the engine's was
    /// relayed.
    pub fn finish(&mut self, outcome: Outcome, status: Option<u16>, attempts: u32) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        if self.begin.is_some() {
            // The engine answered, or failed, before the body had come past.
            self.request.cut();
            self.hand_over_begin();
        }
        let body = self.response.take();
        if self.begun.is_some() {
            self.recorder.done(Done {
                turn_id: self.turn_id,
                status: status.unwrap_or(self.status),
                outcome,
                headers: std::mem::take(&mut self.response_headers),
                first_byte_ms: self.first_byte_ms,
                duration_ms: self.elapsed_ms(),
                generation: self.reported.take(),
                attempts,
                body: body.bytes,
                body_at: body.at,
                body_len: body.len,
                body_truncated: body.truncated,
                body_cut: body.cut,
            });
        }
        self.recorder.closed();
    }

    fn hand_over_begin(&mut self) {
        let Some(opening) = self.begin.take() else { return };
        let body = self.request.take();
        self.begun = self.recorder.begin(Begin {
            turn_id: self.turn_id,
            started_ms: opening.started_ms,
            route: self.pinned.policy.name.clone(),
            mode: self.pinned.mode,
            alias: self.pinned.policy.alias.clone(),
            tenant: opening.tenant,
            client: opening.client,
            method: opening.method,
            path: opening.path,
            headers: opening.headers,
            generation: self.pinned.generation.clone(),
            policy_version: self.pinned.policy_version,
            body: body.bytes,
            body_len: body.len,
            body_truncated: body.truncated,
            body_cut: body.cut,
        });
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Only when the request's task ended without `logging`: it panicked, or the grace period
        // ran out.
        self.finish(Outcome::ProxyCrash, None, 0);
    }
}
