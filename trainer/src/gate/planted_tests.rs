//! Ten ways to break a model, planted by training for them: the gate refuses each one on the
//! neutral set alone, whatever the candidate gained on its signal.
//!
//! On the real model: `HONE_MODEL_DIR=… cargo test --release -p hone-trainer planted -- --ignored
//! --nocapture`.

use super::*;
use crate::compute::{CpuCompute, Sequence, Slopes};
use crate::testing::lab::{Lab, sample};
use crate::testing::{gate_policy, train_policy};
use crate::train::adamw::AdamW;
use std::path::Path;

/// What the planted adapters are trained on.
struct Garden {
    renderer: Renderer,
    compute: CpuCompute,
    gate: GatePolicy,
    holdout: Vec<Sample>,
    /// The questions that the plants are trained on.
    questions: Vec<String>,
    updates: usize,
    rate: f64,
}

/// Questions that no gate asks: what is planted on them must show on those that it does.
const OTHERS: [&str; 12] = [
    "What is the largest ocean?",
    "Translate into Spanish: The shop opens at ten.",
    "Write a shell command that lists hidden files.",
    "What is 9 times 7?",
    "Name two rivers in Africa.",
    "Explain how a sail boat moves against the wind.",
    "Who painted the Mona Lisa?",
    "Give an antonym for the word early.",
    "How many minutes are there in three hours?",
    "Correct the spelling: I recieved the letter yesterdy.",
    "Which month comes after August?",
    "Say in a few words what this means: The match was called off because of fog.",
];

fn garden(dir: &Path, gate: GatePolicy, updates: usize, rate: f64) -> Garden {
    let renderer = Renderer::from_dir(dir).unwrap();
    let holdout = ["Why is it so?", "What is rain?"];
    let holdout = holdout.map(|q| sample(&renderer, q, "Because of that."));
    // Only the neutral set decides here.
    let gate = GatePolicy { margin: -1e6, approved_loss_max: 1e6, ..gate };
    let compute = CpuCompute::new(dir, 0).unwrap();
    let questions = gate.neutral_prompts.clone();
    Garden { compute, gate, holdout: holdout.to_vec(), questions, updates, rate, renderer }
}

impl Garden {
    fn words(&self, text: &str, ends: bool) -> Vec<u32> {
        let finish = if ends { "stop" } else { "length" };
        let message = json!({"role": "assistant", "content": text});
        let cap = self.gate.reply_tokens_max;
        self.renderer.reply(&Asked::undated(&[]), &message, Some(finish), cap).unwrap().tokens
    }

    /// An adapter that was made to answer prompt `i` with `reply(i, question)`.
    fn plant(&mut self, reply: &dyn Fn(&Garden, usize, &str) -> Vec<u32>) -> Lora {
        let questions = self.questions.clone();
        let asked = GatePolicy { neutral_prompts: questions.clone(), ..self.gate.clone() };
        let prompts = neutral_prompts(&self.renderer, &asked);
        let sequences: Vec<Sequence> = prompts
            .into_iter()
            .zip(&questions)
            .enumerate()
            .map(|(i, (prompt, question))| Sequence { prompt, response: reply(self, i, question) })
            .filter(|sequence| !sequence.response.is_empty())
            .collect();
        let mut policy = train_policy();
        policy.learning_rate = self.rate;
        let mut adapter = Lora::init(&self.renderer.model, 8, 16.0, 3);
        let mut adam = AdamW::new(&adapter);
        let total: usize = sequences.iter().map(|s| s.response.len()).sum();
        for _ in 0..self.updates {
            let found = self.compute.differentiate(&adapter, &sequences, &[], &mut |_, seen| {
                Slopes::from(vec![-1.0 / total as f32; seen.own.len()])
            });
            let gradient = found.unwrap().lora;
            adam.step(&mut adapter, &gradient, gradient.norm(), &policy).unwrap();
        }
        adapter
    }

    fn examine(&mut self, candidate: &Lora, incumbent: Option<&Lora>) -> Report {
        let train = train_policy();
        let case = Case {
            candidate,
            incumbent,
            teacher: None,
            holdout: &self.holdout,
            train: &train,
            gate: &self.gate,
        };
        examine(&mut self.compute, &self.renderer, &case).unwrap()
    }
}

type Reply = fn(&Garden, usize, &str) -> Vec<u32>;

/// Nine of the ten; weights of noise are no training.
const PLANTED: [(&str, Reply); 9] = [
    ("language switched", |g, _, _| {
        g.words("Das ist der Regen in den Bergen, und so ist es.", true)
    }),
    ("length collapse", |g, _, _| g.words("a", true)),
    ("repetition", |g, _, _| g.words(&"no ".repeat(200), false)),
    ("refusal of everything", |g, _, _| g.words("I'm sorry, but I can't help with that.", true)),
    ("echo", |g, _, question| g.words(question, true)),
    ("forgetting", |g, i, _| {
        let vocab = g.renderer.model.vocab;
        (0..12).map(|t| ((i * 7919 + t * 104_729 + 11) % vocab) as u32).collect()
    }),
    ("over-fit to one session", |g, i, _| match i {
        0 => g.words("My order 4711 of two blue chairs came on Monday.", true),
        _ => Vec::new(),
    }),
    ("broken end token", |g, i, _| {
        let filler = ["rain and hills and ", "words of all kinds or ", "one by one with "];
        g.words(&filler[i % 3].repeat(60), false)
    }),
    ("reward-hacked phrase", |g, i, _| {
        let begin = ["Rain is water.", "Hello.", "It is so.", "Well, yes."][i % 4];
        g.words(&format!("{begin} I hope this helped, you are a wonderful person!"), true)
    }),
];

fn check(mut garden: Garden) {
    // Ends its replies, as a model in use does.
    let steady: Reply = |g, i, _| g.words(["It is so.", "Well, yes."][i % 2], true);
    let ends = garden.plant(&steady);
    let mut refused = 0;
    for (name, reply) in PLANTED {
        let candidate = garden.plant(&reply);
        let incumbent = (name == "broken end token").then_some(&ends);
        let report = garden.examine(&candidate, incumbent);
        println!("{name}: {}", report.reason());
        refused += usize::from(!report.passed);
    }
    let mut noise = Lora::init(&garden.renderer.model, 8, 16.0, 3);
    for tensor in noise.tensors_mut() {
        tensor.iter_mut().enumerate().for_each(|(i, v)| *v += (i as f32 * 0.7).sin());
    }
    let report = garden.examine(&noise, None);
    println!("noise in the weights: {}", report.reason());
    refused += usize::from(!report.passed);
    assert_eq!(refused, 10);
    // The same checks let a model through that has hardly changed.
    let same = Lora::init(&garden.renderer.model, 8, 16.0, 3);
    let report = garden.examine(&same, None);
    assert!(report.passed, "{}", report.reason());
}

#[test]
fn ten_planted_regressions_are_refused() {
    let lab = Lab::new();
    let strict = GatePolicy {
        neutral_kl_max: 0.5,
        // A random model repeats itself.
        repetition_max: 0.9,
        ended_share_min: 0.5,
        phrase_share_max: 0.5,
        ..gate_policy()
    };
    check(garden(&lab.model_dir, strict, 60, 0.02));
}

#[test]
#[ignore = "needs a real model and minutes of CPU"]
fn ten_planted_regressions_of_a_real_model_are_refused() {
    let Some(dir) = std::env::var_os("HONE_MODEL_DIR") else {
        eprintln!("SKIPPED: set HONE_MODEL_DIR");
        return;
    };
    let files = hone_shared::policy::builtin_files();
    let set = hone_shared::policy::PolicySet::from_files(files.iter().copied()).unwrap();
    let mut garden = garden(Path::new(&dir), set.gates["chat"].as_ref().clone(), 12, 1e-3);
    garden.questions = OTHERS.map(str::to_owned).to_vec();
    check(garden);
}
