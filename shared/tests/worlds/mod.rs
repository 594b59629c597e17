//! A proxy's ingest in small, for the tests of linking: requests come, are resolved, answered and
//! indexed.
#![allow(dead_code, missing_docs, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use hone_shared::link::{
    Answers, History, Incoming, LinkKey, LinkKind, MemoryIndex, Resolution, entries, resolve,
};
use hone_shared::turn::{Outcome, TurnId};
use hone_shared::wire::{Choice, Named, ResponseView};
use serde_json::{Value, json};

pub const LONG: &str =
    "The capital of Australia is Canberra, which lies between Sydney and Melbourne.";

pub fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

pub fn says(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

pub fn calls(ids: [&str; 2]) -> Value {
    let call = |id: &str, arguments: &str| {
        let function = json!({"name": "get", "arguments": arguments});
        json!({"id": id, "type": "function", "function": function})
    };
    let both = [call(ids[0], "{\"a\": 1, \"b\": 2}"), call(ids[1], "{}")];
    json!({"role": "assistant", "content": null, "tool_calls": both})
}

pub fn result(id: &str, text: &str) -> Value {
    json!({"role": "tool", "tool_call_id": id, "content": text})
}

/// One request with its answer, as a test writes it.
#[derive(Clone)]
pub struct Exchange<'a> {
    pub tenant: &'a str,
    pub session: Option<&'a str>,
    pub person: &'a str,
    pub client: &'a str,
    pub retry: bool,
    pub idempotency_key: Option<&'a str>,
    pub named: Named,
    pub messages: &'a [Value],
    pub response: ResponseView,
    pub outcome: Outcome,
}

impl<'a> Exchange<'a> {
    pub fn new(messages: &'a [Value], answers: &[Value]) -> Self {
        let choice = |(index, message): (u32, &Value)| Choice {
            index,
            message: message.clone(),
            finish_reason: None,
        };
        let choices = (0u32..).zip(answers).map(choice).collect();
        Self {
            tenant: "t",
            session: None,
            person: "",
            client: "",
            retry: false,
            idempotency_key: None,
            named: Named::default(),
            messages,
            response: ResponseView { choices, ..ResponseView::default() },
            outcome: Outcome::Complete,
        }
    }

    pub fn from(self, client: &'a str) -> Self {
        Self { client, ..self }
    }

    pub fn of_person(self, person: &'a str) -> Self {
        Self { person, ..self }
    }

    pub fn in_session(self, session: &'a str) -> Self {
        Self { session: Some(session), ..self }
    }

    pub fn ended(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }

    pub fn continuing(mut self, response: &str) -> Self {
        self.named.response = Some(response.to_owned());
        self
    }

    pub fn answered_as(mut self, id: &str) -> Self {
        self.response.id = Some(id.to_owned());
        self.response.resumable = true;
        self
    }
}

/// A proxy's ingest in small: requests come, are resolved, answered and indexed.
pub struct World {
    pub index: MemoryIndex,
    pub now: i64,
    pub route: &'static str,
}

impl World {
    pub fn new() -> Self {
        Self { index: MemoryIndex::default(), now: 1_000_000, route: "chat" }
    }

    pub fn take(&mut self, exchange: Exchange<'_>) -> (TurnId, Resolution) {
        let key = LinkKey::new(&[7; 32], exchange.tenant);
        let turn_id = TurnId::now();
        self.now += 1000;
        let history = History::of(&key, self.route, &exchange.named, exchange.messages);
        let incoming = Incoming {
            turn_id,
            started_ms: self.now,
            messages: exchange.messages,
            shown: exchange.messages,
            history: &history,
            named: &exchange.named,
            explicit_session: exchange.session,
            person: exchange.person,
            client: exchange.client,
            retry: exchange.retry,
            idempotency_key: exchange.idempotency_key,
        };
        let resolution = resolve(&self.index, &key, &incoming).unwrap();
        let entries = entries(&key, &incoming, Some(&exchange.response));
        let answers =
            Answers { outcome: exchange.outcome, choices: exchange.response.choices.clone() };
        self.index.insert(&incoming, &resolution, answers, &entries);
        (turn_id, resolution)
    }

    pub fn turn_as(
        &mut self,
        tenant: &str,
        session: Option<&str>,
        messages: &[Value],
        answers: &[Value],
        outcome: Outcome,
    ) -> (TurnId, Resolution) {
        self.take(Exchange { tenant, session, outcome, ..Exchange::new(messages, answers) })
    }

    pub fn turn(&mut self, messages: &[Value], answer: Value) -> (TurnId, Resolution) {
        self.take(Exchange::new(messages, &[answer]))
    }
}

pub fn linked(resolution: &Resolution) -> Option<(TurnId, u32, LinkKind)> {
    resolution.link.as_ref().map(|link| (link.parent, link.choice, link.kind))
}
