//! One model on several devices against the same model on one, all of them on the CPU: scores, gradients, tokens, and what each device holds.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "candle")]

mod candle_support;
mod common;

use candle_support::{max_abs_diff, worst_tensor};
use common::{ADAPTED, FAMILIES, Model, loaded, lora, model_of, objective};
use quorum_core::config::TrainSection;
use quorum_engine::{AdamW, Devices, Engine, EngineError, GenRequest, PackScores, Trainer};

/// Largest relative distance of a tensor's gradient; largest distance of a log-prob, entropy or logit.
const GRADIENT: f64 = 1e-5;
const SCORE: f32 = 1e-4;

fn try_engine(devices: usize, m: &Model, train: &TrainSection) -> Result<Engine, EngineError> {
    candle_support::device();
    let devices: Devices = vec!["candle-cpu"; devices].join("+").parse().unwrap();
    loaded(devices, &m.checkpoint, &m.weights, train, false, 1)
}

fn engine(devices: usize, m: &Model, train: &TrainSection) -> Engine {
    try_engine(devices, m, train).unwrap()
}

/// Largest distance of a log-prob or an entropy.
fn off(found: &[PackScores], expected: &[PackScores]) -> f32 {
    let rows = found.iter().zip(expected);
    let rows = rows.flat_map(|(f, e)| f.logprobs.iter().zip(&e.logprobs).chain(f.entropy.iter().zip(&e.entropy)));
    rows.map(|(f, e)| max_abs_diff(f, e)).fold(0.0, f32::max)
}

/// Everything an engine is asked for, on `count` devices and on one.
fn compare(what: &str, m: &Model, train: &TrainSection, count: usize, checkpointing: bool) {
    let (one, many) = (engine(1, m, train), engine(count, m, train));
    let slab = m.slab(&one);
    let logits = |e: &Engine| e.logits(&slab, &m.prompts[3]).unwrap();
    let logit = max_abs_diff(&logits(&many), &logits(&one));
    assert!(logit <= SCORE, "{what}: a logit is {logit} off");

    // Greedy, drawn, and with whole rows travelling.
    let mut groups: Vec<GenRequest> = vec![m.request(0, 3, 70), m.request(1, 2, 20), m.request(2, 4, 20)];
    groups[0].sampling.temperature = 0.0;
    groups[1].sampling.top_k = 5;
    let (found, samples) = (many.generate(&slab, &groups, &|| false).unwrap(), one.generate(&slab, &groups, &|| false));
    let samples = samples.unwrap();
    for (f, e) in found.iter().flatten().zip(samples.iter().flatten()) {
        assert_eq!((&f.tokens, f.finish), (&e.tokens, e.finish), "{what}");
        assert!(max_abs_diff(&f.logprobs, &e.logprobs) <= SCORE, "{what}");
    }

    let packs = m.packs(&groups, &samples);
    let train = |e: &Engine| {
        let mut t = Trainer::new(e.clone(), 2, AdamW::default()).with_checkpointing(checkpointing);
        let scores = t.accumulate(&slab, &packs, &m.policy(), &objective).unwrap();
        (t.gradient().to_vec(), scores)
    };
    let ((found, scores), (expected, reference)) = (train(&many), train(&one));
    let off = off(&scores, &reference).max(off(&many.score(&slab, &packs, &m.policy()).unwrap(), &reference));
    assert!(off <= SCORE, "{what}: a score is {off} nats off");
    let (distance, tensor) = worst_tensor(one.layout(), &found, &expected);
    println!("{what}: scores {off:.1e} nats, gradient {distance:.1e} relative at {tensor}");
    assert!(distance <= GRADIENT, "{what}: the gradient of {tensor} is {distance} off");
}

#[test]
fn two_and_four_devices_give_the_numbers_of_one() {
    for name in FAMILIES {
        let m = model_of(name);
        let heads = m.checkpoint.config.text.num_heads;
        for count in [2, 4].into_iter().filter(|n| heads.is_multiple_of(*n)) {
            compare(&format!("{name} on {count}"), &m, &TrainSection::default(), count, false);
        }
    }
}

#[test]
fn adapters_and_frozen_weights_are_shared_out() {
    for name in ["qwen2_5_vl", "qwen3_text"] {
        let m = model_of(name);
        compare(&format!("{name}, adapters"), &m, &lora(3, &ADAPTED), 2, true);
        let some = TrainSection { freeze: vec!["embeddings".into()], ..TrainSection::default() };
        compare(&format!("{name}, frozen embeddings"), &m, &some, 2, true);
    }
}

/// A block's matrices are divided by the number of devices; the rest is on each of them.
#[test]
fn a_device_holds_its_part_of_the_blocks() {
    for train in [TrainSection::default(), lora(3, &ADAPTED)] {
        let m = model_of("qwen3_text");
        let bytes = |count| {
            let engine = engine(count, &m, &train);
            engine.device_bytes(&m.slab(&engine)).unwrap()
        };
        let matrix = |name: &str| name.contains(".layers.") && name.contains("proj");
        let entries = m.checkpoint.layout.entries().iter();
        let blocks: usize = entries.filter(|e| matrix(&e.name)).map(|e| 4 * e.range.len()).sum();
        let (one, two) = (bytes(1), bytes(2));
        // With adapters, halves of those are on each device as well: they are small.
        let adapters = if train.lora.rank > 0 { one[0] - 4 * m.checkpoint.layout.total() } else { 0 };
        let expected = one[0] - blocks / 2;
        assert_eq!((two.len(), two[0]), (2, two[1]));
        assert!(two[0] <= expected && two[0] >= expected - adapters / 2, "{one:?} {two:?} {blocks} {adapters}");
    }
}

#[test]
fn a_number_of_devices_that_does_not_fit_is_refused_with_one_that_does() {
    let error = try_engine(3, &model_of("qwen3_text"), &TrainSection::default()).err().unwrap().to_string();
    assert!(error.contains("heads") && error.contains("3 devices") && error.contains("1, 2"), "{error}");
}

#[test]
fn a_refused_call_leaves_the_devices_ready_for_the_next() {
    let m = model_of("qwen2_text");
    let e = engine(2, &m, &TrainSection::default());
    let polls = std::sync::atomic::AtomicUsize::new(0);
    let groups = [m.request(0, 2, 9)];
    let third = || polls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 2;
    assert_eq!(e.generate(&m.weights, &groups, &third).unwrap_err(), EngineError::Cancelled);
    assert!(e.score(&m.weights[1..], &[], &m.policy()).is_err());
    let damaged = vec![f32::NAN; m.weights.len()];
    assert!(matches!(e.generate(&damaged, &groups, &|| false), Err(EngineError::NotFinite(_))));
    assert_eq!(e.generate(&m.weights, &groups, &|| false).unwrap()[0].len(), 2);
}
