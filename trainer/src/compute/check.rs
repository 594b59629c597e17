//! What every [`Compute`](super::Compute) checks: what it is asked before any work is done, and what
//! it found before anybody learns from it.
//!
//! Invariant: what passes cannot be out of the bounds of a table or a cache, and is finite.

use hone_model::config::ModelConfig;
use hone_model::lora::Lora;

use super::look::{Look, Sight, Slopes};
use super::{ComputeError, Gradient, Sequence};

/// Prompts and responses.
pub(super) fn pairs(sequences: &[Sequence]) -> impl Iterator<Item = (&[u32], &[u32])> {
    sequences.iter().map(|s| (s.prompt.as_slice(), s.response.as_slice()))
}

/// Tokens that go through the layers: the last one predicts nothing that is asked for.
pub(super) fn fed(sequence: &Sequence) -> usize {
    (sequence.prompt.len() + sequence.response.len()).saturating_sub(1)
}

/// Checks tokens and lengths; returns the longest sequence's tokens.
pub(super) fn sequences<'a>(
    config: &ModelConfig,
    sequences: impl Iterator<Item = (&'a [u32], &'a [u32])>,
) -> Result<usize, ComputeError> {
    let (vocab, max) = (config.vocab, config.max_positions);
    let mut longest = 0;
    for (index, (prompt, response)) in sequences.enumerate() {
        if prompt.is_empty() {
            return Err(ComputeError::EmptyPrompt(index));
        }
        let tokens = prompt.len() + response.len();
        if tokens > max {
            return Err(ComputeError::TooLong { index, tokens, max });
        }
        let foreign = prompt.iter().chain(response).find(|t| **t as usize >= vocab);
        if let Some(&token) = foreign {
            return Err(ComputeError::UnknownToken { index, token, vocab });
        }
        longest = longest.max(tokens);
    }
    Ok(longest)
}

/// Checks that what is asked fits the sequences, the model and the vocabulary.
pub(super) fn looks(
    config: &ModelConfig,
    sequences: &[Sequence],
    looks: &[Look],
) -> Result<(), ComputeError> {
    if !looks.is_empty() && looks.len() != sequences.len() {
        return Err(ComputeError::LookShape(looks.len()));
    }
    let (vocab, width) = (config.vocab, config.hidden);
    for (index, (sequence, look)) in sequences.iter().zip(looks).enumerate() {
        let tokens = sequence.response.len();
        let states = look.against.as_ref().map(|against| against.state.len());
        let fits = (look.at.is_empty() || look.at.len() == tokens)
            && states.is_none_or(|found| found == tokens * width);
        if !fits {
            return Err(ComputeError::LookShape(index));
        }
        if let Some(&token) = look.at.iter().flatten().find(|t| **t as usize >= vocab) {
            return Err(ComputeError::UnknownToken { index, token, vocab });
        }
    }
    Ok(())
}

/// Checks that an adapter is one of the model's.
pub(super) fn adapter(config: &ModelConfig, lora: &Lora) -> Result<(), ComputeError> {
    match lora.rank > 0 && lora.fits(config) {
        true => Ok(()),
        false => Err(ComputeError::AdapterShape),
    }
}

/// Checks that a loss gave as many numbers as it was shown.
pub(super) fn slopes(index: usize, given: &Slopes, seen: &Sight) -> Result<(), ComputeError> {
    match given.fits(seen) {
        true => Ok(()),
        false => {
            let (wanted, found) = (seen.own.len(), given.own.len());
            Err(ComputeError::LossLength { index, wanted, found })
        }
    }
}

/// What was seen, if it is finite.
pub(super) fn sights(found: Vec<Sight>) -> Result<Vec<Sight>, ComputeError> {
    let mut numbers = found.iter().flat_map(|sight| sight.own.iter().chain(&sight.kl));
    match numbers.any(|value| !value.is_finite()) {
        true => Err(ComputeError::NotFinite("a log-probability")),
        false => Ok(found),
    }
}

/// A gradient, if it is finite.
pub(super) fn gradient(found: Gradient) -> Result<Gradient, ComputeError> {
    let mut logprobs = found.logprobs.iter().flatten();
    match found.lora.is_finite() && logprobs.all(|value| value.is_finite()) {
        true => Ok(found),
        false => Err(ComputeError::NotFinite("a gradient")),
    }
}
