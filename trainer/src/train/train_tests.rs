//! Training on the tiny model: it learns what it shall, stops when it must, resumes exactly.

use super::*;
use crate::compute::{CpuCompute, Sequence};
use crate::sample::render::Renderer;
use crate::testing::lab::{Lab, message, sample};
use crate::testing::route_policy;
use hone_model::chat::Asked;
use hone_shared::policy::{Loss, Support};
use std::cell::Cell;
use update::Measured;

struct Bench {
    lab: Lab,
    renderer: Renderer,
    compute: CpuCompute,
}

fn bench() -> Bench {
    let lab = Lab::new();
    let renderer = Renderer::from_dir(&lab.model_dir).unwrap();
    let compute = CpuCompute::new(&lab.model_dir, 1).unwrap();
    Bench { lab, renderer, compute }
}

fn plan(bench: &Bench, edit: impl Fn(&mut TrainPolicy), keep: impl Fn(&mut Sample)) -> Plan {
    let mut policy = route_policy().train;
    edit(&mut policy);
    let questions = ["Why is it so?", "What is rain?", "Who was that?"];
    let mut samples: Vec<Sample> =
        questions.iter().map(|q| sample(&bench.renderer, q, "the rain in the hills")).collect();
    samples.iter_mut().for_each(keep);
    Plan {
        policy,
        samples,
        start: None,
        teacher: None,
        servers: BTreeMap::new(),
        model: bench.renderer.model.clone(),
        eos: bench.renderer.eos().to_vec(),
    }
}

fn work(bench: &Bench, name: &str) -> WorkDir {
    std::fs::create_dir_all(bench.lab.data.rounds_dir()).unwrap();
    WorkDir::open(&bench.lab.data.rounds_dir(), name).unwrap()
}

fn done(end: TrainEnd) -> Lora {
    match end {
        TrainEnd::Done(adapter) => adapter,
        other => panic!("{other:?}"),
    }
}

/// Mean ln p per token of fixed sequences.
fn likelihood(compute: &mut CpuCompute, adapter: Option<&Lora>, of: &[Sequence]) -> f64 {
    let scores = compute.score(adapter, of).unwrap();
    let all: Vec<f64> = scores.iter().flatten().map(|p| f64::from(*p)).collect();
    all.iter().sum::<f64>() / all.len() as f64
}

/// ln p of the hinted teacher's replies without the hint, before and after training, and the
/// metrics.
fn distilled(edit: impl Fn(&mut TrainPolicy), hints: usize) -> (f64, f64, Vec<Measured>) {
    let mut bench = bench();
    let strong = |p: &mut TrainPolicy| {
        (p.updates, p.replies, p.weight_rl, p.kl_beta) = (12, 8, 0.0, 0.0);
        edit(p);
    };
    let plan = plan(&bench, strong, |s| s.teachers = vec![s.teachers[0].clone(); hints]);
    let params = crate::compute::SampleParams {
        temperature: 1.0,
        tokens_max: 12,
        eos: plan.eos.clone(),
        seed: 99,
    };
    let hinted: Vec<Vec<u32>> = plan.samples.iter().map(|s| s.teachers[0].clone()).collect();
    let groups = bench.compute.sample(None, &hinted, 40, &params).unwrap();
    let pairs = plan.samples.iter().zip(&groups);
    let teacher: Vec<Sequence> =
        pairs.flat_map(|(s, g)| g.iter().map(|r| s.plain_with(&r.tokens))).collect();
    let before = likelihood(&mut bench.compute, None, &teacher);
    let files = work(&bench, "r");
    let adapter = done(train(&mut bench.compute, &plan, &files, &|| false).unwrap());
    let after = likelihood(&mut bench.compute, Some(&adapter), &teacher);
    (before, after, files.metrics().unwrap())
}

#[test]
fn issue_5_numbers_that_are_not_finite_stop_the_round_and_are_no_fault_of_the_machine() {
    let mut bench = bench();
    let mut plan = plan(&bench, |_| (), |_| ());
    let mut start = Lora::init(&plan.model, plan.policy.rank, plan.policy.alpha, 1);
    start.tensors_mut().for_each(|tensor| tensor.fill(1e30));
    plan.start = Some(start);
    let files = work(&bench, "r");
    let end = train(&mut bench.compute, &plan, &files, &|| false).unwrap();
    assert!(matches!(&end, TrainEnd::Stopped(why) if why.contains("not finite")), "{end:?}");
}

#[test]
fn distillation_makes_the_hinted_teachers_replies_more_likely_without_the_hint() {
    let (before, after, lines) = distilled(|_| {}, 1);
    assert!(after > before, "ln p of the teacher's replies: {before} -> {after}");
    assert_eq!(lines.len(), 12);
    assert!(lines[11].log_ratio < lines[0].log_ratio, "{lines:?}");
}

#[test]
fn every_loss_draws_the_student_to_the_hinted_teacher() {
    let losses = [
        (Loss::TopK, Support::Student),
        (Loss::TopK, Support::Teacher),
        (Loss::TopK, Support::Overlap),
        (Loss::TopKTail, Support::Student),
        (Loss::ForwardKl, Support::Student),
        (Loss::ReverseKl, Support::Student),
    ];
    for (loss, support) in losses {
        let edit = |p: &mut TrainPolicy| (p.loss, p.support, p.top_k) = (loss, support, 8);
        let (before, after, lines) = distilled(edit, 2);
        let (first, last) = (lines[0].log_ratio, lines[11].log_ratio);
        println!(
            "{loss:?} {support:?}: {before:.3} -> {after:.3}, distance {first:.4} -> {last:.4}"
        );
        // What both have among their likeliest says little about a random model's whole replies.
        let whole = support != Support::Overlap;
        assert!(after > before || !whole, "{loss:?} {support:?}: {before} -> {after}");
        assert!(last < first, "{loss:?} {support:?}: {first} -> {last}");
    }
}

#[test]
fn a_demonstration_becomes_more_likely_and_needs_no_generation() {
    let mut bench = bench();
    let gone = Generation::parse(&"a".repeat(64)).unwrap();
    let answer = [message("user", "a hill")];
    let answer = bench.renderer.prompt("/v1/completions", &Asked::undated(&answer)).unwrap();
    let plan = plan(
        &bench,
        |_| {},
        |s| {
            (s.teachers, s.reward, s.generation) = (vec![], 0.0, gone.clone());
            s.demonstration = Some(answer.clone());
        },
    );
    let wanted: Vec<Sequence> = plan.samples.iter().map(|s| s.plain_with(&answer)).collect();
    let before = likelihood(&mut bench.compute, None, &wanted);
    let files = work(&bench, "r");
    let adapter = done(train(&mut bench.compute, &plan, &files, &|| false).unwrap());
    let after = likelihood(&mut bench.compute, Some(&adapter), &wanted);
    assert!(after > before, "{before} -> {after}");
    assert_eq!(files.metrics().unwrap()[0].tokens, (3 * answer.len()) as f64);
}

#[test]
fn reward_alone_raises_what_was_approved_and_lowers_what_was_not() {
    for reward in [1.0, -1.0] {
        let mut bench = bench();
        let plan = plan(&bench, |_| {}, |s| (s.teachers, s.reward) = (vec![], reward));
        let live: Vec<Sequence> = plan.samples.iter().map(Sample::plain).collect();
        let before = likelihood(&mut bench.compute, None, &live);
        let files = work(&bench, "r");
        let adapter = done(train(&mut bench.compute, &plan, &files, &|| false).unwrap());
        let after = likelihood(&mut bench.compute, Some(&adapter), &live);
        assert!((after - before) * reward > 0.0, "reward {reward}: {before} -> {after}");
        assert_eq!(files.metrics().unwrap()[0].fresh_replies, 0);
    }
}

#[test]
fn an_interrupted_run_ends_with_the_same_bytes_as_one_that_was_not() {
    let mut bench = bench();
    let plan = plan(&bench, |_| {}, |_| {});
    let (whole, parts) = (work(&bench, "whole"), work(&bench, "parts"));
    let want = done(train(&mut bench.compute, &plan, &whole, &|| false).unwrap());
    for step in [2, 4] {
        let until = || parts.metrics().unwrap().len() >= step;
        let end = train(&mut bench.compute, &plan, &parts, &until).unwrap();
        assert!(matches!(end, TrainEnd::Interrupted), "{end:?}");
        // What a crash leaves: half a checkpoint under its temporary name, a line too many.
        std::fs::write(parts.path().join(".checkpoint.safetensors.new"), b"half").unwrap();
        let extra = Measured { update: step as u64, ..Measured::default() };
        parts.log(&extra).unwrap();
    }
    let got = done(train(&mut bench.compute, &plan, &parts, &|| false).unwrap());
    assert_eq!(want.peft_bytes().unwrap(), got.peft_bytes().unwrap());
    let timeless = |files: &WorkDir| {
        let lines = files.metrics().unwrap().into_iter();
        lines.map(|m| Measured { seconds: 0.0, cpu_seconds: 0.0, ..m }).collect::<Vec<_>>()
    };
    assert_eq!(timeless(&whole), timeless(&parts));
}

#[test]
fn issue_5_a_checkpoint_of_other_samples_or_another_recipe_is_not_taken_up() {
    let mut bench = bench();
    let first = plan(&bench, |p| p.updates = 2, |_| {});
    let files = work(&bench, "r");
    done(train(&mut bench.compute, &first, &files, &|| false).unwrap());
    let same = checkpoint::fingerprint(&first);
    assert!(files.checkpoint(&first.model, &same).unwrap().is_some());
    let samples = first.samples.clone();
    let more = Plan { samples, ..plan(&bench, |p| (p.updates, p.threads) = (4, 1), |_| {}) };
    assert_eq!(checkpoint::fingerprint(&more), same, "more of the same goes on");
    for other in [
        plan(&bench, |p| (p.updates, p.learning_rate) = (2, 5e-4), |_| {}),
        plan(&bench, |p| p.updates = 2, |s| s.response = vec![5, 6, 7]),
    ] {
        let print = checkpoint::fingerprint(&other);
        assert_eq!(files.checkpoint(&other.model, &print).unwrap(), None);
        let fresh = work(&bench, &print);
        let want = done(train(&mut bench.compute, &other, &fresh, &|| false).unwrap());
        let got = done(train(&mut bench.compute, &other, &files, &|| false).unwrap());
        assert_eq!(want.peft_bytes().unwrap(), got.peft_bytes().unwrap(), "begun anew");
        done(train(&mut bench.compute, &first, &files, &|| false).unwrap());
    }
}

#[test]
fn a_request_to_stop_is_heeded_within_an_update() {
    let mut bench = bench();
    let plan = plan(&bench, |_| {}, |_| {});
    let asked = Cell::new(0);
    let second_time = || asked.replace(asked.get() + 1) >= 1;
    let files = work(&bench, "r");
    let end = train(&mut bench.compute, &plan, &files, &second_time).unwrap();
    assert!(matches!(end, TrainEnd::Interrupted));
    assert!(files.metrics().unwrap().is_empty());
}

#[test]
fn an_anomaly_stops_before_the_bad_step_is_taken() {
    let mut bench = bench();
    let plan = plan(&bench, |p| p.stop.grad_norm_max = 1e-9, |_| {});
    let files = work(&bench, "r");
    match train(&mut bench.compute, &plan, &files, &|| false).unwrap() {
        TrainEnd::Stopped(reason) => assert!(reason.contains("gradient norm"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(files.checkpoint(&plan.model, &checkpoint::fingerprint(&plan)).unwrap(), None);
}

#[test]
fn issue_5_a_spent_budget_ends_the_updates_and_the_candidate_so_far_goes_on() {
    let mut bench = bench();
    let spent = |bench: &mut Bench, name: &str, edit: &dyn Fn(&mut TrainPolicy)| {
        let plan = plan(bench, edit, |_| {});
        let files = work(bench, name);
        let end = train(&mut bench.compute, &plan, &files, &|| false).unwrap();
        let again = train(&mut bench.compute, &plan, &files, &|| false).unwrap();
        let TrainEnd::Spent(adapter, why) = end else { panic!("{end:?}") };
        let TrainEnd::Spent(resumed, _) = again else { panic!("{again:?}") };
        assert_eq!(adapter, resumed, "resuming finds the budget spent");
        (adapter, why, files.metrics().unwrap())
    };
    let (adapter, why, lines) = spent(&mut bench, "wall", &|p| p.budget.wall_s_max = 1e-9);
    assert!(why.contains("seconds") && lines.len() == 1, "{why}: {lines:?}");
    assert!(lines[0].cpu_seconds > 0.0);
    let one = plan(&bench, |p| p.updates = 1, |_| {});
    let files = work(&bench, "one");
    assert_eq!(done(train(&mut bench.compute, &one, &files, &|| false).unwrap()), adapter);
    let (_, why, lines) = spent(&mut bench, "cpu", &|p| p.budget.cpu_s_max = 1e-9);
    assert!(why.contains("CPU") && lines.len() == 1, "{why}: {lines:?}");
    let (_, why, lines) = spent(&mut bench, "kl", &|p| p.budget.kl_max = 1e-6);
    assert!(why.contains("KL") && lines.len() == 1, "{why}: {lines:?}");
}

#[test]
fn issue_5_no_round_carries_the_adapter_further_than_its_norm_budget() {
    let mut bench = bench();
    let ends = |bench: &mut Bench, name: &str, most: f64| {
        let plan = plan(bench, |p| p.budget.update_norm_max = most, |_| {});
        let files = work(bench, name);
        done(train(&mut bench.compute, &plan, &files, &|| false).unwrap());
        files.metrics().unwrap().iter().map(|line| line.update_norm).collect::<Vec<f64>>()
    };
    let free = ends(&mut bench, "free", 1e6);
    assert!(free.last() > free.first(), "{free:?}");
    let most = free[0] * 1.5;
    let held = ends(&mut bench, "held", most);
    assert!(held.iter().all(|norm| *norm <= most), "{held:?} within {most}");
    assert_eq!(held.last(), Some(&most));
}

#[test]
fn a_live_reply_of_a_generation_that_is_gone_is_an_error_and_not_a_guess() {
    let mut bench = bench();
    let gone = Generation::parse(&"a".repeat(64)).unwrap();
    let plan = plan(&bench, |_| {}, |s| s.generation = gone.clone());
    let files = work(&bench, "r");
    let error = train(&mut bench.compute, &plan, &files, &|| false).unwrap_err();
    assert!(matches!(error, TrainError::Provenance { .. }), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_an_error_and_not_a_fresh_start() {
    let mut bench = bench();
    let plan = plan(&bench, |_| {}, |_| {});
    let files = work(&bench, "r");
    std::fs::write(files.path().join("checkpoint.safetensors"), b"garbage").unwrap();
    assert!(train(&mut bench.compute, &plan, &files, &|| false).is_err());
}
