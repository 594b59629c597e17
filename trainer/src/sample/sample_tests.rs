//! What becomes a sample and what does not.

use super::*;
use crate::judge::exchange::text_of;
use crate::testing::lab::{Lab, stored_turn, verdict};
use crate::testing::route_policy;
use hone_shared::policy::RoutePolicy;
use hone_shared::store::{Split, StoredTurn, VerdictRow};
use hone_shared::turn::{Generation, Outcome};
use render::Renderer;
use serde_json::json;

const HINT: &str = "Answer in one short sentence.";

struct Desk {
    lab: Lab,
    renderer: Renderer,
    route: RoutePolicy,
}

fn desk() -> Desk {
    let lab = Lab::new();
    let renderer = Renderer::from_dir(&lab.model_dir).unwrap();
    Desk { lab, renderer, route: route_policy() }
}

fn drawn(desk: &Desk, pool: &[(StoredTurn, VerdictRow)]) -> Drawn {
    // `bb…b07` is seven generations behind; any other is not at hand.
    let behind = |generation: &Generation| match generation.as_str() {
        name if generation.is_base() || name.is_empty() => Some(0),
        name => name.strip_prefix(&"b".repeat(62)).and_then(|n| n.parse().ok()),
    };
    let sampler = Sampler {
        renderer: &desk.renderer,
        route: "chat",
        round: &desk.route.round,
        train: &desk.route.train,
        hint_label: "[hint]",
        behind: &behind,
        baseline: 0.0,
        secret: &[1; 32],
    };
    sampler.draw(&desk.lab.store, pool).unwrap()
}

fn draw(desk: &Desk, pool: &[(StoredTurn, VerdictRow)]) -> Batch {
    drawn(desk, pool).batch
}

/// A pool of turns of different sessions.
fn pool(turns: Vec<StoredTurn>) -> Vec<(StoredTurn, VerdictRow)> {
    turns.into_iter().map(|turn| (turn.clone(), verdict(&turn, -1, &[HINT]))).collect()
}

fn only(desk: &Desk, turn: StoredTurn, verdict: VerdictRow) -> Result<Sample, String> {
    let batch = draw(desk, &[(turn, verdict)]);
    match batch.train.into_iter().next() {
        Some(sample) => Ok(sample),
        None => Err(batch.dropped.keys().next().unwrap().clone()),
    }
}

#[test]
fn a_corrected_turn_has_prompt_hinted_prompt_reply_and_reward() {
    let desk = desk();
    let turn = stored_turn("s", "What is rain?", "the rain", "stop");
    let sample = only(&desk, turn.clone(), verdict(&turn, -1, &[HINT])).unwrap();
    let text = |ids: &[u32]| desk.renderer.text(ids);
    assert!(text(&sample.prompt).contains("What is rain?"));
    let teacher = text(&sample.teachers[0]);
    assert!(teacher.contains(&format!("What is rain?\n\n[hint]\n{HINT}")), "{teacher}");
    assert_eq!(text(&sample.response), "the rain");
    assert!(sample.ended && desk.renderer.eos().contains(sample.response.last().unwrap()));
    assert_eq!((sample.reward, sample.generation.is_base()), (-1.0, true));
}

#[test]
fn dispatch_is_by_what_is_there() {
    let desk = desk();
    let turn = stored_turn("s", "q", "some words", "stop");
    let reward = only(&desk, turn.clone(), verdict(&turn, 1, &[])).unwrap();
    assert!(reward.teachers.is_empty() && reward.reward == 1.0);
    let hint = only(&desk, turn.clone(), verdict(&turn, 0, &[HINT])).unwrap();
    assert!(!hint.teachers.is_empty() && hint.reward == 0.0);
    let neither = only(&desk, turn.clone(), verdict(&turn, 0, &[]));
    assert_eq!(neither, Err("no_signal".into()));
}

#[test]
fn a_weight_of_zero_switches_a_signal_off() {
    let mut desk = desk();
    desk.route.train.weight_opd = 0.0;
    let turn = stored_turn("s", "q", "some words", "stop");
    assert!(only(&desk, turn.clone(), verdict(&turn, -1, &[HINT])).unwrap().teachers.is_empty());
    desk.route.train.weight_rl = 0.0;
    let nothing = only(&desk, turn.clone(), verdict(&turn, -1, &[HINT]));
    assert_eq!(nothing, Err("no_signal".into()));
}

#[test]
fn a_reply_that_was_cut_has_no_end_token() {
    let desk = desk();
    let turn = stored_turn("s", "q", "some words", "length");
    let sample = only(&desk, turn.clone(), verdict(&turn, -1, &[HINT])).unwrap();
    assert!(!sample.ended && !desk.renderer.eos().contains(sample.response.last().unwrap()));
}

#[test]
fn issue_5_a_reply_that_a_stop_string_may_have_ended_has_no_end_token() {
    let desk = desk();
    for (params, ended) in [
        (json!({"stop": ["\nObservation:"]}), false),
        (json!({"stop": "###"}), false),
        (json!({"stop_sequences": ["x"]}), false),
        (json!({"stop": null, "stop_sequences": []}), true),
    ] {
        let turn = StoredTurn { params, ..stored_turn("s", "q", "some words", "stop") };
        let sample = only(&desk, turn.clone(), verdict(&turn, -1, &[HINT])).unwrap();
        let last = sample.response.last().unwrap();
        assert_eq!((sample.ended, desk.renderer.eos().contains(last)), (ended, ended));
    }
}

#[test]
fn a_reply_longer_than_the_cap_is_cut_there_and_does_not_end() {
    let desk = desk();
    let turn = stored_turn("s", "q", &"several quick brown words ".repeat(9), "stop");
    let sample = only(&desk, turn.clone(), verdict(&turn, -1, &[HINT])).unwrap();
    assert_eq!(sample.response.len(), desk.route.train.reply_tokens_max);
    assert!(!sample.ended && !desk.renderer.eos().contains(sample.response.last().unwrap()));
}

#[test]
fn issue_4_garbage_and_turns_without_provenance_are_dropped_and_counted() {
    let desk = desk();
    let other = Generation::parse(&"a".repeat(64)).unwrap();
    let good = |answer: &str| stored_turn("s", "q", answer, "stop");
    let cases: Vec<(StoredTurn, &str)> = vec![
        (good("a"), "too_short"),
        (StoredTurn { outcome: Outcome::ClientAbort, ..good("words here") }, "not_complete"),
        (StoredTurn { outcome: Outcome::ProxyCrash, ..good("words here") }, "not_complete"),
        (StoredTurn { generation: other, ..good("words here") }, "missing_provenance"),
        (StoredTurn { messages: vec![], ..good("words here") }, "missing_provenance"),
        (StoredTurn { choices: vec![], ..good("words here") }, "missing_provenance"),
        (stored_turn("s", &"long ".repeat(200), "words here", "stop"), "prompt_too_long"),
    ];
    for (turn, reason) in cases {
        let got = only(&desk, turn.clone(), verdict(&turn, -1, &[HINT]));
        assert_eq!(got, Err(reason.to_owned()));
    }
}

#[test]
fn a_reply_that_loops_is_dropped() {
    let mut desk = desk();
    desk.route.train.reply_tokens_max = 200;
    let turn = stored_turn("s", "q", &"no ".repeat(60), "stop");
    let got = only(&desk, turn.clone(), verdict(&turn, 1, &[]));
    assert_eq!(got, Err("repetitive".into()));
}

#[test]
fn caps_hold_per_session_tenant_and_round() {
    let mut desk = desk();
    let round = &mut desk.route.round;
    (round.per_session_max, round.per_tenant_max, round.samples_max) = (2, 4, 5);
    let count = std::cell::Cell::new(0);
    let turn = |session: &str, tenant: &str| StoredTurn {
        tenant: tenant.into(),
        ..stored_turn(
            session,
            &format!("q{}", count.replace(count.get() + 1)),
            "some words",
            "stop",
        )
    };
    let mut turns: Vec<StoredTurn> = (0..3).map(|_| turn("a", "x")).collect();
    turns.extend((0..3).map(|i| turn(&format!("b{i}"), "x")));
    turns.extend((0..3).map(|i| turn(&format!("c{i}"), "y")));
    let pool = pool(turns);
    let batch = draw(&desk, &pool);
    assert_eq!(batch.train.len() + batch.holdout.len(), 5);
    assert_eq!(batch.dropped["session_cap"], 1);
    assert_eq!(batch.dropped["tenant_cap"], 1);
    assert_eq!(batch.dropped["round_full"], 2);
    assert_eq!(batch.seen.len(), 7, "what did not fit is left for the next round");
    assert_eq!(batch.provenance().len(), 5);
}

#[test]
fn praise_takes_no_room_from_corrections_and_is_not_counted_as_one() {
    let mut desk = desk();
    desk.route.round.samples_max = 4;
    let turns =
        (0..9).map(|i| stored_turn(&format!("s{i}"), &format!("q{i}"), "some words", "stop"));
    let pool: Vec<(StoredTurn, VerdictRow)> = turns
        .enumerate()
        .map(|(i, turn)| {
            let verdict = match i {
                3 => verdict(&turn, -1, &[]),
                8 => verdict(&turn, 1, &[HINT]),
                _ => verdict(&turn, 1, &[]),
            };
            (turn, verdict)
        })
        .collect();
    let asks = corrections(&desk.lab.store, &pool, &desk.route, 0.0).unwrap();
    let asking: Vec<usize> = (0..9).filter(|i| asks[*i]).collect();
    assert_eq!(asking, [3, 8]);
    let batch = draw(&desk, &pool);
    assert_eq!((batch.train.len() + batch.holdout.len(), batch.corrections()), (4, 2));
    let tests: Vec<bool> = batch.holdout.iter().map(Sample::corrects).collect();
    assert_eq!(tests, [true], "one correction teaches and one tests");
}

#[test]
fn the_batch_survives_the_disk_unchanged() {
    let desk = desk();
    let turn = |i: u32| stored_turn(&format!("s{i}"), &format!("q{i}"), "some words", "stop");
    let batch = draw(&desk, &pool((0..6).map(turn).collect()));
    assert!(!batch.train.is_empty() && !batch.holdout.is_empty());
    let json = serde_json::to_vec(&batch).unwrap();
    assert_eq!(serde_json::from_slice::<Batch>(&json).unwrap(), batch);
}

#[test]
fn issue_5_one_answer_to_one_question_does_not_teach_in_one_session_and_test_in_another() {
    let desk = desk();
    let turn = |i: u32| {
        stored_turn(&format!("s{i}"), if i < 5 { "q" } else { "other" }, "some words", "stop")
    };
    let batch = draw(&desk, &pool((0..6).map(turn).collect()));
    let of = |samples: &[Sample]| -> Vec<Vec<u32>> {
        samples.iter().map(|sample| sample.prompt.clone()).collect()
    };
    let (teach, test) = (of(&batch.train), of(&batch.holdout));
    assert!(!teach.is_empty() && !test.iter().any(|prompt| teach.contains(prompt)));
    assert!(batch.dropped["duplicate"] > 0, "{:?}", batch.dropped);
}

#[test]
fn the_legacy_completions_prompt_is_its_raw_text() {
    let desk = desk();
    let mut turn = stored_turn("s", "Once upon", "a time there", "stop");
    turn.path = "/v1/completions".into();
    let sample = only(&desk, turn.clone(), verdict(&turn, 1, &[])).unwrap();
    assert_eq!(desk.renderer.text(&sample.prompt), "Once upon");
}

#[test]
fn the_answer_that_the_user_went_on_from_is_the_one_that_is_used() {
    let desk = desk();
    let mut turn = stored_turn("s", "q", "first words", "stop");
    let mut second = turn.choices[0].clone();
    second.index = 1;
    second.message = json!({"role": "assistant", "content": "second words"});
    turn.choices.push(second);
    // The verdict's child is not in the store, so the first choice is taken.
    let sample = only(&desk, turn.clone(), verdict(&turn, 1, &[])).unwrap();
    assert_eq!(desk.renderer.text(&sample.response), text_of(&turn.choices[0].message));
}

#[test]
fn up_to_three_hints_teach_and_further_ones_do_not() {
    let desk = desk();
    let turn = stored_turn("s", "q", "some words", "stop");
    let hints = ["Be brief, please.", "Answer in French.", "Use no lists at all.", "Say it twice."];
    let sample = only(&desk, turn.clone(), verdict(&turn, -1, &hints)).unwrap();
    assert_eq!(sample.teachers.len(), HINTS_MAX);
    let last = desk.renderer.text(&sample.teachers[2]);
    assert!(last.contains(hints[2]), "{last}");
}

#[test]
fn praise_for_half_an_answer_or_for_a_refusal_is_dropped_and_blame_is_not() {
    let desk = desk();
    let cases = [
        ("some words and more", "length", "truncated"),
        ("I'm sorry, but I can't help with that.", "stop", "refusal"),
    ];
    for (answer, finish, reason) in cases {
        let turn = stored_turn("s", "q", answer, finish);
        assert_eq!(only(&desk, turn.clone(), verdict(&turn, 1, &[])), Err(reason.into()));
        assert!(only(&desk, turn.clone(), verdict(&turn, -1, &[])).is_ok());
    }
}

#[test]
fn a_reply_whose_reasoning_was_taken_out_of_it_is_dropped_and_not_learned_without() {
    let desk = desk();
    let apart = [
        ("reasoning_content", json!("Let me see.")),
        ("reasoning", json!("Let me see.")),
        ("thinking_blocks", json!([{"type": "redacted_thinking", "data": "x"}])),
        ("items", json!([{"type": "reasoning", "encrypted_content": "x", "summary": []}])),
    ];
    for (key, value) in apart {
        let mut turn = stored_turn("s", "q", "some words", "stop");
        turn.choices[0].message[key] = value;
        for sign in [1, -1] {
            let got = only(&desk, turn.clone(), verdict(&turn, sign, &[HINT]));
            assert_eq!(got, Err("reasoning_apart".into()), "{key}");
        }
    }
    let mut turn = stored_turn("s", "q", "some words", "stop");
    turn.choices[0].message["reasoning_content"] = json!("");
    turn.choices[0].message["reasoning"] = json!(null);
    turn.choices[0].message["items"] = json!([{"type": "web_search_call"}]);
    assert!(only(&desk, turn.clone(), verdict(&turn, 1, &[])).is_ok());
}

#[test]
fn the_same_reply_to_the_same_prompt_counts_once_in_a_session() {
    let desk = desk();
    let turns = ["a", "a", "b"].map(|session| stored_turn(session, "q", "some words", "stop"));
    let batch = draw(&desk, &pool(turns.to_vec()));
    assert_eq!((batch.train.len(), batch.dropped["duplicate"]), (2, 1));
}

#[test]
fn replies_of_generations_long_gone_are_stale() {
    let desk = desk();
    let of = |behind: usize| StoredTurn {
        generation: Generation::parse(&format!("{}{behind:02}", "b".repeat(62))).unwrap(),
        ..stored_turn("s", "q", "some words", "stop")
    };
    let limit = desk.route.round.generations_behind_max;
    let turn = of(limit);
    assert!(only(&desk, turn.clone(), verdict(&turn, -1, &[])).is_ok());
    let turn = of(limit + 1);
    assert_eq!(only(&desk, turn.clone(), verdict(&turn, -1, &[])), Err("stale".into()));
}

#[test]
fn a_person_has_a_cap_over_all_sessions_and_nobody_in_particular_has_none() {
    let mut desk = desk();
    desk.route.round.per_user_max = 2;
    let turn = |i: usize, person: &str| StoredTurn {
        person: person.into(),
        ..stored_turn(&format!("s{i}{person}"), &format!("q{i}{person}"), "some words", "stop")
    };
    let mut turns: Vec<StoredTurn> = (0..4).map(|i| turn(i, "p")).collect();
    turns.extend((0..4).map(|i| turn(i, "")));
    let batch = draw(&desk, &pool(turns));
    assert_eq!((batch.provenance().len(), batch.dropped["user_cap"]), (6, 2));
}

#[test]
fn too_many_rewards_of_one_sign_are_muted_and_hints_go_on_teaching() {
    let mut desk = desk();
    desk.route.round.samples_min = 1;
    let mut pool = Vec::new();
    for i in 0..12 {
        let turn = stored_turn(&format!("s{i}"), "q", "some words", "stop");
        let hints: &[&str] = if i == 11 { &[HINT] } else { &[] };
        pool.push((turn.clone(), verdict(&turn, if i < 2 { 1 } else { -1 }, hints)));
    }
    let found = drawn(&desk, &pool);
    // Two of one sign allow eight of the other.
    assert_eq!((found.batch.muted, found.batch.dropped["sign_cap"]), (2, 1));
    let last = &found.fates[11];
    assert!(last.split.is_some() && last.reward == 0.0 && last.hints == 1, "{last:?}");
}

#[test]
fn attempts_at_a_task_become_advantages_and_those_that_ended_alike_are_dropped() {
    let desk = desk();
    let mut pool = Vec::new();
    for (i, (task, sign)) in [("a", 1), ("a", -1), ("b", 1), ("b", 1)].into_iter().enumerate() {
        let mut turn = stored_turn(&format!("s{i}"), "q", "some words", "stop");
        turn.params = json!({"metadata": {"hone_task": task}});
        pool.push((turn.clone(), verdict(&turn, sign, &[])));
    }
    let found = drawn(&desk, &pool);
    let reward = |i: usize| found.fates[i].reward;
    assert!((reward(0) - 1.0).abs() < 1e-5 && (reward(1) + 1.0).abs() < 1e-5);
    assert_eq!(found.batch.dropped["constant_group"], 2);
}

#[test]
fn every_turn_of_the_pool_has_exactly_one_fate() {
    let desk = desk();
    let turns = (0..6).map(|i| stored_turn(&format!("s{i}"), "q", "some words", "stop"));
    let mut pool = pool(turns.collect());
    let short = stored_turn("x", "q", "a", "stop");
    pool.push((short.clone(), verdict(&short, 1, &[])));
    let found = drawn(&desk, &pool);
    assert_eq!(found.fates.len(), pool.len());
    assert!(found.fates.iter().all(|f| f.split.is_some() != f.dropped.is_some()));
    let count = |split| found.fates.iter().filter(|f| f.split == Some(split)).count();
    assert_eq!(count(Split::Train), found.batch.train.len());
    assert_eq!(count(Split::Holdout), found.batch.holdout.len());
}
