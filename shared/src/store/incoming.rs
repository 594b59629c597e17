//! A turn on its way into the store: parsed, hashed and packed before any transaction begins.
//!
//! Bodies that cannot be read are kept raw and flagged; a turn is never refused for what it says.
//! Invariant: everything that costs time is done here, so that the writing transaction stays short.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::bodies::{self, Body, Node};
use super::flags;
use super::reading::{Seen, TurnReader};
use super::redacted::Redaction;
use crate::link::{self, Entry, History, Incoming, LinkKey, MessageHashes};
use crate::policy::RedactionPolicy;
use crate::redact::{Counts, Side};
use crate::turn::{Begin, Cut, Done, Generation, Headers, Outcome};
use crate::wire::{self, Named, RequestView, ResponseView};

/// A turn that is ready to be inserted.
pub struct IngestTurn {
    /// The request half; its body has been taken.
    pub begin: Begin,
    /// The response half; its body has been taken. `None`: the proxy died before it was written.
    pub done: Option<Done>,
    /// The request, if it could be read.
    pub request: Option<RequestView>,
    /// The response, if there is one and it could be read.
    pub response: Option<ResponseView>,
    /// How the turn ended, with what the bodies say taken into account.
    pub outcome: Outcome,
    /// The generation that answered: as the engine says, else as it was asked for.
    pub generation: Generation,
    /// The bits of [`flags`](super::flags).
    pub flags: u32,
    /// The session that the client names.
    pub session: Option<String>,
    /// The client's own id of it, as it was sent; never stored.
    pub(super) session_sent: Option<String>,
    pub(super) key: Arc<LinkKey>,
    /// The messages as they were sent, where they are stored differently: links are made over them.
    pub(super) original: Option<Vec<Value>>,
    /// How often each redaction rule hit.
    pub(super) redactions: Counts,
    pub(super) asked: Asked,
    pub(super) entries: Vec<Entry>,
    pub(super) nodes: Vec<Node>,
    pub(super) params: Option<Body>,
    pub(super) choices: Vec<Body>,
    pub(super) raw_request: Option<Body>,
    pub(super) raw_response: Option<Body>,
}

impl std::fmt::Debug for IngestTurn {
    /// Neither texts nor keys: this may end up in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngestTurn")
            .field("turn_id", &self.begin.turn_id)
            .field("outcome", &self.outcome)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

/// What linking takes from a request before anything of it is redacted.
pub(super) struct Asked {
    /// Pseudonym of the person that the client names; empty when none.
    pub(super) person: String,
    /// Whether the client says that it sends the request again.
    pub(super) retry: bool,
    pub(super) named: Named,
    pub(super) history: History,
    idempotency_key: Option<String>,
}

impl Asked {
    fn of(
        key: &LinkKey,
        begin: &Begin,
        request: Option<&RequestView>,
        hashes: &[MessageHashes],
    ) -> Self {
        let messages = request.map_or(&[][..], |request| &request.messages);
        let person = request.and_then(|request| link::person(&request.params));
        let named = request.map_or_else(Named::default, |request| request.named.clone());
        Self {
            person: person.map_or(String::new(), |name| key.pseudonym(&name)),
            retry: link::is_retry(&begin.headers),
            history: History::over(key, &begin.route, &named, messages, hashes),
            named,
            idempotency_key: link::idempotency_key(&begin.headers).map(str::to_owned),
        }
    }

    fn is_linkable(&self, messages: &[Value]) -> bool {
        !messages.is_empty() || self.named.is_any()
    }

    fn incoming<'a>(
        &'a self,
        begin: &'a Begin,
        explicit_session: Option<&'a str>,
        messages: &'a [Value],
        shown: &'a [Value],
    ) -> Incoming<'a> {
        Incoming {
            turn_id: begin.turn_id,
            started_ms: begin.started_ms,
            messages,
            shown,
            history: &self.history,
            named: &self.named,
            explicit_session,
            person: &self.person,
            client: &begin.client,
            retry: self.retry,
            idempotency_key: self.idempotency_key.as_deref(),
        }
    }
}

impl IngestTurn {
    /// Reads the bodies of a turn. `secret` is the one of the data directory; it keys the links.
    pub fn parse(secret: &[u8; 32], begin: Begin, done: Option<Done>) -> Self {
        Self::parse_redacted(secret, begin, done, &[])
    }

    /// As [`IngestTurn::parse`], with all texts redacted after the links were computed.
    pub fn parse_redacted(
        secret: &[u8; 32],
        begin: Begin,
        done: Option<Done>,
        redactions: &[Arc<RedactionPolicy>],
    ) -> Self {
        Self::read(&mut TurnReader::new(*secret), begin, done, redactions)
    }

    pub(super) fn read(
        reader: &mut TurnReader,
        mut begin: Begin,
        mut done: Option<Done>,
        redactions: &[Arc<RedactionPolicy>],
    ) -> Self {
        let request_body = std::mem::take(&mut begin.body);
        let response_body = done.as_mut().map(|done| std::mem::take(&mut done.body));
        let coding = header(&begin.headers, "content-encoding");
        let readable = Cut::readable(begin.body_cut.as_ref(), &request_body);
        let mut request = wire::parse_request(&begin.path, coding, &readable).ok();
        let mut response = done.as_ref().and_then(|done| {
            let stream = request.as_ref().is_some_and(|request| request.stream);
            let readable = Cut::readable(done.body_cut.as_ref(), response_body.as_ref()?);
            read_response(&begin.path, done, &readable, stream)
        });
        let tenant = begin.tenant.clone();
        let mut flags = doubts(&begin, done.as_ref(), request.as_ref(), response.as_ref());
        let messages = request.as_ref().map_or(&[][..], |request| &request.messages);
        let key = reader.key(&begin.tenant);
        let (mut bodies, mut seen) = seen(reader, &key, &tenant, messages);
        let params = request.as_ref().map_or(&Value::Null, |request| &request.params);
        let mut redaction = Redaction::new(redactions);
        let session = link::explicit_session(&begin.headers, params);
        let session_sent =
            session.as_deref().and_then(|named| Some(named.split_once(':')?.1.to_owned()));
        let session = session.map(|named| redaction.session(&key, named));
        let hashes: Vec<_> = seen.iter().map(|seen| seen.hashes).collect();
        let asked = Asked::of(&key, &begin, request.as_ref(), &hashes);
        let entries = match asked.is_linkable(messages) {
            true => {
                let incoming = asked.incoming(&begin, session.as_deref(), messages, messages);
                link::entries(&key, &incoming, response.as_ref())
            }
            false => Vec::new(),
        };
        // From here on everything is as it will be stored.
        let raw_request = match flags & flags::REQUEST_UNREAD != 0 && !request_body.is_empty() {
            true => {
                redaction.raw(Side::Request, &begin.headers, &request_body, begin.body_truncated)
            }
            false => None,
        };
        let keep_response = flags & (flags::RESPONSE_UNREAD | flags::BAD_EVENTS) != 0;
        let raw_response = match (&done, &response_body) {
            (Some(done), Some(body)) if keep_response && !body.is_empty() => {
                redaction.raw(Side::Response, &done.headers, body, done.body_truncated)
            }
            _ => None,
        };
        note_cut(&mut begin.headers, begin.body_cut.as_ref());
        if let Some(done) = &mut done {
            note_cut(&mut done.headers, done.body_cut.as_ref());
        }
        let policies = reader.number(redactions);
        let clean = |at: usize| seen.get(at).is_some_and(|seen| seen.clean == policies);
        let original = redaction.request(&mut begin, request.as_mut(), clean);
        redaction.response(done.as_mut(), response.as_mut());
        flags |= if redaction.withheld { flags::BODY_WITHHELD } else { 0 };
        let messages = request.as_ref().map_or(&[][..], |request| &request.messages);
        for (at, message) in messages.iter().enumerate() {
            let (Some(body), Some(seen)) = (bodies.get_mut(at), seen.get_mut(at)) else { break };
            let changed = original.as_ref().is_some_and(|sent| sent.get(at) != Some(message));
            if changed {
                *body = Body::json(&tenant, message);
            } else if seen.clean != policies {
                seen.clean = policies;
                reader.remember(body.key, *seen);
            }
        }
        let answers = response.as_ref().map_or(&[][..], |response| &response.choices);
        Self {
            outcome: outcome(done.as_ref(), request.as_ref(), response.as_ref()),
            generation: generation(&begin, done.as_ref(), response.as_ref()),
            session,
            session_sent,
            asked,
            entries,
            original,
            redactions: redaction.counts,
            nodes: bodies::chain_of(bodies),
            params: request.as_ref().map(|request| Body::json(&tenant, &request.params)),
            choices: answers.iter().map(|answer| Body::json(&tenant, &answer.message)).collect(),
            flags,
            key,
            raw_request: raw_request.map(|bytes| Body::new(&tenant, bytes)),
            raw_response: raw_response.map(|bytes| Body::new(&tenant, bytes)),
            begin,
            done,
            request,
            response,
        }
    }

    /// Whether there is anything to find a parent by, or to be found by.
    pub(super) fn is_linkable(&self) -> bool {
        self.asked.is_linkable(self.messages())
    }

    /// The turn as linking sees it.
    pub(super) fn incoming(&self) -> Incoming<'_> {
        let (shown, original) = (self.messages(), self.original.as_deref());
        let messages = original.unwrap_or(shown);
        self.asked.incoming(&self.begin, self.session.as_deref(), messages, shown)
    }

    /// The messages of the request; none when it could not be read.
    pub(super) fn messages(&self) -> &[Value] {
        self.request.as_ref().map_or(&[], |request| &request.messages)
    }

    /// Whether a verdict on this turn may be trained on, with the flags that it is stored with:
    /// missing or doubtful data fails closed.
    pub(super) fn judgeable(&self, flags: u32) -> bool {
        self.begin.mode.trains()
            && self.outcome == Outcome::Complete
            && flags == 0
            && !self.messages().is_empty()
            && !self.choices.is_empty()
    }
}

/// The messages as bodies, and what is known of each.
fn seen(
    reader: &TurnReader,
    key: &LinkKey,
    tenant: &str,
    messages: &[Value],
) -> (Vec<Body>, Vec<Seen>) {
    let look = |message: &Value| {
        let body = Body::json(tenant, message);
        let fresh = || Seen { hashes: MessageHashes::of(key, message), clean: 0 };
        let seen = reader.seen(&body.key).unwrap_or_else(fresh);
        (body, seen)
    };
    messages.iter().map(look).unzip()
}

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Where a body was cut and the hash of all of it, under a name that no client can send.
fn note_cut(headers: &mut Headers, cut: Option<&Cut>) {
    headers.extend(cut.map(|cut| {
        let note = format!("head_bytes={} blake3={}", cut.head_bytes, cut.blake3);
        ("x-hone-body-cut".to_owned(), note)
    }));
}

fn read_response(path: &str, done: &Done, body: &Bytes, stream: bool) -> Option<ResponseView> {
    let kind = header(&done.headers, "content-type");
    let coding = header(&done.headers, "content-encoding");
    wire::parse_response(path, kind, coding, body, stream).ok()
}

fn doubts(
    begin: &Begin,
    done: Option<&Done>,
    request: Option<&RequestView>,
    response: Option<&ResponseView>,
) -> u32 {
    let bit = |on: bool, flag: u32| if on { flag } else { 0 };
    let named = done.and_then(|done| done.generation.as_ref());
    let inside = response.and_then(|response| response.adapter_generation.as_ref());
    let differ = matches!((named, inside), (Some(a), Some(b)) if a != b);
    let within = response.is_some_and(|response| response.generation_conflict);
    bit(request.is_none(), flags::REQUEST_UNREAD)
        | bit(done.is_some() && response.is_none(), flags::RESPONSE_UNREAD)
        | bit(begin.body_truncated, flags::REQUEST_TRUNCATED)
        | bit(done.is_some_and(|done| done.body_truncated), flags::RESPONSE_TRUNCATED)
        | bit(differ || within, flags::GENERATION_CONFLICT)
        | bit(response.is_some_and(|response| response.bad_events > 0), flags::BAD_EVENTS)
        | bit(done.is_none(), flags::RESPONSE_LOST)
}

fn outcome(
    done: Option<&Done>,
    request: Option<&RequestView>,
    response: Option<&ResponseView>,
) -> Outcome {
    let failed = response.is_some_and(|response| response.error.is_some());
    match done {
        None => Outcome::ProxyCrash,
        // Clients hang up as soon as they have read the last event of a stream, or an error in it,
        // which can be before the engine ends its side: they did not leave the answer.
        Some(done) if done.outcome == Outcome::ClientAbort && done.status < 400 => {
            match request.zip(response) {
                Some((request, _)) if request.stream && failed => Outcome::ModelError,
                Some((request, view)) if request.stream && is_all(request, view) => {
                    Outcome::Complete
                }
                _ => Outcome::ClientAbort,
            }
        }
        // Nor does one that tries again without reading what an engine's error says; a refusal of the
        // proxy's own has no head.
        Some(done)
            if done.outcome == Outcome::ClientAbort
                && done.status >= 400
                && !done.headers.is_empty() =>
        {
            Outcome::UpstreamError
        }
        Some(done) if done.outcome != Outcome::Complete => done.outcome,
        Some(done) if done.status >= 400 => Outcome::UpstreamError,
        Some(_) if failed => Outcome::ModelError,
        Some(_) => Outcome::Complete,
    }
}

/// Whether every answer that was asked for is there to its end.
fn is_all(request: &RequestView, response: &ResponseView) -> bool {
    let asked = request.params.get("n").and_then(Value::as_u64).unwrap_or(1);
    response.finished && response.choices.len() as u64 >= asked
}

fn generation(begin: &Begin, done: Option<&Done>, response: Option<&ResponseView>) -> Generation {
    let named = done.and_then(|done| done.generation.clone());
    let inside = response.and_then(|response| response.adapter_generation.clone());
    named.or(inside).unwrap_or_else(|| begin.generation.clone())
}
