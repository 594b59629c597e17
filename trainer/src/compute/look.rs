//! What can be asked about a reply besides the probabilities of its own tokens.
//!
//! Distillation over several tokens needs the likeliest tokens of a row, the probabilities of given
//! tokens, or the distance of two whole distributions. All three are answered row by row from the
//! logits while they exist, so that `(batch, tokens, vocabulary)` never does.
//!
//! Invariant: lists have one entry per token of the response, or none at all where nothing was
//! asked.

/// What to report about one sequence. The default asks for nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    /// How many of the likeliest tokens of each row.
    pub top: usize,
    /// Tokens whose ln p is wanted: one list per response token, or nothing.
    pub at: Vec<Vec<u32>>,
    /// Whether the rows' last hidden states are wanted.
    pub state: bool,
    /// The distribution to measure the distance from.
    pub against: Option<Against>,
}

/// Another model's view of the same rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Against {
    /// Its hidden states, `(tokens, hidden)`, as [`Sight::state`] has them. The head is frozen, so
    /// that they determine its distributions.
    pub state: Vec<f32>,
    /// Which of the two divergences.
    pub direction: Direction,
}

/// Which way a divergence is taken between the model `θ` and the other one `T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `KL(T ‖ θ)`: cover everything that the other would say.
    Forward,
    /// `KL(θ ‖ T)`: say nothing that the other would not.
    Reverse,
}

/// What was seen of one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sight {
    /// ln p of each response token.
    pub own: Vec<f32>,
    /// The likeliest tokens of each row with their ln p, likeliest first; equal ones by token.
    pub top: Vec<Vec<(u32, f32)>>,
    /// ln p of the tokens that were asked for.
    pub at: Vec<Vec<f32>>,
    /// Hidden states before the final norm, `(tokens, hidden)`.
    pub state: Vec<f32>,
    /// Divergence of each row in nats.
    pub kl: Vec<f32>,
}

/// dL by what was seen; an empty list is all zeros.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Slopes {
    /// By ln p of each response token.
    pub own: Vec<f32>,
    /// By ln p of the tokens that were asked for.
    pub at: Vec<Vec<f32>>,
    /// By the divergence of each row.
    pub kl: Vec<f32>,
}

impl From<Vec<f32>> for Slopes {
    fn from(own: Vec<f32>) -> Self {
        Self { own, ..Self::default() }
    }
}

impl Slopes {
    /// Whether every list is empty or fits what was seen.
    pub(super) fn fits(&self, seen: &Sight) -> bool {
        let lengths = |a: usize, b: usize| a == 0 || a == b;
        lengths(self.own.len(), seen.own.len())
            && lengths(self.at.len(), seen.at.len())
            && lengths(self.kl.len(), seen.kl.len())
            && self.at.iter().zip(&seen.at).all(|(a, b)| a.len() == b.len())
    }
}
