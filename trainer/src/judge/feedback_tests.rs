//! What was said about turns becomes verdicts, in a real store.

use super::super::{Judge, PassReport};
use super::*;
use crate::testing::lab::{Lab, message};
use crate::testing::policies;
use hone_shared::feedback::{ANY_TENANT, Feedback, FeedbackId, Part, Shape, Target};
use hone_shared::store::{Batch, IngestFeedback, RoundRow, RoundState, Split};
use hone_shared::turn::{Generation, TurnId};
use serde_json::json;

const ANSWER: &str = "Rain is water that falls from clouds.";

fn say(lab: &mut Lab, turn: TurnId, parts: &[Part], weight: f64) -> FeedbackId {
    let feedback = Feedback {
        id: FeedbackId::now(),
        tenant: ANY_TENANT.into(),
        shape: Shape::Native,
        target: Target::Turn(turn),
        parts: parts.to_vec(),
        weight,
        made_ms: 1,
    };
    let id = feedback.id;
    let feedback = vec![IngestFeedback::prepare(&[3; 32], feedback, &[])];
    let inserted = lab.store.commit_batch(&Batch { feedback, ..Batch::default() }).unwrap();
    assert_eq!((inserted.feedback.stored, inserted.feedback.waiting), (1, 0));
    id
}

async fn pass(lab: &mut Lab) -> PassReport {
    let mut judge = Judge::new("http://127.0.0.1:9", Clock::manual(1_000)).unwrap();
    judge.pass(&mut lab.store, &policies(&[])).await.unwrap()
}

fn verdict_of(lab: &Lab, turn: TurnId) -> VerdictRow {
    lab.store.verdict(turn).unwrap().unwrap()
}

fn used(lab: &Lab, turn: TurnId, id: FeedbackId) -> Option<bool> {
    let rows = lab.store.feedback_given(turn).unwrap();
    rows.iter().find(|row| row.id == id).unwrap().used
}

fn comment(text: &str) -> Part {
    Part::Comment(text.to_owned())
}

/// The last turn of a conversation: nothing follows it.
fn last(lab: &mut Lab) -> TurnId {
    let turn = lab.add("s", "What is rain?", ANSWER, "And snow?");
    lab.store.children(turn).unwrap()[0].turn_id
}

#[tokio::test]
async fn a_last_turn_is_judged_by_feedback_alone_and_is_trainable() {
    let mut lab = Lab::new();
    let turn = last(&mut lab);
    say(&mut lab, turn, &[Part::Thumb(-1.0), comment("Please answer the question itself.")], 1.0);
    pass(&mut lab).await;
    let row = verdict_of(&lab, turn);
    assert_eq!((row.verdict, row.source.as_str(), row.child), (-1, "feedback", None));
    assert_eq!(row.hints, ["Please answer the question itself."]);
    assert!(!row.reason.contains("question"), "{}", row.reason);
    let trainable = lab.store.trainable("chat", 9).unwrap();
    assert!(trainable.iter().any(|(stored, _)| stored.turn_id == turn));
}

#[tokio::test]
async fn a_number_in_the_dead_band_or_of_little_weight_is_neutral() {
    for (value, weight, wanted) in
        [(0.1, 1.0, 0), (0.2, 1.0, 1), (-0.2, 1.0, -1), (1.0, 0.1, 0), (-1.0, 0.5, -1)]
    {
        let mut lab = Lab::new();
        let turn = last(&mut lab);
        say(&mut lab, turn, &[Part::Score(value)], weight);
        pass(&mut lab).await;
        assert_eq!(verdict_of(&lab, turn).verdict, wanted, "{value} of weight {weight}");
    }
}

#[tokio::test]
async fn feedback_wins_over_the_rules_and_keeps_the_users_correction_as_a_hint() {
    let mut lab = Lab::new();
    let first = lab.add("s", "What is rain?", ANSWER, "Too long. Use one sentence.");
    say(&mut lab, first, &[Part::Thumb(-1.0)], 1.0);
    let liked = lab.add("t", "What is hail?", "Hail is ice.", "Too long. Use one sentence.");
    say(&mut lab, liked, &[Part::Thumb(1.0)], 1.0);
    pass(&mut lab).await;
    let row = verdict_of(&lab, first);
    assert_eq!((row.verdict, row.source.as_str()), (-1, "feedback"));
    assert_eq!(row.hints, ["Too long. Use one sentence."]);
    let row = verdict_of(&lab, liked);
    assert_eq!((row.verdict, row.source.as_str(), row.hints.len()), (1, "feedback", 0));
}

#[tokio::test]
async fn feedback_that_comes_later_replaces_a_verdict_and_the_newest_counts() {
    let mut lab = Lab::new();
    let turn = lab.add("s", "What is rain?", ANSWER, "Thanks, perfect.");
    pass(&mut lab).await;
    assert_eq!(verdict_of(&lab, turn).source, "rule:approval");
    say(&mut lab, turn, &[Part::Thumb(-1.0)], 1.0);
    assert_eq!(pass(&mut lab).await.judged, 1);
    let row = verdict_of(&lab, turn);
    assert_eq!((row.verdict, row.source.as_str()), (-1, "feedback"));
    say(&mut lab, turn, &[Part::Thumb(1.0)], 1.0);
    pass(&mut lab).await;
    assert_eq!(verdict_of(&lab, turn).verdict, 1);
    assert_eq!(pass(&mut lab).await.judged, 0, "nothing new was said");
}

#[tokio::test]
async fn what_weighs_nothing_judges_nothing() {
    let mut lab = Lab::new();
    let turn = last(&mut lab);
    let id = say(&mut lab, turn, &[Part::Thumb(-1.0), comment("Never say this again.")], 0.0);
    pass(&mut lab).await;
    assert_eq!(lab.store.verdict(turn).unwrap(), None);
    assert!(lab.store.feedback_of_turn(turn).unwrap().is_empty());
    assert!(lab.store.has_feedback(id).unwrap(), "it is kept");
}

#[tokio::test]
async fn words_alone_change_the_hints_and_leave_the_verdict_unless_the_rules_read_one() {
    let mut lab = Lab::new();
    let ruled = lab.add("s", "What is rain?", ANSWER, "Too long. Use one sentence.");
    say(&mut lab, ruled, &[comment("Mention clouds only once, please.")], 1.0);
    pass(&mut lab).await;
    pass(&mut lab).await;
    let row = verdict_of(&lab, ruled);
    assert_eq!((row.verdict, row.source.as_str()), (-1, "rule:correction"));
    assert_eq!(row.hints.len(), 2, "{:?}", row.hints);
    let last = last(&mut lab);
    say(&mut lab, last, &[comment("Much shorter, please: one line.")], 1.0);
    pass(&mut lab).await;
    let row = verdict_of(&lab, last);
    assert_eq!((row.verdict, row.source.as_str(), row.hints.len()), (-1, "feedback", 1));
}

#[tokio::test]
async fn a_comment_goes_through_the_checks_of_all_hints() {
    let mut lab = Lab::new();
    let turn = last(&mut lab);
    let echo = "As you wish.";
    say(&mut lab, turn, &[Part::Thumb(-1.0), comment(echo)], 1.0);
    say(&mut lab, turn, &[comment("Bad.")], 1.0);
    pass(&mut lab).await;
    assert!(verdict_of(&lab, turn).hints.is_empty(), "an echo and a grunt are no hints");
}

#[tokio::test]
async fn a_demonstration_alone_makes_a_turn_trainable() {
    let mut lab = Lab::new();
    let turn = last(&mut lab);
    say(&mut lab, turn, &[Part::Demonstration(message("assistant", "Snow is ice."))], 1.0);
    pass(&mut lab).await;
    let row = verdict_of(&lab, turn);
    assert_eq!((row.verdict, row.source.as_str()), (0, "feedback"));
    let trainable = lab.store.trainable("chat", 9).unwrap();
    assert!(trainable.iter().any(|(stored, _)| stored.turn_id == turn));
}

#[tokio::test]
async fn a_demonstration_without_a_credential_never_becomes_a_sample() {
    let mut lab = Lab::new();
    let turn = last(&mut lab);
    let id = say(&mut lab, turn, &[Part::Demonstration(message("assistant", "Buy at X."))], 0.0);
    pass(&mut lab).await;
    assert_eq!(lab.store.verdict(turn).unwrap(), None);
    let trainable = lab.store.trainable("chat", 9).unwrap();
    assert!(trainable.iter().all(|(stored, _)| stored.turn_id != turn));
    assert!(lab.store.feedback_of_turn(turn).unwrap().is_empty(), "nor beside a later verdict");
    assert!(lab.store.has_feedback(id).unwrap(), "it is kept");
    // A weighty thumb makes the turn trainable, and still without the demonstration.
    say(&mut lab, turn, &[Part::Thumb(1.0)], 1.0);
    pass(&mut lab).await;
    assert_eq!(verdict_of(&lab, turn).verdict, 1);
    let kinds: Vec<_> = lab.store.feedback_of_turn(turn).unwrap().iter().map(|r| r.kind).collect();
    assert_eq!(kinds, [FeedbackKind::Thumb]);
}

/// What ends an episode is often a closing remark; the outcome is shared among the steps that have
/// verdicts, and whoever wants the last one judged sends a score.
#[tokio::test]
async fn an_outcome_alone_judges_no_turn() {
    let mut lab = Lab::new();
    let turn = last(&mut lab);
    say(&mut lab, turn, &[Part::Outcome(1.0)], 1.0);
    pass(&mut lab).await;
    assert_eq!(lab.store.verdict(turn).unwrap(), None);
    say(&mut lab, turn, &[Part::Score(1.0)], 1.0);
    pass(&mut lab).await;
    assert_eq!(verdict_of(&lab, turn).verdict, 1);
}

#[tokio::test]
async fn after_training_feedback_is_kept_and_changes_nothing_and_during_a_round_it_waits() {
    let mut lab = Lab::new();
    let turn = lab.add("s", "What is rain?", ANSWER, "Thanks, perfect.");
    pass(&mut lab).await;
    let mut round = RoundRow {
        round_id: "r1".into(),
        route: "chat".into(),
        state: RoundState::Training,
        started_ms: 1,
        finished_ms: None,
        incumbent: Generation::base(),
        candidate: None,
        reason: String::new(),
        metrics: json!({}),
    };
    lab.store.begin_round(&round).unwrap();
    lab.store.set_round_turns("r1", &[(turn, Split::Train)]).unwrap();
    let id = say(&mut lab, turn, &[Part::Thumb(-1.0)], 1.0);
    pass(&mut lab).await;
    assert_eq!(used(&lab, turn, id), None, "it waits for the round");
    round.state = RoundState::Promoted;
    lab.store.update_round(&round).unwrap();
    pass(&mut lab).await;
    assert_eq!(verdict_of(&lab, turn).source, "rule:approval");
    assert_eq!(used(&lab, turn, id), Some(false), "seen, and too late");
    lab.store.set_round_turns("r1", &[]).unwrap();
    (round.round_id, round.state) = ("r2".into(), RoundState::Abandoned);
    lab.store.begin_round(&round).unwrap();
    lab.store.set_round_turns("r2", &[(turn, Split::Train)]).unwrap();
    say(&mut lab, turn, &[Part::Thumb(-1.0)], 1.0);
    pass(&mut lab).await;
    assert_eq!(verdict_of(&lab, turn).source, "feedback", "an abandoned round used nothing up");
}
