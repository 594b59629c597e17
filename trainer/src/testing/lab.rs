//! A data directory with a tiny model, a store and a registry, and turns to put into it.

use super::insert;
use crate::driver::HoneDriver;
use crate::judge::Judge;
use crate::publish::ProxyAdmin;
use crate::sample::Sample;
use crate::sample::hint;
use crate::sample::render::Renderer;
use crate::workshop::{Workshop, cpu_kernels};
use hone_model::chat::Asked;
use hone_model::testing::tiny_model_dir;
use hone_shared::clock::Clock;
use hone_shared::data_dir::DataDir;
use hone_shared::policy::PolicySet;
use hone_shared::registry::Registry;
use hone_shared::store::{RoundRow, RoundState, Store, StoredTurn, VerdictRow};
use hone_shared::turn::{Generation, Mode, Outcome, TurnId};
use hone_shared::wire::Choice;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Everything a test needs on disk; gone when it is dropped.
pub struct Lab {
    _temporary: Vec<TempDir>,
    pub data: DataDir,
    pub model_dir: PathBuf,
    pub store: Store,
}

impl Lab {
    /// A fresh one.
    pub fn new() -> Self {
        let (data, model) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let model_dir = tiny_model_dir(&model.path().join("tiny"), 5).unwrap();
        let mut lab = Self::at(data.path(), &model_dir);
        lab._temporary = vec![data, model];
        lab
    }

    /// One on a directory that is there already.
    pub fn at(data: &Path, model: &Path) -> Self {
        let data = DataDir::new(data);
        data.create().unwrap();
        let store = Store::open(&data.store_path()).unwrap();
        Self { _temporary: Vec::new(), store, data, model_dir: model.to_owned() }
    }

    /// Stores a turn and the turn that follows it with `next`; returns the first.
    pub fn add(&mut self, session: &str, question: &str, answer: &str, next: &str) -> TurnId {
        insert::conversation(&mut self.store, session, question, answer, next)
    }

    /// As [`Lab::add`], many times with different questions.
    pub fn add_many(&mut self, count: usize, answer: &str, next: &str) -> Vec<TurnId> {
        insert::many(&mut self.store, count, answer, next)
    }

    /// Stores one turn with request headers; returns it and how many turns were linked.
    pub fn send(
        &mut self,
        session: &str,
        messages: &[Value],
        answer: Value,
        headers: &[(&str, &str)],
    ) -> (TurnId, u64) {
        insert::one(&mut self.store, session, messages, answer, headers)
    }

    /// Lets the rules judge what waits.
    pub async fn judge(&mut self, policies: &PolicySet) {
        let mut judge = Judge::new("http://127.0.0.1:1", Clock::System).unwrap();
        judge.pass(&mut self.store, policies).await.unwrap();
    }

    /// The tools of a round, with the engine at `url`.
    pub fn workshop(&self, url: &str, handle: Handle) -> Workshop {
        Workshop {
            store: Store::open(&self.data.store_path()).unwrap(),
            registry: Registry::open(self.data.registry_dir()).unwrap(),
            renderer: Renderer::from_dir(&self.model_dir).unwrap(),
            base_hash: hone_model::weights::model_hash(&self.model_dir).unwrap(),
            kernels: cpu_kernels(),
            driver: Arc::new(HoneDriver::new(url).unwrap()),
            proxy: ProxyAdmin::new(self.data.clone(), Some(url.to_owned())).unwrap(),
            secret: self.data.secret().unwrap(),
            model_dir: self.model_dir.clone(),
            data: self.data.clone(),
            handle,
            shutdown: CancellationToken::new(),
        }
    }
}

/// A complete turn of the route `chat`, served by the base model; not in any store.
pub fn stored_turn(session: &str, question: &str, answer: &str, finish: &str) -> StoredTurn {
    StoredTurn {
        turn_id: TurnId::now(),
        session_id: session.into(),
        parent: None,
        parent_choice: 0,
        link: None,
        link_confidence: 0.0,
        repeat_of: None,
        retry: false,
        response_id: None,
        route: "chat".into(),
        mode: Mode::Learn,
        alias: "chat".into(),
        tenant: "t".into(),
        person: String::new(),
        path: "/v1/chat/completions".into(),
        model: None,
        generation: Generation::base(),
        started_ms: 0,
        first_byte_ms: None,
        duration_ms: Some(1),
        status: 200,
        outcome: Outcome::Complete,
        stream: false,
        params: json!({}),
        messages: vec![message("user", question)],
        choices: vec![Choice {
            index: 0,
            message: message("assistant", answer),
            finish_reason: Some(finish.into()),
        }],
        prompt_tokens: None,
        completion_tokens: None,
    }
}

/// A verdict on a turn; its child is not in any store.
pub fn verdict(turn: &StoredTurn, verdict: i8, hints: &[&str]) -> VerdictRow {
    VerdictRow {
        turn_id: turn.turn_id,
        child: Some(TurnId::now()),
        verdict,
        source: "rule:test".into(),
        reason: String::new(),
        votes: json!([]),
        hints: hints.iter().map(|h| (*h).to_owned()).collect(),
        judge: "chat@test".into(),
        judged_ms: 0,
        kind: None,
        llm: None,
    }
}

/// A finished round of a route.
pub fn round(round_id: &str, route: &str) -> RoundRow {
    RoundRow {
        round_id: round_id.into(),
        route: route.into(),
        state: RoundState::Promoted,
        started_ms: 1,
        finished_ms: Some(2),
        incumbent: Generation::base(),
        candidate: None,
        reason: String::new(),
        metrics: json!({}),
    }
}

/// A hinted sample, corrected, answered by the base model.
pub fn sample(renderer: &Renderer, question: &str, answer: &str) -> Sample {
    let messages = [message("user", question)];
    let hinted = hint::enhance(&messages, "[hint]", "Answer in one short sentence.");
    let reply = message("assistant", answer);
    let reply = renderer.reply(&Asked::undated(&messages), &reply, Some("stop"), 12).unwrap();
    let path = "/v1/chat/completions";
    Sample {
        turn_id: TurnId::now(),
        session_id: question.into(),
        generation: Generation::base(),
        prompt: renderer.prompt(path, &Asked::undated(&messages)).unwrap(),
        teachers: vec![renderer.prompt(path, &Asked::undated(&hinted)).unwrap()],
        response: reply.tokens,
        ended: reply.ended,
        reward: -1.0,
        demonstration: None,
    }
}

/// A chat message.
pub fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// Copies a directory with everything in it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
