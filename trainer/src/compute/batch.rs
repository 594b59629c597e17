//! Packs sequences of different lengths into rows without padding.
//!
//! A batch is a list of groups; a group is one prompt followed by the replies to it. Replies see
//! the prompt's keys and values, so a prompt is computed once however many replies it has, with
//! exact gradients. The row of a token predicts the next one: a reply of `n` tokens needs `n − 1`
//! rows of its own, and its first token is predicted by the prompt's last row.
//!
//! Invariant: rows of a group are contiguous, the prompt's first.

use std::collections::HashMap;
use std::ops::Range;

use super::Sequence;

/// Consecutive tokens of one sequence, with what they may look at besides themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// Rows of the batch.
    pub(super) rows: Range<usize>,
    /// Rows of the prompt that all of them see; empty for the prompt itself.
    pub(super) prefix: Range<usize>,
}

/// A prompt and its replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) segments: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// A row that predicts a token of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) row: usize,
    pub(super) token: u32,
}

/// The targets of one sequence: its response, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// Position of the sequence in the caller's list.
    pub(super) sequence: usize,
    pub(super) targets: Range<usize>,
}

/// Rows that are computed together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    pub(super) groups: Vec<Group>,
    pub(super) targets: Vec<Target>,
    pub(super) spans: Vec<Span>,
}

impl Batch {
    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Starts a group with its prompt.
    pub(super) fn open(&mut self, prompt: &[u32]) {
        let (rows, segments) = (self.rows(), self.segments.len());
        self.push(prompt, rows..rows, 0);
        self.groups.push(Group { segments: segments..segments + 1, rows: rows..self.rows() });
    }

    /// Adds a reply to the open group.
    fn reply(&mut self, sequence: usize, response: &[u32]) {
        let Some(group) = self.groups.last().cloned() else { return };
        let prompt = self.segments[group.segments.start].rows.clone();
        let first = self.rows();
        let inputs = &response[..response.len().saturating_sub(1)];
        if !inputs.is_empty() {
            self.push(inputs, prompt.clone(), prompt.len());
        }
        let start = self.targets.len();
        self.targets.extend(response.iter().enumerate().map(|(i, token)| {
            let row = if i == 0 { prompt.end - 1 } else { first + i - 1 };
            Target { row, token: *token }
        }));
        self.spans.push(Span { sequence, targets: start..self.targets.len() });
        let (rows, segments) = (self.rows(), self.segments.len());
        if let Some(group) = self.groups.last_mut() {
            (group.rows.end, group.segments.end) = (rows, segments);
        }
    }

    fn push(&mut self, tokens: &[u32], prefix: Range<usize>, position: usize) {
        let start = self.rows();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        self.segments.push(Segment { rows: start..self.rows(), prefix });
    }
}

/// Cuts sequences into batches of at most `rows_max` rows (one sequence that is longer gets a
/// batch of its own). Sequences without a response are left out. With `share`, equal prompts are
/// one group; a group that does not fit is continued in the next batch with its prompt again.
pub(super) fn plan(sequences: &[Sequence], rows_max: usize, share: bool) -> Vec<Batch> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: HashMap<&[u32], usize> = HashMap::new();
    for (index, sequence) in sequences.iter().enumerate() {
        if sequence.response.is_empty() {
            continue;
        }
        let place = match known.get(sequence.prompt.as_slice()) {
            Some(place) if share => *place,
            _ => {
                known.insert(&sequence.prompt, groups.len());
                groups.push(Vec::new());
                groups.len() - 1
            }
        };
        groups[place].push(index);
    }
    let (mut batches, mut batch) = (Vec::new(), Batch::default());
    for members in groups {
        let mut open = false;
        for index in members {
            let Sequence { prompt, response } = &sequences[index];
            let new = response.len() - 1 + if open { 0 } else { prompt.len() };
            if batch.rows() > 0 && batch.rows() + new > rows_max {
                batches.push(std::mem::take(&mut batch));
                open = false;
            }
            if !open {
                batch.open(prompt);
                open = true;
            }
            batch.reply(index, response);
        }
    }
    if batch.rows() > 0 {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(prompt: &[u32], response: &[u32]) -> Sequence {
        Sequence { prompt: prompt.to_vec(), response: response.to_vec() }
    }

    #[test]
    fn equal_prompts_become_one_group_and_share_its_last_row() {
        let sequences =
            [sequence(&[1, 2], &[3, 4]), sequence(&[9], &[8]), sequence(&[1, 2], &[5, 6, 7])];
        let batches = plan(&sequences, 100, true);
        assert_eq!(batches.len(), 1);
        let batch = &batches[0];
        assert_eq!(batch.tokens, [1, 2, 3, 5, 6, 9]);
        assert_eq!(batch.positions, [0, 1, 2, 2, 3, 0]);
        assert_eq!(batch.groups.len(), 2);
        assert_eq!(batch.groups[0].rows, 0..5);
        let rows: Vec<usize> = batch.targets.iter().map(|t| t.row).collect();
        assert_eq!(rows, [1, 2, 1, 3, 4, 5]);
        assert_eq!(batch.spans[1].sequence, 2);
    }

    #[test]
    fn a_group_over_the_budget_continues_with_its_prompt_again() {
        let sequences: Vec<_> = (0..4).map(|i| sequence(&[1, 2, 3], &[i, i, i])).collect();
        let batches = plan(&sequences, 7, true);
        assert_eq!(batches.iter().map(Batch::rows).collect::<Vec<_>>(), [7, 7]);
        let spans: Vec<usize> =
            batches.iter().flat_map(|b| b.spans.iter().map(|s| s.sequence)).collect();
        assert_eq!(spans, [0, 1, 2, 3]);
    }

    #[test]
    fn a_sequence_over_the_budget_is_alone_and_an_empty_response_is_left_out() {
        let sequences = [sequence(&[1; 20], &[2]), sequence(&[1], &[]), sequence(&[3], &[4])];
        let batches = plan(&sequences, 7, true);
        assert_eq!(batches.iter().map(Batch::rows).collect::<Vec<_>>(), [20, 1]);
    }
}
