//! Frozen parts and adapters: what learns gets the gradient it would get in full training, what does not costs none, and every bit of the
//! forward pass is the same in rollout, scoring and training.
#![allow(clippy::unwrap_used)]

mod common;

use common::{ADAPTED, Model, adapters, bits, loaded, lora, model_of, objective};
use quorum_core::config::{Precision, TrainSection};
use quorum_engine::{AdamW, Device, Engine, Pack, PackScores, Trainer};
use quorum_model::{Layout, Part, Partition, RawTensor, SaveDtype};

/// An engine of `train` with the frozen weights of `slab`, and the partition.
fn engine(m: &Model, slab: &[f32], train: &TrainSection, bf16: bool, threads: usize) -> Engine {
    loaded(Device::Cpu, &m.checkpoint, slab, train, bf16, threads).unwrap()
}

/// The trainable slab cut out of a whole one.
fn cut(layout: &Layout, all: &Layout, slab: &[f32]) -> Vec<f32> {
    layout.entries().iter().flat_map(|e| slab[all.get(&e.name).unwrap().range.clone()].to_vec()).collect()
}

/// W + scale · B·A for every adapter.
fn merged(m: &Model, engine: &Engine, slab: &[f32]) -> Vec<f32> {
    let mut out = m.weights.clone();
    let parts = engine.partition();
    for e in m.checkpoint.layout.entries() {
        let Some((a, b)) = parts.adapter(&e.name) else { continue };
        let (rank, n) = (a.shape[0], a.shape[1]);
        let (a, b) = (&slab[a.range.clone()], &slab[b.range.clone()]);
        for (i, w) in out[e.range.clone()].iter_mut().enumerate() {
            let sum: f64 = (0..rank).map(|r| f64::from(b[i / n * rank + r]) * f64::from(a[r * n + i % n])).sum();
            *w += (sum * f64::from(parts.lora.as_ref().unwrap().scale())) as f32;
        }
    }
    out
}

fn gradient(engine: Engine, slab: &[f32], m: &Model, packs: &[Pack]) -> (Vec<f32>, Vec<PackScores>) {
    let mut trainer = Trainer::new(engine, 2, AdamW::default());
    let scores = trainer.accumulate(slab, packs, &m.policy(), &objective).unwrap();
    (trainer.gradient().to_vec(), scores)
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn fresh_adapters_change_no_bit_of_the_policy() {
    for family in ["qwen2_5_vl", "qwen3_text"] {
        let m = model_of(family);
        let e = engine(&m, &m.weights, &lora(4, &ADAPTED), false, 2);
        let slab = e.partition().fresh_adapters(1);
        assert!(norm(&slab) > 0.1 && slab.len() * 3 < m.weights.len());
        assert_eq!(
            e.logits(&slab, &m.prompts[1]).unwrap(),
            m.engine(1).logits(&m.weights, &m.prompts[1]).unwrap(),
            "{family}"
        );
    }
}

#[test]
fn adapters_are_the_merged_model() {
    for (family, targets) in
        [("qwen2_5_vl", &ADAPTED[..]), ("qwen2_5_vl", &["k_proj", "up_proj"]), ("qwen2_text", &ADAPTED)]
    {
        let m = model_of(family);
        let e = engine(&m, &m.weights, &lora(3, targets), false, 1);
        let slab = adapters(&e);
        let ours = e.logits(&slab, &m.prompts[0]).unwrap();
        let want = m.engine(1).logits(&merged(&m, &e, &slab), &m.prompts[0]).unwrap();
        let plain = m.engine(1).logits(&m.weights, &m.prompts[0]).unwrap();
        let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(off(&plain, &want) > 0.05, "the adapters do something: {}", off(&plain, &want));
        assert!(off(&ours, &want) < 2e-4, "{family} {targets:?}: off by {}", off(&ours, &want));
    }
}

#[test]
fn rollout_logprobs_are_those_of_training_with_adapters() {
    for (family, bf16) in [("qwen2_5_vl", false), ("qwen3_text", true)] {
        let m = model_of(family);
        let e = engine(&m, &m.weights, &lora(5, &ADAPTED), bf16, 2);
        let slab = adapters(&e);
        let groups = m.requests();
        let samples = e.generate(&slab, &groups, &|| false).unwrap();
        let sampled = bits(samples.iter().flatten().map(|s| &s.logprobs));
        let packs = m.packs(&groups, &samples);
        let scores = e.score(&slab, &packs, &m.policy()).unwrap();
        assert_eq!(bits(scores.iter().flat_map(|s| &s.logprobs)), sampled, "{family}");
        assert_eq!(gradient(e, &slab, &m, &packs).1, scores);
        let alone = engine(&m, &m.weights, &lora(5, &ADAPTED), bf16, 1);
        for (g, want) in groups.iter().zip(&samples) {
            assert_eq!(&alone.generate(&slab, std::slice::from_ref(g), &|| false).unwrap()[0], want);
        }
    }
}

/// With G = dL/dW of the merged model: dA = scale · Bᵀ·G, dB = scale · G·Aᵀ.
#[test]
fn adapter_gradients_follow_from_the_merged_models() {
    let m = model_of("qwen2_5_vl");
    let e = engine(&m, &m.weights, &lora(3, &ADAPTED), false, 2);
    let (slab, parts) = (adapters(&e), e.partition().clone());
    let whole = merged(&m, &e, &slab);
    let (groups, samples) = sampled(&m);
    let packs = m.packs(&groups, &samples);
    let full = gradient(m.engine(2), &whole, &m, &packs).0;
    let ours = gradient(e, &slab, &m, &packs).0;
    let scale = f64::from(parts.lora.as_ref().unwrap().scale());
    for entry in m.checkpoint.layout.entries() {
        let Some((a, b)) = parts.adapter(&entry.name) else { continue };
        let (rank, n, rows) = (a.shape[0], a.shape[1], b.shape[0]);
        let (g, av, bv) = (&full[entry.range.clone()], &slab[a.range.clone()], &slab[b.range.clone()]);
        let da = (0..rank * n).map(|i| {
            (0..rows).map(|o| f64::from(bv[o * rank + i / n]) * f64::from(g[o * n + i % n])).sum::<f64>() * scale
        });
        let db = (0..rows * rank).map(|i| {
            (0..n).map(|k| f64::from(g[i / rank * n + k]) * f64::from(av[i % rank * n + k])).sum::<f64>() * scale
        });
        for (part, want) in [(a, da.collect::<Vec<_>>()), (b, db.collect())] {
            let ours = &ours[part.range.clone()];
            let off = ours.iter().zip(&want).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum::<f64>().sqrt();
            let size = want.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!(size > 1e-4 && off < 2e-3 * size, "{}: off by {off} of {size}", part.name);
        }
    }
}

fn sampled(m: &Model) -> (Vec<quorum_engine::GenRequest<'_>>, Vec<Vec<quorum_engine::Sample>>) {
    let groups = vec![m.request(0, 3, 12), m.request(1, 2, 30), m.request(2, 2, 9), m.request(3, 2, 12)];
    let samples = m.generate(2, &groups);
    (groups, samples)
}

#[test]
fn what_is_not_frozen_gets_the_gradient_of_full_training() {
    for (family, freeze) in [
        ("qwen2_5_vl", &["vision"][..]),
        ("qwen2_5_vl", &["vision", "embeddings"]),
        ("qwen2_5_vl", &["language", "embeddings"]),
        ("qwen2_text", &["embeddings"]),
        ("qwen3_vl", &["language"]),
    ] {
        let m = model_of(family);
        let train = TrainSection { freeze: freeze.iter().map(|s| s.to_string()).collect(), ..TrainSection::default() };
        let e = engine(&m, &m.weights, &train, false, 2);
        let slab = cut(e.layout(), &m.checkpoint.layout, &m.weights);
        assert!(slab.len() < m.weights.len());
        let (groups, samples) = sampled(&m);
        let packs = m.packs(&groups, &samples);
        let full = gradient(m.engine(2), &m.weights, &m, &packs);
        let layout = e.layout().clone();
        let ours = gradient(e, &slab, &m, &packs);
        assert_eq!(ours.1, full.1, "{family} {freeze:?}: scores");
        assert!(ours.0 == cut(&layout, &m.checkpoint.layout, &full.0), "{family} {freeze:?}: gradients differ");
        assert!(norm(&ours.0) > 0.0);
    }
}

#[test]
fn frozen_bf16_is_the_f32_engine_on_the_same_values() {
    for family in ["qwen2_5_vl", "qwen2_text"] {
        let m = model_of(family);
        let mut rounded = m.weights.clone();
        for e in m.checkpoint.layout.entries().iter().filter(|e| e.shape.len() > 1) {
            rounded[e.range.clone()].iter_mut().for_each(|x| *x = half(*x));
        }
        let train = lora(4, &ADAPTED);
        let (wide, narrow) = (engine(&m, &rounded, &train, false, 2), engine(&m, &m.weights, &train, true, 1));
        let slab = adapters(&wide);
        let (groups, samples) = sampled(&m);
        let packs = m.packs(&groups, &samples);
        let (a, b) = (gradient(wide, &slab, &m, &packs), gradient(narrow, &slab, &m, &packs));
        assert!(a == b && norm(&a.0) > 0.0, "{family}");
    }
}

#[test]
fn bf16_policy_computes_with_rounded_weights_everywhere() {
    let m = model_of("qwen2_5_vl");
    let train = TrainSection { precision: Precision::Bf16, ..TrainSection::default() };
    let e = engine(&m, &m.weights, &train, true, 2);
    let rounded: Vec<f32> = m.weights.iter().map(|x| half(*x)).collect();
    let (groups, samples) = sampled(&m);
    let packs = m.packs(&groups, &samples);
    let want = gradient(m.engine(1), &rounded, &m, &packs);
    assert!(gradient(e.clone(), &m.weights, &m, &packs) == want, "masters are rounded on the way in");
    assert!(gradient(e, &rounded, &m, &packs) == want, "what is rounded already stays");
}

fn half(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

#[test]
fn checkpointing_changes_no_bit() {
    ["qwen2_5_vl", "qwen3_vl", "llama_rope"].iter().for_each(|name| checkpointing(&model_of(name)));
}

fn checkpointing(m: &Model) {
    let (groups, samples) = sampled(m);
    let packs = m.packs(&groups, &samples);
    let run = |on: bool| {
        let mut t = Trainer::new(m.engine(2), 2, AdamW::default()).with_checkpointing(on);
        t.accumulate(&m.weights, &packs, &m.policy(), &objective).unwrap();
        t.gradient().to_vec()
    };
    assert!(run(true) == run(false));
}

#[test]
fn a_partition_holds_every_tensor_once_and_says_what_is_wrong() {
    let m = model_of("qwen2_5_vl");
    let (config, layout) = (&m.checkpoint.config, &m.checkpoint.layout);
    let train = TrainSection { freeze: vec!["vision".into()], ..TrainSection::default() };
    let parts = Partition::of(config, layout, &train).unwrap();
    assert_eq!(parts.frozen.total() + parts.trainable.total(), layout.total());
    for e in layout.entries() {
        let part = if e.name.starts_with("visual.") { Part::Frozen } else { Part::Trainable };
        assert_eq!(parts.get(&e.name).unwrap().0, part, "{}", e.name);
    }
    let all = ["vision", "embeddings", "language"].map(str::to_owned).to_vec();
    let nothing = TrainSection { freeze: all, ..TrainSection::default() };
    assert!(Partition::of(config, layout, &nothing).unwrap_err().to_string().contains("nothing"));
    let mut loader = Engine::loader(config, parts, false, 1).unwrap();
    assert!(loader.put("visual.merger.ln_q.weight", &RawTensor::new(SaveDtype::F32, &[0; 4])).is_err());
    assert!(loader.finish().err().unwrap().to_string().contains("visual."));
}
