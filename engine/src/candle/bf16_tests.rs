//! The path that runs in bf16 on CUDA, on the CPU: every operation takes the type, and numbers stay near those in f32.

#![allow(clippy::unwrap_used)]

use super::backend::Backend;
use crate::{AdamW, Device, Engine, GenRequest, Pack, PackScores, PolicyDist, Trainer};
use candle_core::DType;
use quorum_core::types::{Purpose, SampleKey, Sampling};
use quorum_model::{AlphaMode, Checkpoint, EncodedPrompt, Partition, to_rgb};
use std::path::PathBuf;
use std::sync::Arc;

struct Subject {
    checkpoint: Checkpoint,
    weights: Vec<f32>,
    prompts: Vec<EncodedPrompt>,
}

fn subject(family: &str) -> Subject {
    let fixtures = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"));
    let checkpoint = Checkpoint::open(&fixtures.join(family)).unwrap();
    let weights = checkpoint.load_weights().unwrap();
    let picture = to_rgb(&image::open(fixtures.join("images/img_56x56.png")).unwrap(), AlphaMode::White);
    let encode = |text: &str, images: &[_]| checkpoint.processor.encode_prompt(text, images).unwrap();
    let sees = checkpoint.config.vision.is_some();
    let first = if sees { encode("<image>How many?", &[picture]) } else { encode("How many?", &[]) };
    let prompts = vec![first, encode("What is 3x + 7 when x = 5?", &[])];
    Subject { checkpoint, weights, prompts }
}

/// An engine that computes in `dtype` on the CPU.
fn engine(s: &Subject, dtype: DType) -> Engine {
    let parts = Partition::full(s.checkpoint.layout.clone());
    let mut engine =
        Engine::loader_on(Device::CandleCpu, &s.checkpoint.config, parts, false, 1).unwrap().finish().unwrap();
    engine.elsewhere = Some(Arc::new(Backend::of_type(&engine.plan, dtype).unwrap()));
    engine
}

fn objective(i: usize, s: &PackScores) -> Vec<Vec<f32>> {
    let row = |(c, l): (usize, &Vec<f32>)| (0..l.len()).map(|t| ((i * 5 + c * 3 + t) % 7) as f32 - 2.5).collect();
    s.logprobs.iter().enumerate().map(row).collect()
}

fn norm(x: impl Iterator<Item = f32>) -> f64 {
    x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn bf16_stays_near_f32_in_every_family() {
    for family in ["qwen2_5_vl", "qwen3_vl", "qwen2_vl", "llama_rope"] {
        let s = subject(family);
        let policy = PolicyDist { temperature: 0.9, ..PolicyDist::unmasked() };
        let completions: [&[u32]; 3] = [&[5, 9, 17, 40, 8], &[], &[61, 12]];
        let packs: Vec<Pack> =
            s.prompts.iter().map(|prompt| Pack { prompt, completions: completions.to_vec() }).collect();
        let run = |dtype| {
            let mut trainer = Trainer::new(engine(&s, dtype), 1, AdamW::default());
            let scores = trainer.accumulate(&s.weights, &packs, &policy, &objective).unwrap();
            (trainer.gradient().to_vec(), scores)
        };
        let ((narrow, scores), (wide, expected)) = (run(DType::BF16), run(DType::F32));
        let pairs = scores
            .iter()
            .zip(&expected)
            .flat_map(|(a, b)| a.logprobs.iter().flatten().zip(b.logprobs.iter().flatten()));
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let off = norm(narrow.iter().zip(&wide).map(|(a, b)| a - b)) / norm(wide.iter().copied());
        println!("{family}: log-probs {worst:.1e} nats, gradient {off:.1e} relative");
        assert!(worst > 0.0 && worst < 0.4, "{family}: a log-prob is {worst} nats off");
        assert!(off > 0.0 && off < 0.25, "{family}: the gradient is {off} off");
    }
}

/// The mismatch between rollout and training, which the learner exports.
#[test]
fn bf16_rollout_and_training_agree_to_its_rounding() {
    let s = subject("qwen2_5_vl");
    let engine = engine(&s, DType::BF16);
    let key = |sample| SampleKey { seed: 1, purpose: Purpose::Train, step: 0, prompt: 0, sample, view: 0 };
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, max_new_tokens: 30 };
    let request =
        |prompt| GenRequest { prompt, samples: (0..4).map(key).collect(), sampling, policy: PolicyDist::unmasked() };
    let groups: Vec<GenRequest> = s.prompts.iter().map(request).collect();
    let samples = engine.generate(&s.weights, &groups, &|| false).unwrap();
    let completions = |i: usize| samples[i].iter().map(|s| &s.tokens[..]).collect();
    let packs: Vec<Pack> =
        s.prompts.iter().enumerate().map(|(i, prompt)| Pack { prompt, completions: completions(i) }).collect();
    let scores = engine.score(&s.weights, &packs, &PolicyDist::unmasked()).unwrap();
    let trained = scores.iter().flat_map(|s| s.logprobs.iter().flatten());
    let pairs = samples.iter().flatten().flat_map(|s| &s.logprobs).zip(trained);
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("mismatch {worst:.1e} nats");
    assert!(worst < 0.15, "{worst}");
}
