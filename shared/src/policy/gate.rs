//! `gates/<name>.toml`: what a candidate must show before it is served.
//!
//! Invariant: a gate always has neutral prompts, so that no candidate is promoted on its own signal
//! alone.

use serde::Deserialize;

use super::limits::Checker;
use super::{PolicyError, parse_toml};

/// Most neutral prompts.
const PROMPTS_MAX: usize = 200;

/// A checked gate.
#[derive(Debug, Clone, PartialEq)]
pub struct GatePolicy {
    /// Name: the file's name without `.toml`.
    pub name: String,
    /// Nats per token that the candidate must gain on held-out corrections.
    pub margin: f64,
    /// Nats per token that approved answers may become less likely.
    pub approved_loss_max: f64,
    /// Prompts that have nothing to do with what was trained.
    pub neutral_prompts: Vec<String>,
    /// Largest divergence from the base model on them, nats per token.
    pub neutral_kl_max: f64,
    /// Largest share of repeated 4-grams in the candidate's replies.
    pub repetition_max: f64,
    /// Least share of replies that end by themselves, or the incumbent's share if that is lower.
    pub ended_share_min: f64,
    /// Largest share of replies that refuse, or the incumbent's share if that is higher.
    pub refusal_share_max: f64,
    /// Most mean length of replies, as a multiple of the incumbent's, or of 16 tokens.
    pub length_ratio_max: f64,
    /// Least mean length of replies, as a part of the incumbent's.
    pub length_ratio_min: f64,
    /// Largest share of replies with one phrase in common, or the incumbent's if that is higher.
    pub phrase_share_max: f64,
    /// Tokens of a reply.
    pub reply_tokens_max: usize,
    /// Replies per prompt.
    pub replies: usize,
    /// Teacher replies in all that the gain on held-out hinted turns is measured on.
    pub signal_replies_min: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGate {
    margin: Option<f64>,
    approved_loss_max: Option<f64>,
    neutral_prompts: Vec<String>,
    neutral_kl_max: Option<f64>,
    repetition_max: Option<f64>,
    ended_share_min: Option<f64>,
    refusal_share_max: Option<f64>,
    length_ratio_max: Option<f64>,
    length_ratio_min: Option<f64>,
    phrase_share_max: Option<f64>,
    reply_tokens_max: Option<f64>,
    replies: Option<f64>,
    signal_replies_min: Option<f64>,
}

impl GatePolicy {
    pub(super) fn parse(file: &str, name: &str, text: &str) -> Result<Self, PolicyError> {
        let raw: RawGate = parse_toml(file, text)?;
        let check = Checker { file };
        let prompts = raw.neutral_prompts.len();
        let blank = raw.neutral_prompts.iter().any(|prompt| prompt.trim().is_empty());
        if prompts == 0 || prompts > PROMPTS_MAX || blank {
            let found =
                if blank { "has a blank one".to_owned() } else { format!("a list of {prompts}") };
            let allowed = format!("1 to {PROMPTS_MAX} prompts, none of them blank");
            return Err(check.refuse("neutral_prompts", &found, allowed));
        }
        Ok(Self {
            name: name.to_owned(),
            margin: check.real("gate.margin", raw.margin)?,
            approved_loss_max: check.real("gate.approved_loss_max", raw.approved_loss_max)?,
            neutral_prompts: raw.neutral_prompts,
            neutral_kl_max: check.real("gate.neutral_kl_max", raw.neutral_kl_max)?,
            repetition_max: check.real("gate.repetition_max", raw.repetition_max)?,
            ended_share_min: check.real("gate.ended_share_min", raw.ended_share_min)?,
            refusal_share_max: check.real("gate.refusal_share_max", raw.refusal_share_max)?,
            length_ratio_max: check.real("gate.length_ratio_max", raw.length_ratio_max)?,
            length_ratio_min: check.real("gate.length_ratio_min", raw.length_ratio_min)?,
            phrase_share_max: check.real("gate.phrase_share_max", raw.phrase_share_max)?,
            reply_tokens_max: check.count("gate.reply_tokens_max", raw.reply_tokens_max)?,
            replies: check.count("gate.replies", raw.replies)?,
            signal_replies_min: check.count("gate.signal_replies_min", raw.signal_replies_min)?,
        })
    }
}
