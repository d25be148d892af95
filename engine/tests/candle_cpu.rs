//! The `cpu` backend against the candle reference: log-probs, entropies and the gradients of every tensor on random packs.
//!
//! The two share no code below the request types: candle runs every completion as a sequence of its own and differentiates by itself.
#![cfg(test)]
#![cfg(feature = "candle")]

mod candle_support;

use candle_support::{Rng, device, fixture::Fixture, max_abs_diff, pack, policy, random_completions, random_factors};
use candle_support::{random_prompt, random_weights, small_text, small_vl, worst_tensor};
use quorum_engine::candle::CandleModel;
use quorum_engine::{AdamW, Engine, Pack, PolicyDist, Trainer};
use quorum_model::{EncodedPrompt, Layout, ModelConfig};
use std::sync::Arc;

/// Largest ‖cpu − candle‖ / ‖candle‖ of a tensor's gradient.
const GRADIENT: f64 = 1e-4;
/// Largest distance of a log-prob or an entropy, nats.
const SCORE: f32 = 1e-4;

struct Case {
    prompt: EncodedPrompt,
    completions: Vec<Vec<u32>>,
    factors: Vec<Vec<f32>>,
}

impl Case {
    fn new(config: &ModelConfig, seed: u64, grids: &[[usize; 3]], lengths: &[usize]) -> Self {
        let mut rng = Rng(seed);
        let prompt = random_prompt(config, &mut rng, grids);
        let completions = random_completions(&mut rng, lengths);
        let factors = random_factors(&mut rng, &completions);
        Self { prompt, completions, factors }
    }
}

/// All cases go through the trainer at once, over two lanes and two threads; candle takes them one by one.
fn check(what: &str, config: &ModelConfig, layout: &Arc<Layout>, slab: &[f32], cases: &[Case], policy: &PolicyDist) {
    let candle = CandleModel::new(config, layout.clone(), slab, &device()).unwrap();
    let packs: Vec<Pack> = cases.iter().map(|case| pack(&case.prompt, &case.completions)).collect();
    let mut trainer = Trainer::new(Engine::new(config, layout.clone(), 2).unwrap(), 2, AdamW::default());
    let scores = trainer.accumulate(slab, &packs, policy, &|i, _| cases[i].factors.clone()).unwrap();

    let mut expected = vec![0.0f32; layout.total()];
    let mut worst_score = 0.0f32;
    for ((case, pack), scores) in cases.iter().zip(&packs).zip(&scores) {
        let reference = candle.score(pack, policy).unwrap();
        for (found, expected) in [(&scores.logprobs, &reference.logprobs), (&scores.entropy, &reference.entropy)] {
            assert_eq!(found.len(), expected.len());
            worst_score = found.iter().zip(expected).map(|(f, e)| max_abs_diff(f, e)).fold(worst_score, f32::max);
        }
        let gradient = candle.gradient(pack, policy, &case.factors).unwrap();
        expected.iter_mut().zip(gradient).for_each(|(sum, part)| *sum += part);
    }
    let (distance, tensor) = worst_tensor(layout, trainer.gradient(), &expected);
    println!("{what}: scores {worst_score:.1e} nats, gradient {distance:.1e} relative at {tensor}");
    assert!(worst_score <= SCORE, "{what}: a score is {worst_score} nats off");
    assert!(distance <= GRADIENT, "{what}: the gradient of {tensor} is {distance} off");
}

fn check_small(what: &str, config: ModelConfig, seed: u64, grids: &[&[[usize; 3]]]) {
    let (layout, slab) = random_weights(&config, seed);
    let lengths: [&[usize]; 4] = [&[5, 1, 3], &[4], &[0, 7, 2, 2], &[6, 6]];
    let cases = grids.iter().enumerate().map(|(i, grids)| Case::new(&config, seed + 10 + i as u64, grids, lengths[i]));
    let cases: Vec<Case> = cases.collect();
    check(&format!("{what}, temperature 0.7"), &config, &layout, &slab, &cases, &policy());
    check(&format!("{what}, unmasked"), &config, &layout, &slab, &cases, &PolicyDist::unmasked());
}

#[test]
fn untied_vision_language_model_agrees() {
    check_small("untied", small_vl(false), 21, &[&[[1, 4, 6]], &[[1, 6, 4], [1, 4, 4]], &[[1, 2, 2]], &[]]);
}

#[test]
fn tied_vision_language_model_agrees() {
    check_small("tied", small_vl(true), 22, &[&[[1, 8, 10]], &[], &[[1, 6, 6], [1, 2, 8]], &[[1, 4, 4]]]);
}

/// Two temporal frames: full attention stays inside a frame.
#[test]
fn several_frames_agree() {
    check_small("two frames", small_vl(true), 23, &[&[[2, 4, 6]]]);
}

#[test]
fn text_only_model_agrees() {
    check_small("text", small_text(), 24, &[&[], &[], &[], &[]]);
}

/// The published shapes with trained-like scales: prompts of the parity fixture, random completions.
#[test]
fn fixture_model_agrees() {
    let fixture = Fixture::open();
    let checkpoint = &fixture.checkpoint;
    let mut rng = Rng(25);
    let cases = ["img100", "two_images", "text_only"].map(|name| {
        let completions = random_completions(&mut rng, &[9, 4]);
        let factors = random_factors(&mut rng, &completions);
        Case { prompt: fixture.prompt(name), completions, factors }
    });
    let forbidden = checkpoint.processor.forbidden_tokens();
    assert!(forbidden.contains(&checkpoint.config.image_token_id.unwrap()));
    let policy = PolicyDist { temperature: 1.3, forbidden, stop: checkpoint.processor.stop_tokens().to_vec() };
    check("fixture", &checkpoint.config, &checkpoint.layout, &fixture.slab, &cases, &policy);
}
