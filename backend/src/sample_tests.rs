//! The sampler against hand-made logits.

use super::*;

fn bounds() -> Bounds {
    Bounds { context: 100, tokens_max: 50, end: 0, guarded: false }
}

fn draw(temperature: f32) -> Draw {
    Draw { temperature, ..Draw::default() }
}

#[test]
fn temperature_zero_takes_the_best_token_and_the_first_among_equals() {
    assert_eq!(choose(&[0.0, 3.0, 3.0, 1.0], &[], &draw(0.0), 0), Some(1));
}

#[test]
fn a_draw_depends_on_seed_and_position_only() {
    let logits: Vec<f32> = (0..64).map(|i| (i % 7) as f32 * 0.1).collect();
    let at = |seed, position| choose(&logits, &[], &Draw { seed, ..draw(1.0) }, position);
    let row = |seed| (0..32).map(|position| at(seed, position)).collect::<Vec<_>>();
    assert_eq!(row(1), row(1));
    assert_ne!(row(1), row(2));
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 2f32.ln(), 5f32.ln()];
    let mut counts = [0.0; 3];
    for position in 0..20_000 {
        let id = choose(&logits, &[], &Draw { seed: 7, ..draw(1.0) }, position).unwrap();
        counts[id as usize] += 1.0 / 20_000.0;
    }
    for (count, share) in counts.iter().zip([0.125f64, 0.25, 0.625]) {
        assert!((count - share).abs() < 0.015, "{counts:?}");
    }
}

#[test]
fn the_nucleus_keeps_the_smallest_set_with_enough_probability() {
    let logits = [1f32.ln(), 5f32.ln(), 3f32.ln(), 1f32.ln()];
    let kept = |draw: Draw| nucleus(&logits, &draw, &|l: f32| f64::from(l - 5f32.ln()).exp());
    assert_eq!(kept(Draw { top_p: 0.45, ..draw(1.0) }), [1]);
    assert_eq!(kept(Draw { top_p: 0.7, ..draw(1.0) }), [1, 2]);
    assert_eq!(kept(Draw { top_k: 2, ..draw(1.0) }), [1, 2]);
    assert_eq!(kept(Draw { min_p: 0.5, ..draw(1.0) }), [1, 2]);
    assert_eq!(kept(Draw { top_p: 0.0001, ..draw(1.0) }), [1]);
}

#[test]
fn a_wide_nucleus_is_found_beyond_the_first_few_hundred() {
    let logits = vec![0.0; 2000];
    let kept = nucleus(&logits, &Draw { top_p: 0.9, ..draw(1.0) }, &|l: f32| f64::from(l).exp());
    assert_eq!(kept.len(), 1800);
}

#[test]
fn penalties_count_the_reply_and_bias_moves_a_token() {
    let logits = [2.0, 1.9, 0.0];
    let penalty = Draw { presence_penalty: 0.5, ..draw(0.0) };
    assert_eq!(choose(&logits, &[], &penalty, 0), Some(0));
    assert_eq!(choose(&logits, &[0], &penalty, 1), Some(1));
    let bias = Draw { bias: vec![(2, 5.0), (99, 1.0)], ..draw(0.0) };
    assert_eq!(choose(&logits, &[], &bias, 0), Some(2));
}

#[test]
fn logprobs_are_natural_and_normalised_over_the_whole_vocabulary() {
    let (own, top) = logprobs(&[0.0, 3f32.ln()], 0, 5);
    assert!((own - 0.25f32.ln()).abs() < 1e-6);
    assert_eq!(top[0].0, 1);
    assert!((top[0].1 - 0.75f32.ln()).abs() < 1e-6);
    let (masked, _) = logprobs(&[f32::NEG_INFINITY, 0.0], 0, 0);
    assert_eq!(masked, -9999.0);
}

#[test]
fn the_reply_is_recorded_and_a_second_question_for_a_position_replaces_the_first() {
    let sampler = Sampler::new(draw(0.0), bounds());
    assert_eq!(sampler.pick(&[0.0, 1.0, 0.0], &[5, 6, 7]), 1);
    assert_eq!(sampler.prompt_tokens(), Some(3));
    assert_eq!(sampler.pick(&[0.0, f32::NEG_INFINITY, 1.0], &[5, 6, 7]), 2);
    assert_eq!(sampler.pick(&[0.0, 1.0, 0.0], &[5, 6, 7, 2]), 1);
    let ids: Vec<u32> = sampler.picked_since(0).iter().map(|picked| picked.id).collect();
    assert_eq!(ids, [2, 1]);
    assert_eq!(sampler.picked_since(1).len(), 1);
    assert!(sampler.picked_since(9).is_empty());
}

#[test]
fn the_end_is_forced_when_the_context_is_full_or_the_client_left() {
    let sampler = Sampler::new(draw(0.0), Bounds { context: 4, ..bounds() });
    assert_eq!(sampler.pick(&[0.0, 1.0], &[1, 1, 1]), 1);
    assert_eq!(sampler.tokens_limit(), 1);
    assert_eq!(sampler.pick(&[0.0, 1.0], &[1, 1, 1, 1]), 0);
    assert_eq!(sampler.picked_since(0).len(), 1);

    let sampler = Sampler::new(draw(0.0), bounds());
    sampler.cancel();
    assert_eq!(sampler.pick(&[0.0, 1.0], &[1]), 0);
    let guarded = Sampler::new(draw(0.0), Bounds { guarded: true, ..bounds() });
    guarded.cancel();
    assert_eq!(guarded.pick(&[0.0, 1.0], &[1]), 1);
}

#[test]
fn logits_that_are_no_numbers_end_the_reply_and_are_noted() {
    let sampler = Sampler::new(draw(1.0), bounds());
    assert_eq!(sampler.pick(&[f32::NAN, f32::NAN], &[1]), 0);
    assert!(sampler.is_broken());
}
