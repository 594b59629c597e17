//! The recipe on a real model: not a pass-or-fail test, it prints what the recipe does.
//!
//! `HONE_MODEL=<model dir> cargo test --release -p hone-trainer recipe -- --ignored --nocapture`;
//! `HONE_RL` sets the weight of the reward term, `HONE_UPDATES` the number of updates.

use super::*;
use crate::compute::{CpuCompute, Rollout, SampleParams};
use crate::sample::hint;
use crate::sample::render::Renderer;
use crate::testing::train_policy;
use hone_model::chat::Asked;
use hone_shared::turn::TurnId;
use serde_json::json;
use std::path::Path;

const HINT: &str = "That is too long. Answer in one short sentence, without lists or bold text.";
const TRAIN: [&str; 6] = [
    "How do I make a good cup of tea?",
    "Why is the sky blue?",
    "What should I pack for a weekend trip?",
    "How does a bicycle stay upright?",
    "What are the benefits of walking every day?",
    "How can I sleep better at night?",
];
const HELD_OUT: [&str; 4] = [
    "How do I keep my houseplants alive?",
    "Why do leaves change colour in autumn?",
    "How do I learn a new language?",
    "What makes bread rise?",
];

fn env(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn prompts(renderer: &Renderer, questions: &[&str]) -> Vec<Vec<u32>> {
    let one = |q: &&str| {
        let messages = [json!({"role": "user", "content": q})];
        renderer.prompt("/v1/chat/completions", &Asked::undated(&messages)).unwrap()
    };
    questions.iter().map(one).collect()
}

fn show(what: &str, renderer: &Renderer, groups: &[Vec<Rollout>]) {
    let all: Vec<&Rollout> = groups.iter().flatten().collect();
    let tokens: usize = all.iter().map(|r| r.tokens.len()).sum();
    let ended = all.iter().filter(|r| r.ended).count();
    let n = all.len() as f64;
    println!("{what}: {:.1} tokens, {:.2} ended", tokens as f64 / n, ended as f64 / n);
    println!("  {:?}", renderer.text(&all[0].tokens));
}

#[test]
#[ignore = "needs a real model and minutes of CPU"]
fn recipe_on_a_real_model() {
    let Ok(dir) = std::env::var("HONE_MODEL") else { return };
    let dir = Path::new(&dir);
    let renderer = Renderer::from_dir(dir).unwrap();
    let mut compute = CpuCompute::new(dir, env("HONE_THREADS", 0.0) as usize).unwrap();
    let mut policy = train_policy();
    (policy.rank, policy.alpha, policy.learning_rate) = (16, 32.0, 1e-3);
    (policy.replies, policy.reply_tokens_max, policy.temperature) = (2, 96, 0.7);
    policy.updates = env("HONE_UPDATES", 5.0) as usize;
    policy.weight_rl = env("HONE_RL", 1.0);
    let params =
        SampleParams { temperature: 0.7, tokens_max: 96, eos: renderer.eos().to_vec(), seed: 4 };
    let live = compute.sample(None, &prompts(&renderer, &TRAIN), 1, &params).unwrap();
    let sample = |(question, replies): (&&str, &Vec<Rollout>)| {
        let messages = [json!({"role": "user", "content": question})];
        let hinted = hint::enhance(&messages, "[user's hint / instruction]", HINT);
        let path = "/v1/chat/completions";
        Sample {
            turn_id: TurnId::now(),
            session_id: (*question).into(),
            generation: Generation::base(),
            prompt: renderer.prompt(path, &Asked::undated(&messages)).unwrap(),
            teachers: vec![renderer.prompt(path, &Asked::undated(&hinted)).unwrap()],
            response: replies[0].tokens.clone(),
            ended: replies[0].ended,
            reward: -1.0,
            demonstration: None,
        }
    };
    let samples: Vec<Sample> = TRAIN.iter().zip(&live).map(sample).collect();
    let teacher: Vec<Vec<u32>> =
        samples.iter().filter_map(|s| s.teachers.first().cloned()).collect();
    show("teacher", &renderer, &compute.sample(None, &teacher, 2, &params).unwrap());
    let held_out = prompts(&renderer, &HELD_OUT);
    show("before", &renderer, &compute.sample(None, &held_out, 2, &params).unwrap());
    let plan = Plan {
        policy,
        samples,
        start: None,
        teacher: None,
        servers: BTreeMap::new(),
        model: renderer.model.clone(),
        eos: renderer.eos().to_vec(),
    };
    let files = tempfile::tempdir().unwrap();
    let work = WorkDir::open(files.path(), "r").unwrap();
    let end = train(&mut compute, &plan, &work, &|| false).unwrap();
    for line in work.metrics().unwrap() {
        println!("{}", serde_json::to_string(&line).unwrap());
    }
    let TrainEnd::Done(adapter) = end else { panic!("{end:?}") };
    show("after", &renderer, &compute.sample(Some(&adapter), &held_out, 4, &params).unwrap());
}
