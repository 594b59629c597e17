//! Every number that a policy may set: its default, its range and its meaning, in one table.
//!
//! Why: an operator must be able to see all limits at once, and the documentation
//! (`policies/README.md`) is tested against this table. Keys are `<section>.<key>` as in the files;
//! `judge.` and `gate.` sections live in their own files.
//!
//! Invariant: a number that is not in this table cannot be set.

use super::PolicyError;

/// One number of a policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// `<section>.<key>`.
    pub key: &'static str,
    /// Used when the file does not set it.
    pub default: f64,
    /// Smallest allowed value.
    pub min: f64,
    /// Largest allowed value.
    pub max: f64,
    /// Whether only whole numbers make sense.
    pub whole: bool,
    /// Unit and meaning.
    pub meaning: &'static str,
}

const fn whole(
    key: &'static str,
    default: f64,
    min: f64,
    max: f64,
    meaning: &'static str,
) -> Limit {
    Limit { key, default, min, max, whole: true, meaning }
}

const fn real(key: &'static str, default: f64, min: f64, max: f64, meaning: &'static str) -> Limit {
    Limit { key, default, min, max, whole: false, meaning }
}

const MIB: f64 = 1_048_576.0;
/// Largest whole number that a 64-bit float holds exactly.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// All numbers. Sources of the training defaults: `reference/training.md` §4 and
/// `reference/openclaw-rl.md` §2–4.
#[rustfmt::skip]
pub const LIMITS: &[Limit] = &[
    // routes/*.toml
    whole("priority", 0.0, -1e6, 1e6, "among routes that match, the highest decides; ties by name"),
    whole("capture.request_bytes_max", 8.0 * MIB, 1024.0, 1024.0 * MIB, "bytes of a request body that are kept"),
    whole("capture.response_bytes_max", 8.0 * MIB, 1024.0, 1024.0 * MIB, "bytes of a response body that are kept"),
    whole("traffic.requests_per_minute_max", 0.0, 0.0, 1e9, "requests of one tenant per minute; 0 = unlimited"),
    whole("traffic.burst", 0.0, 0.0, 1e9, "requests of one tenant that may come at once; 0 = a minute's worth"),
    whole("traffic.concurrent_max", 0.0, 0.0, 1e6, "requests of one tenant at the same time; 0 = unlimited"),
    whole("round.samples_min", 8.0, 1.0, 4096.0, "samples that start a round"),
    whole("round.corrections_min", 2.0, 0.0, 4096.0, "samples among them that ask for another answer: hinted, rejected or demonstrated; praise alone says nothing new and wears a model out"),
    whole("round.samples_max", 64.0, 1.0, 4096.0, "samples that a round takes at most"),
    whole("round.age_ms_max", 60_000.0, 0.0, 6.048e8, "ms after which a round starts with fewer samples"),
    whole("round.idle_ms", 30_000.0, 0.0, 6.048e8, "ms without a turn on any route after which a round starts with fewer samples; 0 = never"),
    real("round.holdout_share", 0.2, 0.0, 0.9, "share of the samples kept for the gate"),
    whole("round.per_session_max", 4.0, 1.0, 4096.0, "samples of one session in a round"),
    whole("round.per_tenant_max", 64.0, 1.0, 4096.0, "samples of one tenant in a round"),
    whole("round.per_user_max", 16.0, 1.0, 4096.0, "samples of one person in a round, where the client names one"),
    real("round.tenant_share_max", 0.5, 0.01, 1.0, "share of a round that one of several tenants may have, but always samples_min"),
    real("round.sign_share_max", 0.8, 0.5, 1.0, "share of the rewards that may have one sign where both are there, but always samples_min"),
    whole("round.generations_behind_max", 8.0, 0.0, 1000.0, "generations that a reply may be behind the served one"),
    real("round.step_coefficient", 1.0, 0.0, 100.0, "weight of a step's own verdict against the outcome of its episode"),
    real("round.baseline_rate", 0.0, 0.0, 1.0, "rate of the running mean that is taken off rewards; 0 = none is"),
    whole("retention.days_max", 0.0, 0.0, 36_500.0, "days after which the content of a turn is deleted; 0 = kept"),
    whole("train.rank", 16.0, 1.0, 256.0, "LoRA rank"),
    real("train.alpha", 32.0, 1e-3, 4096.0, "LoRA alpha; updates are scaled by alpha / rank"),
    real("train.learning_rate", 1e-3, 1e-8, 0.1, "AdamW step size"),
    whole("train.updates", 8.0, 1.0, 1000.0, "optimiser updates per round"),
    whole("train.replies", 2.0, 0.0, 64.0, "fresh replies per prompt and update, besides the live one"),
    whole("train.replies_min", 8.0, 1.0, 256.0, "fresh replies per update in all, where there are any; few prompts get more than `replies` each"),
    real("train.temperature", 0.7, 0.01, 2.0, "sampling temperature of fresh replies"),
    whole("train.reply_tokens_max", 96.0, 1.0, 8192.0, "tokens of a fresh reply"),
    whole("train.prompt_tokens_max", 1024.0, 16.0, 131_072.0, "longer prompts are dropped and counted"),
    real("train.weight_opd", 1.0, 0.0, 100.0, "weight of the distillation loss"),
    real("train.weight_rl", 1.0, 0.0, 100.0, "weight of the reward loss"),
    real("train.weight_rl_hinted", 1.0, 0.0, 100.0, "factor of `weight_rl` where a hint teaches the same reply"),
    real("train.weight_sft", 1.0, 0.0, 100.0, "weight of the likelihood of demonstrations"),
    whole("train.top_k", 4.0, 1.0, 256.0, "tokens per position of the losses `top_k` and `top_k_tail`"),
    real("train.delta_max", 1.0, 0.01, 100.0, "cap of |log-ratio| per token of the loss `top_k`, nats"),
    real("train.kl_beta", 0.02, 0.0, 10.0, "weight of the k3 divergence to the base model"),
    real("train.clip_low", 0.2, 0.0, 1.0, "PPO clip below 1"),
    real("train.clip_high", 0.28, 0.0, 10.0, "PPO clip above 1"),
    real("train.advantage_max", 5.0, 0.01, 100.0, "cap of |log-ratio| as a token's advantage, nats"),
    real("train.grad_norm_max", 1.0, 1e-4, 1e4, "gradients are scaled down to this norm"),
    real("train.adam_beta1", 0.9, 0.0, 0.9999, "AdamW first moment"),
    real("train.adam_beta2", 0.98, 0.0, 0.99999, "AdamW second moment"),
    real("train.weight_decay", 0.0, 0.0, 1.0, "AdamW weight decay"),
    whole("train.seed", 17.0, 0.0, EXACT_MAX, "seed of initialisation, order and sampling"),
    whole("train.threads", 0.0, 0.0, 1024.0, "CPU threads; 0 = all"),
    whole("train.memory.activation_bytes_max", 704.0 * MIB, MIB, 1_048_576.0 * MIB, "bytes of activations kept for gradients; layers that need more are computed again"),
    whole("train.memory.turned_bytes_max", 1024.0 * MIB, 0.0, 1_048_576.0 * MIB, "bytes that a turned copy of the layers' weights may take; a larger one is made layer by layer each time"),
    whole("train.memory.logits_bytes_max", 104.0 * MIB, MIB, 1_048_576.0 * MIB, "bytes of logits that exist at a time; more rows are scored twice"),
    whole("train.memory.cache_bytes_max", 512.0 * MIB, MIB, 1_048_576.0 * MIB, "bytes of keys and values while replies are drawn; more replies take turns"),
    real("train.stop.grad_norm_max", 50.0, 1e-3, 1e9, "a larger norm before scaling stops the round"),
    real("train.stop.log_ratio_max", 20.0, 0.1, 1e3, "a larger mean |log-ratio| to the teacher, nats per token, stops the round"),
    real("train.stop.entropy_min", 0.02, 0.0, 20.0, "a smaller mean of -ln p per sampled token, nats, stops the round"),
    real("train.stop.reply_tokens_min_mean", 2.0, 0.0, 1e4, "shorter fresh replies on average stop the round"),
    real("train.budget.update_norm_max", 1.0, 1e-4, 1e6, "length of a round's whole change of the adapter, as a part of the adapter's length before it; a longer one is shortened"),
    real("train.budget.kl_max", 2.0, 1e-3, 1e3, "nats per token between the student's fresh replies and the base after which a round's training ends"),
    real("train.budget.wall_s_max", 3600.0, 1.0, 604_800.0, "seconds of updates after which a round's training ends"),
    real("train.budget.cpu_s_max", 14_400.0, 1.0, 1e8, "CPU seconds of updates after which a round's training ends"),
    whole("train.external.timeout_s", 3600.0, 1.0, 604_800.0, "seconds after which an external trainer is ended"),
    whole("train.external.log_bytes_max", 16.0 * MIB, 1024.0, 1024.0 * MIB, "bytes that an external trainer may print; more end it"),
    // judges/*.toml
    whole("judge.rules.repeat_calls_max", 2.0, 1.0, 100.0, "identical tool calls in a row with equal results; one more is negative"),
    whole("judge.rules.repeat_calls_bound", 10.0, 1.0, 1000.0, "identical tool calls in a row whatever their results; one more is negative"),
    whole("judge.rules.approval_chars_max", 400.0, 1.0, 4096.0, "bytes of a user's message in which praise counts"),
    whole("judge.llm.votes", 3.0, 1.0, 15.0, "votes asked for"),
    whole("judge.llm.votes_valid_min", 1.0, 1.0, 15.0, "readable votes needed; fewer mean verdict 0"),
    real("judge.llm.temperature", 0.6, 0.0, 2.0, "sampling temperature of votes"),
    whole("judge.llm.tokens_max", 256.0, 16.0, 8192.0, "tokens of one vote"),
    whole("judge.llm.timeout_ms", 30_000.0, 100.0, 600_000.0, "ms after which a vote is lost"),
    whole("judge.llm.retries_max", 2.0, 0.0, 10.0, "repeats of a vote that met a busy or failing endpoint"),
    whole("judge.llm.piece_chars_max", 2000.0, 200.0, 1e6, "characters of request, answer and next state each that are shown"),
    whole("judge.llm.history_chars_max", 1000.0, 0.0, 1e6, "characters of the history that are shown, newest first"),
    whole("judge.llm.tokens_per_hour_max", 1e6, 0.0, 1e12, "tokens per hour (UTC); 0 = unlimited"),
    whole("judge.llm.tokens_per_day_max", 1e7, 0.0, 1e12, "tokens in 24 hours; 0 = unlimited"),
    whole("judge.llm.waiting_max", 65_536.0, 1.0, 1e6, "turns of a route in the model's queue; more stay in the store until there is room"),
    whole("judge.llm.answers_kept_max", 4096.0, 0.0, 1e6, "answers kept for the same question; 0 = none"),
    whole("judge.hint.chars_min", 10.0, 1.0, 10_000.0, "shorter hints are dropped"),
    whole("judge.hint.chars_max", 400.0, 10.0, 10_000.0, "longer hints are dropped"),
    whole("judge.hint.count_max", 3.0, 1.0, 16.0, "hints kept per turn, shortest first"),
    real("judge.feedback.dead_band", 0.2, 0.0, 1.0, "explicit numbers nearer to 0 than this, of -1 to 1, mean verdict 0"),
    // gates/*.toml
    real("gate.margin", 0.02, -10.0, 10.0, "nats per token that the candidate must gain on held-out corrections: hinted, rejected and demonstrated answers"),
    real("gate.approved_loss_max", 0.25, 0.0, 100.0, "nats per token that held-out approved answers may become less likely"),
    real("gate.neutral_kl_max", 0.5, 0.0, 100.0, "nats per token between candidate and base on the neutral prompts"),
    real("gate.repetition_max", 0.35, 0.0, 1.0, "share of repeated 4-grams in the candidate's replies"),
    real("gate.ended_share_min", 0.5, 0.0, 1.0, "share of replies that end by themselves, or the incumbent's share if that is lower"),
    real("gate.refusal_share_max", 0.25, 0.0, 1.0, "share of replies that refuse, or the incumbent's share if that is higher"),
    real("gate.length_ratio_max", 3.0, 1.0, 1000.0, "most mean length of the candidate's replies as a multiple of the incumbent's, or of 16 tokens"),
    real("gate.length_ratio_min", 0.1, 0.0, 10.0, "mean length of the candidate's replies as a part of the incumbent's"),
    real("gate.phrase_share_max", 0.5, 0.0, 1.0, "share of replies that have one phrase of six tokens in common, or the incumbent's share if that is higher"),
    whole("gate.reply_tokens_max", 96.0, 1.0, 8192.0, "tokens of a reply"),
    whole("gate.replies", 2.0, 1.0, 64.0, "replies per prompt"),
    whole("gate.signal_replies_min", 8.0, 1.0, 256.0, "teacher replies in all that the gain on held-out hinted turns is measured on; few turns get more than `replies` each"),
];

/// Checks numbers of one file against the table and fills in defaults.
pub(super) struct Checker<'a> {
    pub file: &'a str,
}

impl Checker<'_> {
    /// The value, or the default. Error: out of range, not whole, or not a number.
    pub fn real(&self, key: &'static str, given: Option<f64>) -> Result<f64, PolicyError> {
        let Some(limit) = LIMITS.iter().find(|limit| limit.key == key) else {
            let allowed = "a key of the table of limits".to_owned();
            return Err(self.refuse(key, "is not in the table", allowed));
        };
        let value = given.unwrap_or(limit.default);
        let whole = !limit.whole || value.fract() == 0.0;
        // A NaN fails both comparisons.
        if value >= limit.min && value <= limit.max && whole {
            return Ok(value);
        }
        let kind = if limit.whole { "a whole number" } else { "a number" };
        let (min, max, default) = (limit.min, limit.max, limit.default);
        let allowed = format!("{kind} from {min} to {max} (default {default})");
        Err(self.refuse(key, &value.to_string(), allowed))
    }

    /// As [`Checker::real`] for a count.
    pub fn count(&self, key: &'static str, given: Option<f64>) -> Result<usize, PolicyError> {
        // In range by the table, so the cast is exact.
        Ok(self.real(key, given)? as usize)
    }

    /// As [`Checker::real`] for bytes, milliseconds and seeds.
    pub fn long(&self, key: &'static str, given: Option<f64>) -> Result<u64, PolicyError> {
        Ok(self.real(key, given)? as u64)
    }

    /// The error for a value that is not allowed.
    pub fn refuse(&self, key: &str, found: &str, allowed: String) -> PolicyError {
        let (file, key, found) = (self.file.to_owned(), key.to_owned(), found.to_owned());
        PolicyError::Invalid { file, line: None, key, found, allowed }
    }

    /// Checks that `low <= high` for two settings of the same file.
    pub fn ordered(&self, low: (&str, f64), high: (&str, f64)) -> Result<(), PolicyError> {
        if low.1 <= high.1 {
            return Ok(());
        }
        Err(self.refuse(low.0, &low.1.to_string(), format!("at most {} = {}", high.0, high.1)))
    }
}
