//! Which of several hints teaches, and over which tokens: by the overlap of likeliest tokens.
//!
//! With `S^q_i` the old policy's and `S^p_{i,h}` the teacher's `k` likeliest tokens at position `i`
//! under hint `h`, and `O[h,i] = |S^q_i ∩ S^p_{i,h}|`: sequence-optimal is `argmax_h Σ_i O[h,i]` for
//! the whole reply, token-optimal `argmax_h O[h,i]` for each position, shortest the first hint.
//! Source: OpenClaw-RL v2 (arXiv 2603.10165v2) §hint selection, tables 4 and 5.
//!
//! Invariant: ties go to the earlier hint, and hints are kept shortest first.

use hone_shared::policy::{HintSelect, Support};

/// Tokens with their ln p, likeliest first.
pub type Top = Vec<(u32, f32)>;

/// How many tokens two lists have in common.
pub fn overlap(a: &[(u32, f32)], b: &[(u32, f32)]) -> usize {
    a.iter().filter(|(token, _)| b.iter().any(|(other, _)| other == token)).count()
}

/// The hint of each position. `teachers` holds one list of positions per hint, at least one.
pub fn select(student: &[Top], teachers: &[&[Top]], how: HintSelect) -> Vec<usize> {
    let count = |hint: usize, i: usize| match teachers[hint].get(i) {
        Some(top) => overlap(&student[i], top),
        None => 0,
    };
    let best = |score: &dyn Fn(usize) -> usize| {
        // The last of equal maxima would win, so the order is turned round.
        (0..teachers.len()).rev().max_by_key(|hint| score(*hint)).unwrap_or(0)
    };
    match how {
        HintSelect::Shortest => vec![0; student.len()],
        HintSelect::TokenOptimal => {
            (0..student.len()).map(|i| best(&|hint| count(hint, i))).collect()
        }
        HintSelect::SequenceOptimal => {
            let whole = best(&|hint| (0..student.len()).map(|i| count(hint, i)).sum());
            vec![whole; student.len()]
        }
    }
}

/// The tokens of one position.
pub fn support(student: &[(u32, f32)], teacher: &[(u32, f32)], which: Support) -> Vec<u32> {
    let ids = |top: &[(u32, f32)]| top.iter().map(|(token, _)| *token).collect::<Vec<_>>();
    match which {
        Support::Student => ids(student),
        Support::Teacher => ids(teacher),
        Support::Overlap => {
            let others = ids(teacher);
            ids(student).into_iter().filter(|token| others.contains(token)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(ids: &[u32]) -> Top {
        ids.iter().map(|id| (*id, -1.0)).collect()
    }

    #[test]
    fn each_selection_takes_the_hint_that_it_promises() {
        let student = [top(&[1, 2]), top(&[3, 4]), top(&[5, 6])];
        // Overlaps by position: first hint 0 1 1, second 2 0 0, third 1 1 1.
        let first = [top(&[8, 9]), top(&[3, 9]), top(&[5, 9])];
        let second = [top(&[2, 1]), top(&[8, 9]), top(&[8, 9])];
        let third = [top(&[1, 9]), top(&[4, 9]), top(&[6, 9])];
        let teachers: [&[Top]; 3] = [&first, &second, &third];
        let pick = |how| select(&student, &teachers, how);
        assert_eq!(pick(HintSelect::SequenceOptimal), [2, 2, 2]);
        assert_eq!(pick(HintSelect::TokenOptimal), [1, 0, 0]);
        assert_eq!(pick(HintSelect::Shortest), [0, 0, 0]);
    }

    #[test]
    fn ties_go_to_the_shorter_hint() {
        let (student, same) = ([top(&[1])], [top(&[1])]);
        let teachers: [&[Top]; 2] = [&same, &same];
        assert_eq!(select(&student, &teachers, HintSelect::SequenceOptimal), [0]);
        assert_eq!(select(&student, &teachers, HintSelect::TokenOptimal), [0]);
    }

    #[test]
    fn supports_are_the_students_the_teachers_or_what_both_have() {
        let (student, teacher) = (top(&[1, 2, 3]), top(&[3, 4, 1]));
        assert_eq!(support(&student, &teacher, Support::Student), [1, 2, 3]);
        assert_eq!(support(&student, &teacher, Support::Teacher), [3, 4, 1]);
        assert_eq!(support(&student, &teacher, Support::Overlap), [1, 3]);
        assert!(support(&student, &top(&[9]), Support::Overlap).is_empty());
    }
}
