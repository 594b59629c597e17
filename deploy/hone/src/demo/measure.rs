//! The figures of one generation: ask fixed questions once more, and count.

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::client::{Client, Reply, user};
use super::user as scripted;

/// Questions asked at the same time: enough to keep the engine busy.
const CONCURRENCY: usize = 4;

/// What was measured over some replies. Field names are the demo's `--json` contract.
#[derive(Debug, Clone, Serialize)]
pub struct Measure {
    pub replies: usize,
    pub tokens_mean: f64,
    /// Share that ended by itself before the cap.
    pub ended_share: f64,
    /// Share that keeps the user's rule.
    pub rule_share: f64,
    /// Share with a list or bold text: shown in the table only.
    #[serde(skip)]
    pub list_share: f64,
}

impl Measure {
    /// Counts over the replies; zero replies give zeros.
    pub fn of(replies: &[Reply]) -> Measure {
        let share = |count: usize| count as f64 / replies.len().max(1) as f64;
        Measure {
            replies: replies.len(),
            tokens_mean: replies.iter().map(|r| r.tokens as f64).sum::<f64>()
                / replies.len().max(1) as f64,
            ended_share: share(replies.iter().filter(|r| r.ended).count()),
            rule_share: share(replies.iter().filter(|r| scripted::is_content(r)).count()),
            list_share: share(replies.iter().filter(|r| scripted::has_list(&r.text)).count()),
        }
    }
}

/// Asks every question `times` times, each in a conversation of its own, and returns the replies in
/// order.
pub async fn ask_all(
    client: &Client,
    questions: &[&str],
    times: u64,
) -> anyhow::Result<Vec<Reply>> {
    let asks = (0..times).flat_map(|seed| questions.iter().map(move |question| (seed, *question)));
    futures::stream::iter(asks)
        .map(|(seed, question)| async move { client.chat(&[user(question)], seed).await })
        .buffered(CONCURRENCY)
        .try_collect()
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_means_are_over_all_replies() {
        let reply = |text: &str, tokens, ended| Reply {
            text: text.into(),
            tokens,
            ended,
            generation: "base".into(),
        };
        let measure = Measure::of(&[
            reply("Short.", 10, true),
            reply("- a list", 20, true),
            reply("long", 96, false),
            reply("Also short.", 14, true),
        ]);
        assert_eq!(measure.replies, 4);
        assert_eq!(measure.tokens_mean, 35.0);
        assert_eq!(measure.ended_share, 0.75);
        assert_eq!(measure.rule_share, 0.5);
        assert_eq!(measure.list_share, 0.25);
        assert_eq!(Measure::of(&[]).tokens_mean, 0.0);
    }
}
