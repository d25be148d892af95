//! The candle backend against the `cpu` backend on the CPU: logits, scores, gradients of every family, adapters and frozen parts, and the
//! tokens that both sample. The code is that of the CUDA path; the device is not.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "candle")]

mod candle_support;
mod common;

use candle_support::{device, max_abs_diff, worst_tensor};
use common::{ADAPTED, FAMILIES, Model, fixture, loaded, lora, model_of, objective};
use quorum_core::config::{Precision, TrainSection};
use quorum_engine::{AdamW, Device, Engine, GenRequest, Pack, PackScores, Sample, Trainer, VisionTrace};
use quorum_model::{Checkpoint, Layout};
use std::path::PathBuf;

/// Largest relative distance of a tensor's gradient; largest distance of a log-prob, entropy or logit, nats.
const GRADIENT: f64 = 2e-4;
const SCORE: f32 = 2e-4;

fn engine(on: Device, m: &Model, train: &TrainSection, threads: usize) -> Engine {
    device();
    loaded(on, &m.checkpoint, &m.weights, train, false, threads).unwrap()
}

fn sampled<'a>(m: &'a Model, e: &Engine, slab: &[f32]) -> (Vec<GenRequest<'a>>, Vec<Vec<Sample>>) {
    let groups = vec![m.request(0, 3, 12), m.request(1, 2, 40), m.request(3, 2, 9), m.request(2, 4, 20)];
    let samples = e.generate(slab, &groups, &|| false).unwrap();
    (groups, samples)
}

fn assert_scores(what: &str, found: &[PackScores], expected: &[PackScores]) {
    let both = found.iter().zip(expected);
    let rows = both.flat_map(|(f, e)| [(&f.logprobs, &e.logprobs), (&f.entropy, &e.entropy)]);
    let worst = rows.flat_map(|(f, e)| f.iter().zip(e)).map(|(f, e)| max_abs_diff(f, e)).fold(0.0, f32::max);
    assert!(found.len() == expected.len() && worst <= SCORE, "{what}: a score is {worst} nats off");
}

/// Scores and gradients of both backends on packs sampled by the `cpu` backend.
fn compare(what: &str, m: &Model, train: &TrainSection, checkpointing: bool) -> Vec<f32> {
    let (cpu, candle) = (engine(Device::Cpu, m, train, 2), engine(Device::CandleCpu, m, train, 1));
    let slab = m.slab(&cpu);
    let (groups, samples) = sampled(m, &cpu, &slab);
    let packs = m.packs(&groups, &samples);
    assert_scores(
        what,
        &candle.score(&slab, &packs, &m.policy()).unwrap(),
        &cpu.score(&slab, &packs, &m.policy()).unwrap(),
    );
    let gradient = |e: Engine| {
        let mut t = Trainer::new(e, 2, AdamW::default()).with_checkpointing(checkpointing);
        let scores = t.accumulate(&slab, &packs, &m.policy(), &objective).unwrap();
        (t.gradient().to_vec(), scores)
    };
    let layout = cpu.layout().clone();
    let ((found, scores), (expected, reference)) = (gradient(candle), gradient(cpu));
    assert_scores(what, &scores, &reference);
    let (distance, tensor) = worst_tensor(&layout, &found, &expected);
    println!("{what}: gradient {distance:.1e} relative at {tensor}");
    assert!(distance <= GRADIENT, "{what}: the gradient of {tensor} is {distance} off");
    assert_every_tensor_learns(what, &layout, &found);
    found
}

/// The guard against a cut graph or a forgotten product.
fn assert_every_tensor_learns(what: &str, layout: &Layout, gradient: &[f32]) {
    for e in layout.entries() {
        let norm: f64 = gradient[e.range.clone()].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 1e-7 && norm.is_finite(), "{what}: {} has gradient norm {norm}", e.name);
    }
}

#[test]
fn scores_and_gradients_of_every_family_agree() {
    for name in FAMILIES {
        compare(name, &model_of(name), &TrainSection::default(), false);
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    let m = model_of("qwen3_vl");
    let kept = compare("kept", &m, &TrainSection::default(), false);
    assert!(kept == compare("again", &m, &TrainSection::default(), true));
}

#[test]
fn adapters_frozen_parts_and_rounded_weights_agree() {
    let freeze = |parts: &[&str]| TrainSection {
        freeze: parts.iter().map(|p| p.to_string()).collect(),
        ..TrainSection::default()
    };
    for family in ["qwen2_5_vl", "qwen3_text"] {
        let m = model_of(family);
        compare("some adapters", &m, &lora(3, &["q_proj", "v_proj", "down_proj"]), false);
        compare("all adapters", &m, &lora(3, &ADAPTED), true);
        compare("bf16", &m, &TrainSection { precision: Precision::Bf16, ..TrainSection::default() }, false);
        compare("no embeddings", &m, &freeze(&["embeddings"]), false);
    }
    let m = model_of("qwen3_vl");
    compare("vision frozen", &m, &freeze(&["vision"]), false);
    compare("tower alone", &m, &freeze(&["language", "embeddings"]), false);
}

#[test]
fn logits_agree() {
    for name in FAMILIES {
        let m = model_of(name);
        let logits = |on| engine(on, &m, &TrainSection::default(), 1).logits(&m.weights, &m.prompts[3]).unwrap();
        let worst = max_abs_diff(&logits(Device::CandleCpu), &logits(Device::Cpu));
        assert!(worst <= SCORE, "{name}: a logit is {worst} off");
    }
}

#[test]
fn stages_of_every_tower_agree() {
    for name in ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"] {
        let m = model_of(name);
        let images: Vec<_> = m.prompts.iter().flat_map(|p| &p.images).collect();
        let trace = |on| engine(on, &m, &TrainSection::default(), 1).vision_trace(&m.weights, &images).unwrap();
        let (found, expected) = (trace(Device::CandleCpu), trace(Device::Cpu));
        let stages = |t: &VisionTrace| {
            [vec![t.patch_embed.clone(), t.out.clone()], t.blocks.clone(), t.deepstack.clone()].concat()
        };
        for (stage, (f, e)) in stages(&found).iter().zip(stages(&expected)).enumerate() {
            let worst = max_abs_diff(f, &e);
            assert!(worst <= SCORE, "{name}: stage {stage} is {worst} off");
        }
    }
}

fn bundled() -> Model {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/model"));
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let weights = checkpoint.load_weights().unwrap();
    let image = |n: &str| {
        let picture = image::open(fixture("images").join(n)).unwrap();
        quorum_model::to_rgb(&picture, quorum_model::AlphaMode::White)
    };
    let encode = |name: &str| checkpoint.processor.encode_prompt("<image>What digit?", &[image(name)]).unwrap();
    let prompts = ["img_56x56.png", "img_100x75.png", "img_84x56.png", "img_56x56.png"].map(encode).to_vec();
    Model { checkpoint, weights, prompts }
}

#[test]
fn the_bundled_model_agrees() {
    compare("bundled", &bundled(), &TrainSection::default(), false);
}

/// Tokens may part only where two of them are as good as tied; with these numbers they never do.
#[test]
fn samples_are_those_of_the_cpu_backend() {
    let models: Vec<Model> = FAMILIES.iter().map(|n| model_of(n)).chain([bundled()]).collect();
    for m in &models {
        let (cpu, candle) = (
            engine(Device::Cpu, m, &TrainSection::default(), 2),
            engine(Device::CandleCpu, m, &TrainSection::default(), 1),
        );
        for (temperature, top_p, top_k) in [(0.0, 1.0, 0), (0.9, 1.0, 0), (0.6, 1.0, 0), (0.9, 0.8, 0), (0.9, 1.0, 5)] {
            // More tokens than the cache has room for at first; groups of several sizes and limits.
            let mut groups = vec![m.request(0, 5, 40), m.request(1, 3, 80), m.request(2, 8, 25), m.request(3, 1, 33)];
            for g in &mut groups {
                (g.sampling.temperature, g.sampling.top_p, g.sampling.top_k) = (temperature, top_p, top_k);
            }
            let sample = |e: &Engine| e.generate(&m.weights, &groups, &|| false).unwrap();
            let (found, expected) = (sample(&candle), sample(&cpu));
            for (f, e) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert_eq!((&f.tokens, f.finish), (&e.tokens, e.finish), "temperature {temperature}");
                let worst = max_abs_diff(&f.logprobs, &e.logprobs);
                assert!(worst <= SCORE, "a log-prob is {worst} nats off");
            }
            assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [5, 3, 8, 1]);
        }
    }
}

/// What the learner recomputes is what the worker reported, up to the device's rounding.
#[test]
fn training_forward_recomputes_the_sampled_log_probs() {
    let m = model_of("qwen2_5_vl");
    let candle = engine(Device::CandleCpu, &m, &TrainSection::default(), 1);
    let (groups, samples) = sampled(&m, &candle, &m.weights);
    let scores = candle.score(&m.weights, &m.packs(&groups, &samples), &m.policy()).unwrap();
    for (s, score) in samples.iter().flatten().zip(scores.iter().flat_map(|s| &s.logprobs)) {
        assert!(max_abs_diff(&s.logprobs, score) <= 1e-4);
    }
}

#[test]
fn requests_are_refused_as_on_the_cpu() {
    let m = model_of("qwen2_text");
    let candle = engine(Device::CandleCpu, &m, &TrainSection::default(), 1);
    let pack = |c: Vec<&'static [u32]>| Pack { prompt: &m.prompts[0], completions: c };
    let policy = m.policy();
    assert!(candle.score(&m.weights, &[pack(vec![&[5, 100_000]])], &policy).is_err());
    assert!(candle.score(&m.weights[1..], &[pack(vec![&[5]])], &policy).is_err());
    let scores = candle.score(&m.weights, &[pack(vec![&[], &[5], &[5, 6, 8]]), pack(vec![])], &policy).unwrap();
    assert_eq!(scores[0].logprobs.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 3]);
    assert!(candle.score(&m.weights, &[pack(vec![])], &policy).unwrap()[0].logprobs.is_empty());
    let damaged = vec![f32::NAN; m.weights.len()];
    assert!(
        candle.score(&damaged, &[pack(vec![&[5]])], &policy).unwrap_err().to_string().contains("not a finite number")
    );
    let cancelled = candle.generate(&m.weights, &[m.request(0, 2, 9)], &|| true);
    assert!(matches!(cancelled, Err(quorum_engine::EngineError::Cancelled)));
}
