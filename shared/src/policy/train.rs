//! `[train]` of a route: the recipe of a round.
//!
//! Invariant: every number is within the table of limits; what is a word is one of an enumeration.

use serde::Deserialize;

use super::PolicyError;
use super::limits::Checker;

/// Arithmetic of training. The gate always computes in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 operands with f32 sums where the processor has them, f32 elsewhere: about 1.6 times as
    /// fast.
    #[default]
    Bf16,
    /// f32 throughout.
    F32,
}

/// Whose distribution, with the hint, is taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Teacher {
    /// The base model, adapter off.
    #[default]
    Base,
    /// The generation that is being served.
    Incumbent,
}

/// How a hinted teacher teaches. Formulae and sources stand in `trainer/src/train/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// By the log-ratio of each sampled token.
    #[default]
    Token,
    /// By the `top_k` likeliest tokens of every position, with a hint chosen by overlap.
    TopK,
    /// By the reverse divergence over the teacher's `top_k` tokens and one bin for the rest.
    TopKTail,
    /// By `KL(teacher ‖ student)` over the whole vocabulary.
    ForwardKl,
    /// By `KL(student ‖ teacher)` over the whole vocabulary.
    ReverseKl,
}

/// Which of several hints teaches, for [`Loss::TopK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HintSelect {
    /// The one whose teacher agrees most with the student over the whole reply.
    #[default]
    SequenceOptimal,
    /// At every position the one whose teacher agrees most there.
    TokenOptimal,
    /// The first: hints are kept shortest first.
    Shortest,
}

/// Over which tokens of a position [`Loss::TopK`] is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// The student's likeliest.
    #[default]
    Student,
    /// The teacher's likeliest.
    Teacher,
    /// Those that are among both; positions without any teach nothing.
    Overlap,
}

/// Who trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// hone's own trainer.
    #[default]
    Native,
    /// The command of `[train.external]`.
    External,
}

/// The command that trains in place of hone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalPolicy {
    /// Program and arguments, run without a shell.
    pub command: Vec<String>,
    /// Seconds after which it is ended.
    pub timeout_s: u64,
    /// Bytes of what it may say.
    pub log_bytes_max: u64,
}

/// How a round trains. Units and meanings: [`super::LIMITS`].
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "every field is described in the table of limits")]
pub struct TrainPolicy {
    pub rank: usize,
    pub alpha: f64,
    pub learning_rate: f64,
    pub updates: usize,
    pub replies: usize,
    /// Fresh replies per update in all, at least: few prompts get more each.
    pub replies_min: usize,
    pub temperature: f64,
    pub reply_tokens_max: usize,
    pub prompt_tokens_max: usize,
    /// How a hinted teacher teaches.
    pub loss: Loss,
    pub top_k: usize,
    /// Which of several hints teaches.
    pub hint_select: HintSelect,
    /// Over which tokens of a position.
    pub support: Support,
    pub delta_max: f64,
    pub weight_opd: f64,
    pub weight_sft: f64,
    pub weight_rl: f64,
    pub weight_rl_hinted: f64,
    pub kl_beta: f64,
    pub clip_low: f64,
    pub clip_high: f64,
    pub advantage_max: f64,
    pub grad_norm_max: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub weight_decay: f64,
    /// Whose distribution, with the hint, is taught.
    pub teacher: Teacher,
    /// Arithmetic of training.
    pub precision: Precision,
    /// Whether a round continues from the incumbent's adapter instead of a fresh one.
    pub warm_start: bool,
    pub seed: u64,
    pub threads: usize,
    /// What training and gate may hold in memory.
    pub memory: MemoryPolicy,
    pub stop: StopPolicy,
    /// What a round's training may use up.
    pub budget: BudgetPolicy,
    /// The command that trains; `None`: hone does.
    pub external: Option<ExternalPolicy>,
}

/// Bounds of what training and gate hold in memory. Units and meanings: [`super::LIMITS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "every field is described in the table of limits")]
pub struct MemoryPolicy {
    pub activation_bytes_max: usize,
    pub turned_bytes_max: usize,
    pub logits_bytes_max: usize,
    pub cache_bytes_max: usize,
}

/// What a round's training may use up; the candidate so far goes to the gate then. Units and
/// meanings: [`super::LIMITS`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "every field is described in the table of limits")]
pub struct BudgetPolicy {
    pub update_norm_max: f64,
    pub kl_max: f64,
    pub wall_s_max: f64,
    pub cpu_s_max: f64,
}

/// Anomalies that stop a round. Units and meanings: [`super::LIMITS`].
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "every field is described in the table of limits")]
pub struct StopPolicy {
    pub grad_norm_max: f64,
    pub log_ratio_max: f64,
    pub entropy_min: f64,
    pub reply_tokens_min_mean: f64,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTrain {
    rank: Option<f64>,
    alpha: Option<f64>,
    learning_rate: Option<f64>,
    updates: Option<f64>,
    replies: Option<f64>,
    replies_min: Option<f64>,
    temperature: Option<f64>,
    reply_tokens_max: Option<f64>,
    prompt_tokens_max: Option<f64>,
    #[serde(default)]
    loss: Loss,
    top_k: Option<f64>,
    #[serde(default)]
    hint_select: HintSelect,
    #[serde(default)]
    support: Support,
    delta_max: Option<f64>,
    weight_opd: Option<f64>,
    weight_sft: Option<f64>,
    weight_rl: Option<f64>,
    weight_rl_hinted: Option<f64>,
    kl_beta: Option<f64>,
    clip_low: Option<f64>,
    clip_high: Option<f64>,
    advantage_max: Option<f64>,
    grad_norm_max: Option<f64>,
    adam_beta1: Option<f64>,
    adam_beta2: Option<f64>,
    weight_decay: Option<f64>,
    #[serde(default)]
    teacher: Teacher,
    #[serde(default)]
    precision: Precision,
    warm_start: Option<bool>,
    seed: Option<f64>,
    threads: Option<f64>,
    #[serde(default)]
    memory: RawMemory,
    #[serde(default)]
    stop: RawStop,
    #[serde(default)]
    budget: RawBudget,
    #[serde(default)]
    engine: Engine,
    #[serde(default)]
    external: RawExternal,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExternal {
    #[serde(default)]
    command: Vec<String>,
    timeout_s: Option<f64>,
    log_bytes_max: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStop {
    grad_norm_max: Option<f64>,
    log_ratio_max: Option<f64>,
    entropy_min: Option<f64>,
    reply_tokens_min_mean: Option<f64>,
}

impl RawTrain {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<TrainPolicy, PolicyError> {
        Ok(TrainPolicy {
            rank: check.count("train.rank", self.rank)?,
            alpha: check.real("train.alpha", self.alpha)?,
            learning_rate: check.real("train.learning_rate", self.learning_rate)?,
            updates: check.count("train.updates", self.updates)?,
            replies: check.count("train.replies", self.replies)?,
            replies_min: check.count("train.replies_min", self.replies_min)?,
            temperature: check.real("train.temperature", self.temperature)?,
            reply_tokens_max: check.count("train.reply_tokens_max", self.reply_tokens_max)?,
            prompt_tokens_max: check.count("train.prompt_tokens_max", self.prompt_tokens_max)?,
            loss: self.loss,
            top_k: check.count("train.top_k", self.top_k)?,
            hint_select: self.hint_select,
            support: self.support,
            delta_max: check.real("train.delta_max", self.delta_max)?,
            weight_sft: check.real("train.weight_sft", self.weight_sft)?,
            weight_opd: check.real("train.weight_opd", self.weight_opd)?,
            weight_rl: check.real("train.weight_rl", self.weight_rl)?,
            weight_rl_hinted: check.real("train.weight_rl_hinted", self.weight_rl_hinted)?,
            kl_beta: check.real("train.kl_beta", self.kl_beta)?,
            clip_low: check.real("train.clip_low", self.clip_low)?,
            clip_high: check.real("train.clip_high", self.clip_high)?,
            advantage_max: check.real("train.advantage_max", self.advantage_max)?,
            grad_norm_max: check.real("train.grad_norm_max", self.grad_norm_max)?,
            adam_beta1: check.real("train.adam_beta1", self.adam_beta1)?,
            adam_beta2: check.real("train.adam_beta2", self.adam_beta2)?,
            weight_decay: check.real("train.weight_decay", self.weight_decay)?,
            teacher: self.teacher,
            precision: self.precision,
            warm_start: self.warm_start.unwrap_or(true),
            seed: check.long("train.seed", self.seed)?,
            threads: check.count("train.threads", self.threads)?,
            memory: self.memory.check(check)?,
            stop: self.stop.check(check)?,
            budget: self.budget.check(check)?,
            external: self.external.check(self.engine, check)?,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMemory {
    activation_bytes_max: Option<f64>,
    turned_bytes_max: Option<f64>,
    logits_bytes_max: Option<f64>,
    cache_bytes_max: Option<f64>,
}

impl RawMemory {
    fn check(self, check: &Checker<'_>) -> Result<MemoryPolicy, PolicyError> {
        let count = |key, given| check.count(key, given);
        Ok(MemoryPolicy {
            activation_bytes_max: count(
                "train.memory.activation_bytes_max",
                self.activation_bytes_max,
            )?,
            turned_bytes_max: count("train.memory.turned_bytes_max", self.turned_bytes_max)?,
            logits_bytes_max: count("train.memory.logits_bytes_max", self.logits_bytes_max)?,
            cache_bytes_max: count("train.memory.cache_bytes_max", self.cache_bytes_max)?,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBudget {
    update_norm_max: Option<f64>,
    kl_max: Option<f64>,
    wall_s_max: Option<f64>,
    cpu_s_max: Option<f64>,
}

impl RawBudget {
    fn check(self, check: &Checker<'_>) -> Result<BudgetPolicy, PolicyError> {
        Ok(BudgetPolicy {
            update_norm_max: check.real("train.budget.update_norm_max", self.update_norm_max)?,
            kl_max: check.real("train.budget.kl_max", self.kl_max)?,
            wall_s_max: check.real("train.budget.wall_s_max", self.wall_s_max)?,
            cpu_s_max: check.real("train.budget.cpu_s_max", self.cpu_s_max)?,
        })
    }
}

impl RawStop {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<StopPolicy, PolicyError> {
        Ok(StopPolicy {
            grad_norm_max: check.real("train.stop.grad_norm_max", self.grad_norm_max)?,
            log_ratio_max: check.real("train.stop.log_ratio_max", self.log_ratio_max)?,
            entropy_min: check.real("train.stop.entropy_min", self.entropy_min)?,
            reply_tokens_min_mean: check
                .real("train.stop.reply_tokens_min_mean", self.reply_tokens_min_mean)?,
        })
    }
}

impl RawExternal {
    fn check(
        self,
        engine: Engine,
        check: &Checker<'_>,
    ) -> Result<Option<ExternalPolicy>, PolicyError> {
        let timeout_s = check.long("train.external.timeout_s", self.timeout_s)?;
        let log_bytes_max = check.long("train.external.log_bytes_max", self.log_bytes_max)?;
        if engine == Engine::Native {
            return Ok(None);
        }
        if self.command.first().is_none_or(|program| program.trim().is_empty()) {
            let found = format!("{:?}", self.command);
            let allowed = "a program and its arguments, for engine = \"external\"".to_owned();
            return Err(check.refuse("train.external.command", &found, allowed));
        }
        Ok(Some(ExternalPolicy { command: self.command, timeout_s, log_bytes_max }))
    }
}
