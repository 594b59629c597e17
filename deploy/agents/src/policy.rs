//! Who acts: the model, or, for comparison, chance or someone who knows the answer.
//!
//! All three ask the engine through the proxy, so that their turns are recorded alike. Chance and
//! the oracle leave the engine one single answer: the request's schema allows no other.
//!
//! Invariant: what is reported as the model's score was chosen by the model.

use clap::ValueEnum;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::environment::Environment;
use crate::form::{Action, Field, Form, Values};

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Policy {
    /// The model.
    #[default]
    Model,
    /// Chance: each field drawn uniformly from what the form allows or guesses.
    Random,
    /// The environment's own right answer.
    Oracle,
}

impl Policy {
    /// The answer that the engine must give; `None` when it is the model's to choose.
    pub fn choose(
        self,
        environment: &dyn Environment,
        form: &Form,
        rng: &mut ChaCha8Rng,
    ) -> Option<Action> {
        match self {
            Self::Model => None,
            Self::Random => Some(random(form, rng)),
            Self::Oracle => Some(environment.oracle()),
        }
    }
}

fn random(form: &Form, rng: &mut ChaCha8Rng) -> Action {
    let plain = usize::from(!form.fields.is_empty());
    let at = rng.random_range(0..(form.tools.len() + plain).max(1));
    let (tool, fields) = match form.tools.get(at) {
        Some(tool) => (Some(tool.name.to_owned()), &tool.fields),
        None => (None, &form.fields),
    };
    let drawn = fields.iter().map(|field| (field.name.to_owned(), draw(field, rng)));
    Action { tool, fields: drawn.collect() }
}

fn draw(field: &Field, rng: &mut ChaCha8Rng) -> String {
    let from = match &field.values {
        Values::OneOf(choices) => choices,
        Values::Text { guesses, .. } => guesses,
    };
    from.choose(rng).cloned().unwrap_or_default()
}
