//! One life of a model with one user: sessions, corrections, rounds, and what became of it.
//!
//! A session is one question and, if the answer breaks the user's rule, one correction. As soon as
//! there are enough samples they are trained on, with the same code and the same policy as a round;
//! the result is used at once (no gate: the comparison shall show also what a gate would refuse).
//! Lives of a gated method have rounds as a deployment: as many samples as the policy asks for, some
//! of them held out, and a refused candidate is not used.
//!
//! Invariant: the questions of the final measurement are never asked before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use hone_model::chat::Asked;
use hone_model::lora::Lora;
use hone_shared::policy::{GatePolicy, PolicySet, RoundPolicy, RoutePolicy, Teacher};
use hone_shared::turn::{Generation, TurnId};
use hone_trainer::compute::{Compute, Rollout, SampleParams, Sequence};
use hone_trainer::sample::render::Renderer;
use hone_trainer::sample::{self, Sample, hint};
use hone_trainer::train::{self, Plan, TrainEnd};
use hone_trainer::work::WorkDir;
use hone_trainer::workshop::cpu_kernels;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::gated::{self, Gate, RoundKind, Verdict};
use super::method::{Kind, Method};
use crate::cli::UsageError;
use crate::demo::client::Reply;
use crate::demo::questions::{ASKED, HELD_OUT};
use crate::demo::user;

/// Samples that start a round, approvals included.
const ROUND_SAMPLES: usize = 4;
/// Content answers in a row that end the user's patience test.
const CONTENT_IN_A_ROW: usize = 3;
/// Questions kept for the final measurement.
const UNSEEN: usize = 12;
/// Replies drawn to each of them.
const UNSEEN_REPLIES: usize = 4;
/// Corrections that a remembering prompt carries at most, newest last.
const REMEMBERED_MAX: usize = 3;
/// Seeds of the final measurement start here, above those of sessions.
const UNSEEN_SEED: u64 = 5_000;
const PATH: &str = "/v1/chat/completions";
const ROUTE: &str = "chat";

/// What became of one life: a line of the results file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Life {
    /// Name of the method.
    pub method: String,
    /// Seed of questions, replies and training.
    pub seed: u64,
    /// Per session: whether the user was content with the first answer.
    pub sessions: Vec<bool>,
    /// The session, from 1, with which the user had been content three times in a row.
    pub content_at: Option<usize>,
    /// Share of unseen questions whose answer keeps the user's rule.
    pub unseen_rule_share: f64,
    /// Nats per token that the base's own neutral replies became less likely.
    pub forgotten_nats: f64,
    /// Corrections given.
    pub corrections: usize,
    /// Optimiser updates made.
    pub updates: usize,
    /// Seconds of training.
    pub train_seconds: f64,
    /// What the gate said to each round, where there was a gate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<Verdict>,
}

/// Where lives are lived: one base model for all.
pub struct Nursery {
    compute: Box<dyn Compute>,
    renderer: Renderer,
    model_dir: PathBuf,
    threads: usize,
    sessions_max: usize,
}

/// What changes during a life.
struct State {
    kind: Kind,
    gated: bool,
    stays: bool,
    /// The prompts of the samples with the opposite hint, where rounds are sabotaged.
    opposites: Option<BTreeMap<TurnId, Vec<u32>>>,
    student: Option<Lora>,
    remembered: Vec<String>,
    samples: Vec<Sample>,
    rounds: u64,
    life: Life,
}

/// The policies of a life.
struct Rules {
    route: Arc<RoutePolicy>,
    gate: Arc<GatePolicy>,
    hint_label: String,
}

impl Nursery {
    /// Loads the model. `threads` 0: all.
    pub fn open(dir: &Path, threads: usize, sessions_max: usize) -> anyhow::Result<Self> {
        let most = ASKED.len() + HELD_OUT.len() - UNSEEN;
        if sessions_max == 0 || sessions_max > most {
            bail!(UsageError(format!("--sessions: from 1 to {most}")));
        }
        let builtin = PolicySet::builtin()?;
        let train = &builtin.route(ROUTE).context("no chat route")?.train;
        let compute = cpu_kernels()(dir, threads, train.precision, &train.memory)?;
        let (renderer, model_dir) = (Renderer::from_dir(dir)?, dir.to_owned());
        Ok(Self { compute, renderer, model_dir, threads, sessions_max })
    }

    /// Lives one life.
    pub fn live(&mut self, method: &Method, seed: u64) -> anyhow::Result<Life> {
        let rules = Rules::of(&method.policies(seed, self.threads)?)?;
        let (asked, unseen) = questions(seed);
        let mut state = State::new(method, seed);
        for (at, question) in asked.iter().take(self.sessions_max).enumerate() {
            self.session(&mut state, &rules, question, at as u64)?;
            if state.is_content() {
                state.life.content_at.get_or_insert(at + 1);
                if !state.stays {
                    break;
                }
            }
        }
        state.life.unseen_rule_share = self.kept(&state, &rules, &unseen)?;
        state.life.forgotten_nats = self.forgotten(&state, &rules)?;
        Ok(state.life)
    }

    /// One question, its answer, what the user says to it, and the round that may start then.
    fn session(
        &mut self,
        state: &mut State,
        rules: &Rules,
        question: &str,
        at: u64,
    ) -> anyhow::Result<()> {
        let prompt = self.prompt(state, rules, question)?;
        let said = self.draw(state, rules, prompt.clone(), at)?;
        let reply = self.reply(&said);
        let content = user::is_content(&reply);
        state.life.sessions.push(content);
        let words = (!content).then(|| user::correction(at as usize, &reply));
        state.life.corrections += usize::from(words.is_some());
        match (state.kind, &words) {
            (Kind::Ignored, _) | (Kind::Remembered, None) => {}
            (Kind::Remembered, Some(words)) => state.remember(hint::instruction(words)),
            (Kind::Learned, words) => {
                let sample = self.sample(state, rules, question, prompt, said, words.as_deref())?;
                if let (Some(sample), Some(opposites)) = (&sample, &mut state.opposites) {
                    let opposite = self.hinted(rules, question, gated::OPPOSITE)?;
                    opposites.insert(sample.turn_id, opposite);
                }
                state.samples.extend(sample);
            }
        }
        if state.has_enough(&rules.route.round) {
            self.round(state, rules)?;
        }
        Ok(())
    }

    /// What a judged turn gives to learn from under the policy's weights; `None`: nothing.
    fn sample(
        &self,
        state: &State,
        rules: &Rules,
        question: &str,
        prompt: Vec<u32>,
        said: Rollout,
        words: Option<&str>,
    ) -> anyhow::Result<Option<Sample>> {
        let train = &rules.route.train;
        let hint = words.filter(|_| train.weight_opd > 0.0);
        let hinted = hint.map(|words| self.hinted(rules, question, words));
        let teachers: Vec<Vec<u32>> = hinted.into_iter().collect::<anyhow::Result<_>>()?;
        let verdict = if words.is_some() { -1.0 } else { 1.0 };
        let reward = if train.weight_rl > 0.0 { verdict } else { 0.0 };
        if teachers.is_empty() && reward == 0.0 {
            return Ok(None);
        }
        // Who is held out hangs on the names of sessions: a life shall be the same every time.
        let number = state.life.sessions.len() as u64;
        let turn_id = TurnId(uuid::Uuid::from_u64_pair(state.life.seed, number));
        Ok(Some(Sample {
            turn_id,
            session_id: turn_id.to_string(),
            generation: state.generation()?,
            prompt,
            teachers,
            response: said.tokens,
            ended: said.ended,
            reward,
            demonstration: None,
        }))
    }

    /// Trains on what has come together, with the trainer's own code.
    fn round(&mut self, state: &mut State, rules: &Rules) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut policy = rules.route.train.clone();
        policy.seed = policy.seed.wrapping_mul(1_000).wrapping_add(state.rounds);
        let generation = state.generation()?;
        let mut drawn = std::mem::take(&mut state.samples);
        if state.gated {
            sample::balance(&rules.route.round, drawn.iter_mut());
            drawn.retain(Sample::judges_the_reply);
        }
        let (mut samples, holdout) = match state.gated {
            true => gated::parted(drawn, policy.seed, rules.route.round.holdout_share),
            false => (drawn, Vec::new()),
        };
        if let Some(opposites) = state.opposites_now() {
            for sample in &mut samples {
                let opposite = opposites.remove(&sample.turn_id).context("no opposite prompt")?;
                gated::turn_round(sample, opposite);
            }
        }
        let plan = Plan {
            samples,
            start: state.student.clone().filter(|_| policy.warm_start),
            teacher: state.student.clone().filter(|_| policy.teacher == Teacher::Incumbent),
            servers: state.student.iter().map(|own| (generation.clone(), own.clone())).collect(),
            model: self.renderer.model.clone(),
            eos: self.renderer.eos().to_vec(),
            policy,
        };
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let work = WorkDir::open(dir.path(), "round")?;
        let ended = train::train(self.compute.as_mut(), &plan, &work, &|| false)?;
        state.life.train_seconds += begun.elapsed().as_secs_f64();
        match ended {
            TrainEnd::Done(candidate) | TrainEnd::Spent(candidate, _) => {
                self.use_if_accepted(state, rules, candidate, &plan, &holdout)?;
            }
            TrainEnd::Stopped(reason) => tracing::warn!(reason, "a round stopped by itself"),
            TrainEnd::Interrupted => bail!("a round was interrupted"),
        }
        state.rounds += 1;
        state.life.updates += work.metrics()?.len();
        Ok(())
    }

    /// Lets the candidate answer from now on, unless there is a gate and it objects.
    fn use_if_accepted(
        &self,
        state: &mut State,
        rules: &Rules,
        candidate: Lora,
        plan: &Plan,
        holdout: &[Sample],
    ) -> anyhow::Result<()> {
        if state.gated {
            let is_sabotaged = state.opposites_now().is_some();
            let kind = match (is_sabotaged, state.life.content_at) {
                (true, _) => RoundKind::Sabotaged,
                (false, Some(_)) => RoundKind::Content,
                (false, None) => RoundKind::Honest,
            };
            let gate = Gate {
                model_dir: &self.model_dir,
                renderer: &self.renderer,
                threads: self.threads,
            };
            let stand = (&candidate, state.student.as_ref(), plan.teacher.as_ref());
            let parts = (plan.samples.len(), holdout);
            let verdict = gate.examine((&rules.route, &rules.gate), stand, parts, kind)?;
            tracing::info!(?verdict, "the gate");
            let passed = verdict.passed;
            state.life.rounds.push(verdict);
            if !passed {
                return Ok(());
            }
        }
        state.student = Some(candidate);
        Ok(())
    }

    /// Share of the replies to these questions that keep the user's rule.
    fn kept(&mut self, state: &State, rules: &Rules, unseen: &[&str]) -> anyhow::Result<f64> {
        let prompts: Vec<Vec<u32>> = unseen
            .iter()
            .map(|question| self.prompt(state, rules, question))
            .collect::<anyhow::Result<_>>()?;
        let params = self.params(rules, state.life.seed.wrapping_mul(10_000) + UNSEEN_SEED);
        let student = state.student.as_ref();
        let drawn = self.compute.sample(student, &prompts, UNSEEN_REPLIES, &params)?;
        let replies: Vec<&Rollout> = drawn.iter().flatten().collect();
        let kept = replies.iter().filter(|said| user::is_content(&self.reply(said))).count();
        Ok(kept as f64 / replies.len().max(1) as f64)
    }

    /// Nats per token that the base's own answers to neutral prompts are less likely now.
    fn forgotten(&mut self, state: &State, rules: &Rules) -> anyhow::Result<f64> {
        let mut sequences = Vec::new();
        for question in &rules.gate.neutral_prompts {
            let plain = self.render(&[asks(question)])?;
            let params = self.params(rules, state.life.seed);
            let base = self.compute.sample(None, &[plain], 1, &params)?;
            let said = base.into_iter().flatten().next().context("no reply was drawn")?;
            let prompt = self.prompt(state, rules, question)?;
            sequences.push((self.render(&[asks(question)])?, prompt, said.tokens));
        }
        let of = |own: bool| -> Vec<Sequence> {
            let each = sequences.iter().map(|(plain, prompt, response)| Sequence {
                prompt: if own { prompt.clone() } else { plain.clone() },
                response: response.clone(),
            });
            each.collect()
        };
        let base = self.compute.score(None, &of(false))?;
        let own = self.compute.score(state.student.as_ref(), &of(true))?;
        let pairs = base.iter().flatten().zip(own.iter().flatten());
        let (sum, tokens) =
            pairs.fold((0.0, 0), |(sum, n), (b, o)| (sum + f64::from(*b) - f64::from(*o), n + 1));
        Ok(sum / f64::from(tokens.max(1)))
    }

    fn draw(
        &mut self,
        state: &State,
        rules: &Rules,
        prompt: Vec<u32>,
        salt: u64,
    ) -> anyhow::Result<Rollout> {
        let params = self.params(rules, state.life.seed.wrapping_mul(10_000).wrapping_add(salt));
        let drawn = self.compute.sample(state.student.as_ref(), &[prompt], 1, &params)?;
        drawn.into_iter().flatten().next().context("no reply was drawn")
    }

    fn params(&self, rules: &Rules, seed: u64) -> SampleParams {
        let train = &rules.route.train;
        SampleParams {
            temperature: train.temperature as f32,
            tokens_max: train.reply_tokens_max,
            eos: self.renderer.eos().to_vec(),
            seed,
        }
    }

    /// The prompt as the user's client would send it: with what it remembers, if it remembers.
    fn prompt(&self, state: &State, rules: &Rules, question: &str) -> anyhow::Result<Vec<u32>> {
        let mut messages = vec![asks(question)];
        if !state.remembered.is_empty() {
            let words = state.remembered.join(" ");
            messages = hint::enhance(&messages, &rules.hint_label, &words);
        }
        self.render(&messages)
    }

    /// The prompt of a question with a hint, as the teacher sees it.
    fn hinted(&self, rules: &Rules, question: &str, words: &str) -> anyhow::Result<Vec<u32>> {
        self.render(&hint::enhance(&[asks(question)], &rules.hint_label, words))
    }

    fn render(&self, messages: &[Value]) -> anyhow::Result<Vec<u32>> {
        let prompt = self.renderer.prompt(PATH, &Asked::undated(messages));
        prompt.map_err(|reason| anyhow!("a prompt: {reason}"))
    }

    fn reply(&self, said: &Rollout) -> Reply {
        let text = self.renderer.text(&said.tokens);
        let tokens = said.tokens.len() as u64;
        Reply { text, tokens, ended: said.ended, generation: String::new() }
    }
}

impl Rules {
    fn of(policies: &PolicySet) -> anyhow::Result<Self> {
        let route = policies.route(ROUTE).context("no chat route")?.clone();
        let judge = policies.judge_of(&route).context("no chat judge")?;
        let gate = policies.gates.get(&route.gate).context("no chat gate")?;
        Ok(Self { route, gate: gate.clone(), hint_label: judge.hint.label.clone() })
    }
}

impl State {
    fn new(method: &Method, seed: u64) -> Self {
        let life = Life {
            method: method.name.clone(),
            seed,
            sessions: Vec::new(),
            content_at: None,
            unseen_rule_share: 0.0,
            forgotten_nats: 0.0,
            corrections: 0,
            updates: 0,
            train_seconds: 0.0,
            rounds: Vec::new(),
        };
        Self {
            kind: method.kind,
            gated: method.gated,
            stays: method.stays,
            opposites: method.sabotaged.then(BTreeMap::new),
            student: None,
            remembered: Vec::new(),
            samples: Vec::new(),
            rounds: 0,
            life,
        }
    }

    /// Where this round is sabotaged, the opposite prompts. Not before the model has learned
    /// something that is worth keeping.
    fn opposites_now(&mut self) -> Option<&mut BTreeMap<TurnId, Vec<u32>>> {
        self.opposites.as_mut().filter(|_| self.student.is_some())
    }

    /// Whether a round begins: as a deployment's rounds do, where there is a gate.
    fn has_enough(&self, round: &RoundPolicy) -> bool {
        if !self.gated {
            return self.samples.len() >= ROUND_SAMPLES;
        }
        let corrections = self.samples.iter().filter(|sample| sample.corrects()).count();
        self.samples.len() >= round.samples_min && corrections >= round.corrections_min
    }

    /// The last sessions were all content.
    fn is_content(&self) -> bool {
        let mut last = self.life.sessions.iter().rev().take(CONTENT_IN_A_ROW);
        self.life.sessions.len() >= CONTENT_IN_A_ROW && last.all(|content| *content)
    }

    fn remember(&mut self, words: String) {
        self.remembered.retain(|known| *known != words);
        self.remembered.push(words);
        if self.remembered.len() > REMEMBERED_MAX {
            self.remembered.remove(0);
        }
    }

    /// A name for what answers now; every round makes a new one.
    fn generation(&self) -> anyhow::Result<Generation> {
        match self.student {
            None => Ok(Generation::base()),
            Some(_) => Ok(Generation::parse(&format!("{:064x}", self.rounds))?),
        }
    }
}

fn asks(question: &str) -> Value {
    json!({"role": "user", "content": question})
}

/// The questions of a life in its order, and those that are kept for its end.
fn questions(seed: u64) -> (Vec<&'static str>, Vec<&'static str>) {
    let mut all: Vec<&str> = ASKED.iter().chain(&HELD_OUT).copied().collect();
    all.shuffle(&mut StdRng::seed_from_u64(seed));
    let unseen = all.split_off(all.len() - UNSEEN);
    (all, unseen)
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
