//! What a hinted teacher says about replies, in the form that the policy's loss needs.
//!
//! Every loss compares the student without the hint to the teacher with it, on the same tokens;
//! they differ in how much of the distributions they look at. Scoring is done here, once per reply;
//! the losses themselves stand in [`opd`](super::opd), [`topk`](super::topk),
//! [`tail_kl`](super::tail_kl) and [`full_kl`](super::full_kl).
//!
//! Invariant: one teaching per lesson, with one entry per token of the reply; anything missing is
//! an error, never filled.

use super::TrainError;
use super::full_kl;
use super::overlap::{self, Top};
use super::topk::Position;
use crate::compute::{Against, Compute, Look, Sequence, Sight};
use hone_model::lora::Lora;
use hone_shared::policy::{Loss, Support, TrainPolicy};

/// A reply to be taught about.
#[derive(Debug, Clone)]
pub struct Lesson {
    /// The student's prompt and the reply.
    pub plain: Sequence,
    /// The prompt with each hint, shortest hint first, and the same reply. At least one.
    pub hinted: Vec<Sequence>,
}

/// The teacher's view of one reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Teaching {
    /// ln π_T of each token.
    Token(Vec<f32>),
    /// The chosen tokens of each position.
    TopK(Vec<Position>),
    /// The teacher's likeliest tokens of each position, with its ln p.
    Tail(Vec<Top>),
    /// The teacher's hidden states.
    Full(Against),
}

impl Teaching {
    /// What the gradient pass must see of the reply.
    pub fn look(&self) -> Look {
        match self {
            Self::Token(_) => Look::default(),
            Self::TopK(positions) => {
                Look { at: positions.iter().map(|p| p.ids.clone()).collect(), ..Look::default() }
            }
            Self::Tail(positions) => {
                Look { at: positions.iter().map(ids).collect(), ..Look::default() }
            }
            Self::Full(against) => Look { against: Some(against.clone()), ..Look::default() },
        }
    }

    /// Positions that it says something about, and whether every number is finite.
    pub(super) fn usable(&self, tokens: usize) -> bool {
        let finite = |list: &[f32]| list.iter().all(|p| p.is_finite());
        match self {
            Self::Token(list) => list.len() == tokens && finite(list),
            Self::TopK(list) => {
                let whole =
                    |p: &Position| p.ids.len() == p.old.len() && p.old.len() == p.teacher.len();
                let fine = |p: &Position| whole(p) && finite(&p.old) && finite(&p.teacher);
                list.len() == tokens && list.iter().all(fine)
            }
            Self::Tail(list) => {
                list.len() == tokens && list.iter().flatten().all(|(_, p)| p.is_finite())
            }
            Self::Full(against) => tokens > 0 && finite(&against.state),
        }
    }
}

fn ids(top: &Top) -> Vec<u32> {
    top.iter().map(|(token, _)| *token).collect()
}

/// Asks the teacher about `lessons`. `old` is the adapter that drew the replies.
pub fn teach(
    compute: &mut dyn Compute,
    policy: &TrainPolicy,
    teacher: Option<&Lora>,
    old: Option<&Lora>,
    lessons: &[Lesson],
) -> Result<Vec<Teaching>, TrainError> {
    if lessons.is_empty() {
        return Ok(Vec::new());
    }
    if policy.loss == Loss::TopK {
        return top_k(compute, policy, teacher, old, lessons);
    }
    let direction = full_kl::direction(policy.loss);
    let top = if policy.loss == Loss::TopKTail { policy.top_k } else { 0 };
    let look = Look { top, state: direction.is_some(), ..Look::default() };
    let hinted: Vec<Sequence> = lessons.iter().filter_map(|l| l.hinted.first().cloned()).collect();
    let seen = ask(compute, teacher, &hinted, &vec![look; hinted.len()])?;
    let taught = seen.into_iter().map(|seen| match direction {
        Some(direction) => Teaching::Full(Against { state: seen.state, direction }),
        None if top > 0 => Teaching::Tail(seen.top),
        None => Teaching::Token(seen.own),
    });
    same_number("teachings", lessons.len(), taught.collect())
}

/// The student's likeliest tokens, every hint's view of them, the choice, and what it needs.
fn top_k(
    compute: &mut dyn Compute,
    policy: &TrainPolicy,
    teacher: Option<&Lora>,
    old: Option<&Lora>,
    lessons: &[Lesson],
) -> Result<Vec<Teaching>, TrainError> {
    let top = Look { top: policy.top_k, ..Look::default() };
    let plain: Vec<Sequence> = lessons.iter().map(|l| l.plain.clone()).collect();
    let own = ask(compute, old, &plain, &vec![top.clone(); plain.len()])?;
    let (mut hinted, mut looks) = (Vec::new(), Vec::new());
    for (lesson, own) in lessons.iter().zip(&own) {
        let at: Vec<Vec<u32>> = own.top.iter().map(ids).collect();
        for sequence in &lesson.hinted {
            hinted.push(sequence.clone());
            looks.push(Look { at: at.clone(), ..top.clone() });
        }
    }
    let seen = ask(compute, teacher, &hinted, &looks)?;
    let mut rest = seen.as_slice();
    let mut taught = Vec::with_capacity(lessons.len());
    for (lesson, own) in lessons.iter().zip(&own) {
        let Some((views, after)) = rest.split_at_checked(lesson.hinted.len()) else { break };
        rest = after;
        taught.push(choose(policy, own, views));
    }
    let mut taught = same_number("teachings", lessons.len(), taught)?;
    if policy.support == Support::Teacher {
        // The old policy has not been asked about the teacher's tokens yet.
        let at = |p: &Vec<Position>| p.iter().map(|p| p.ids.clone()).collect();
        let looks: Vec<Look> =
            taught.iter().map(|p| Look { at: at(p), ..Look::default() }).collect();
        for (positions, seen) in taught.iter_mut().zip(ask(compute, old, &plain, &looks)?) {
            for (position, old) in positions.iter_mut().zip(seen.at) {
                position.old = old;
            }
        }
    }
    Ok(taught.into_iter().map(Teaching::TopK).collect())
}

/// The positions of one reply, from the old policy's view and that of each hint.
pub(super) fn choose(policy: &TrainPolicy, own: &Sight, views: &[Sight]) -> Vec<Position> {
    let tops: Vec<&[Top]> = views.iter().map(|view| view.top.as_slice()).collect();
    let hints = overlap::select(&own.top, &tops, policy.hint_select);
    let position = |(i, hint): (usize, usize)| {
        let (mine, view) = (&own.top[i], &views[hint]);
        let ids = overlap::support(mine, &view.top[i], policy.support);
        let of = |top: &Top, token: &u32| top.iter().find(|(t, _)| t == token).map(|(_, p)| *p);
        if policy.support == Support::Teacher {
            let teacher = ids.iter().filter_map(|token| of(&view.top[i], token)).collect();
            return Position { ids, old: Vec::new(), teacher };
        }
        // The teacher was asked about all of the old policy's tokens, in their order.
        let place = |token: &u32| mine.iter().position(|(t, _)| t == token);
        let teacher = ids.iter().filter_map(|t| view.at.get(i)?.get(place(t)?).copied()).collect();
        let old = ids.iter().filter_map(|token| of(mine, token)).collect();
        Position { ids, old, teacher }
    };
    hints.into_iter().enumerate().map(position).collect()
}

fn ask(
    compute: &mut dyn Compute,
    adapter: Option<&Lora>,
    sequences: &[Sequence],
    looks: &[Look],
) -> Result<Vec<Sight>, TrainError> {
    same_number("views", sequences.len(), compute.look(adapter, sequences, looks)?)
}

fn same_number<T>(what: &'static str, want: usize, list: Vec<T>) -> Result<Vec<T>, TrainError> {
    match list.len() == want {
        true => Ok(list),
        false => Err(TrainError::Scores { what, want, got: list.len() }),
    }
}
