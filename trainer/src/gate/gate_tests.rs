//! The gate lets through what is better and refuses everything else, with its reason.

use super::*;
use crate::compute::CpuCompute;
use crate::testing::lab::{Lab, sample};
use crate::testing::{gate_policy, train_policy};
use hone_model::lora::Lora;

fn good() -> (Signal, Neutral) {
    let signal = Signal { hinted_turns: 3, hinted_gain: 0.2, ..Signal::default() };
    let neutral = Neutral {
        replies: 4,
        kl: 0.1,
        ended_share: 0.9,
        ended_share_incumbent: 0.1,
        tokens_mean: 20.0,
        ..Neutral::default()
    };
    (signal, neutral)
}

fn strict() -> GatePolicy {
    GatePolicy {
        neutral_kl_max: 0.5,
        repetition_max: 0.35,
        ended_share_min: 0.5,
        phrase_share_max: 0.5,
        ..gate_policy()
    }
}

#[test]
fn a_better_candidate_that_is_still_itself_passes() {
    let (signal, neutral) = good();
    let report = judge(&strict(), signal, neutral);
    assert!(report.passed, "{report:?}");
    assert_eq!(report.reason(), "passed the gate");
}

#[test]
fn each_fault_is_an_objection_with_its_number() {
    let (signal, neutral) = good();
    let rejected = Signal { rejected_turns: 1, rejected_gain: 0.01, ..signal };
    let approved = Signal { approved_turns: 1, approved_gain: -0.3, ..signal };
    let cases = [
        (Signal { hinted_gain: 0.019, ..signal }, neutral, "hinted turns"),
        (Signal { hinted_gain: f64::NAN, ..signal }, neutral, "hinted turns"),
        (rejected, neutral, "rejected turns"),
        (approved, neutral, "approved turns"),
        (Signal::default(), neutral, "no held-out turn"),
        (signal, Neutral { kl: 0.6, ..neutral }, "KL"),
        (signal, Neutral { kl: f64::INFINITY, ..neutral }, "KL"),
        (signal, Neutral { repetition: 0.9, ..neutral }, "repetition"),
        (signal, Neutral { empty_share: 0.5, ..neutral }, "empty"),
        (signal, Neutral { ended_share: 0.05, ..neutral }, "end"),
        (signal, Neutral { refusal_share: 0.3, ..neutral }, "refuse"),
        (signal, Neutral { phrase_share: 0.6, ..neutral }, "phrase"),
        (signal, Neutral { tokens_mean_incumbent: 300.0, ..neutral }, "mean length"),
        (
            signal,
            Neutral { tokens_mean: 61.0, tokens_mean_incumbent: 20.0, ..neutral },
            "mean length",
        ),
        (signal, Neutral { tokens_mean: 49.0, ..neutral }, "mean length"),
        (Signal { demonstrated_turns: 1, ..signal }, neutral, "demonstrations"),
    ];
    for (signal, neutral, word) in cases {
        let report = judge(&strict(), signal, neutral);
        assert!(!report.passed && report.reason().contains(word), "{word}: {report:?}");
    }
}

#[test]
fn of_approved_answers_a_candidate_need_only_keep_what_it_can() {
    let (_, neutral) = good();
    let kept = Signal { approved_turns: 1, approved_gain: -0.05, ..Signal::default() };
    assert!(judge(&strict(), kept, neutral).passed);
}

#[test]
fn a_candidate_need_not_end_more_often_than_the_incumbent_does() {
    let (signal, neutral) = good();
    let chatty = Neutral { ended_share: 0.2, ended_share_incumbent: 0.1, ..neutral };
    assert!(judge(&strict(), signal, chatty).passed);
}

/// Runs the whole gate on the tiny model with a candidate that is the base plus `noise`.
fn examine_noise(noise: f32, holdout: usize) -> Report {
    let lab = Lab::new();
    let renderer = Renderer::from_dir(&lab.model_dir).unwrap();
    let mut compute = CpuCompute::new(&lab.model_dir, 1).unwrap();
    let mut candidate = Lora::init(&renderer.model, 4, 8.0, 3);
    for tensor in candidate.tensors_mut() {
        for (i, value) in tensor.iter_mut().enumerate() {
            *value += noise * (i as f32 * 0.7).sin();
        }
    }
    let samples: Vec<Sample> =
        (0..holdout).map(|i| sample(&renderer, &format!("Why {i}?"), "Because of that.")).collect();
    let (train, gate) = (train_policy(), strict());
    let case = Case {
        candidate: &candidate,
        incumbent: None,
        teacher: None,
        holdout: &samples,
        train: &train,
        gate: &gate,
    };
    examine(&mut compute, &renderer, &case).unwrap()
}

#[test]
fn a_planted_bad_adapter_is_refused_with_all_its_numbers() {
    let report = examine_noise(2.0, 3);
    assert!(!report.passed, "{report:?}");
    assert!(report.signal.hinted_gain < 0.0 && report.neutral.kl > 0.0, "{report:?}");
    assert!(report.neutral.replies > 0 && report.signal.hinted_turns == 3);
}

#[test]
fn issue_5_a_candidate_whose_numbers_are_not_finite_is_refused_and_no_fault_of_the_machine() {
    let report = examine_noise(1e30, 3);
    assert!(!report.passed && report.reason().contains("not finite"), "{report:?}");
}

#[test]
fn a_candidate_that_changes_nothing_is_refused_for_gaining_nothing() {
    let report = examine_noise(0.0, 3);
    assert!(report.reason().contains("gain"), "{report:?}");
    assert!(report.neutral.kl.abs() < 1e-6);
}

#[test]
fn without_held_out_turns_the_gate_stays_shut() {
    let report = examine_noise(0.0, 0);
    assert!(!report.passed && report.reason().contains("no held-out turns"), "{report:?}");
}
