//! A loaded fixture with a few groups to sample and train on.
#![allow(dead_code, clippy::unwrap_used)]

use quorum_core::types::{Purpose, SampleKey, Sampling};
use quorum_engine::{Engine, GenRequest, Pack, PolicyDist, Sample};
use quorum_model::{AlphaMode, Checkpoint, EncodedPrompt, to_rgb};
use std::path::PathBuf;

pub struct Model {
    pub checkpoint: Checkpoint,
    pub weights: Vec<f32>,
    pub prompts: Vec<EncodedPrompt>,
}

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

/// The fixtures of all families.
pub const FAMILIES: [&str; 7] =
    ["qwen2_5_vl", "qwen2_text", "qwen2_vl", "qwen3_text", "qwen3_vl", "llama_text", "llama_rope"];

/// The Qwen2.5-VL fixture with prompts of different images and lengths.
pub fn model() -> Model {
    model_of("qwen2_5_vl")
}

/// A fixture with prompts of different lengths, and of different images if the model sees.
pub fn model_of(name: &str) -> Model {
    let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
    let weights = checkpoint.load_weights().unwrap();
    let sees = checkpoint.config.vision.is_some();
    let image = |n: &str| to_rgb(&image::open(fixture("images").join(n)).unwrap(), AlphaMode::White);
    let encode = |text: &str, images: &[&str]| {
        let images: Vec<_> = images.iter().filter(|_| sees).map(|n| image(n)).collect();
        let text = if sees { text.to_owned() } else { text.replace("<image>", "") };
        checkpoint.processor.encode_prompt(&text, &images).unwrap()
    };
    let prompts = vec![
        encode("<image>How many red squares are there?", &["img_56x56.png"]),
        encode("<image>Find the angle. Choices: (A) 10 (B) 12", &["img_100x75.png"]),
        encode("What is 3x + 7 when x = 5?", &[]),
        encode(
            "Compare: <image><image>Which is larger? Think step by step, then answer.",
            &["img_84x56.png", "img_56x56.png"],
        ),
    ];
    Model { checkpoint, weights, prompts }
}

impl Model {
    pub fn engine(&self, threads: usize) -> Engine {
        Engine::new(&self.checkpoint.config, self.checkpoint.layout.clone(), threads).unwrap()
    }

    /// Temperature 0.9, no image or pad tokens, the model's stop tokens.
    pub fn policy(&self) -> PolicyDist {
        let p = &self.checkpoint.processor;
        PolicyDist { temperature: 0.9, forbidden: p.forbidden_tokens(), stop: p.stop_tokens().to_vec() }
    }

    /// A group of `n` samples of prompt `i`.
    pub fn request(&self, i: usize, n: u32, max_new_tokens: u32) -> GenRequest<'_> {
        let key = |sample| SampleKey { seed: 5, purpose: Purpose::Train, step: 3, prompt: i as u64, sample, view: 0 };
        let sampling = Sampling { temperature: 0.9, top_p: 1.0, top_k: 0, max_new_tokens };
        GenRequest { prompt: &self.prompts[i], samples: (0..n).map(key).collect(), sampling, policy: self.policy() }
    }

    /// Groups of every prompt, of different sizes and limits.
    pub fn requests(&self) -> Vec<GenRequest<'_>> {
        vec![self.request(0, 5, 40), self.request(1, 3, 70), self.request(2, 8, 25), self.request(3, 1, 33)]
    }

    pub fn generate(&self, threads: usize, groups: &[GenRequest]) -> Vec<Vec<Sample>> {
        self.engine(threads).generate(&self.weights, groups, &|| false).unwrap()
    }

    /// Samples as packs to train on.
    pub fn packs<'a>(&'a self, groups: &'a [GenRequest], samples: &'a [Vec<Sample>]) -> Vec<Pack<'a>> {
        groups
            .iter()
            .zip(samples)
            .map(|(g, s)| Pack { prompt: g.prompt, completions: s.iter().map(|s| &s.tokens[..]).collect() })
            .collect()
    }
}

/// Bits of all numbers, for exact comparison.
pub fn bits<'a>(rows: impl IntoIterator<Item = &'a Vec<f32>>) -> Vec<Vec<u32>> {
    rows.into_iter().map(|r| r.iter().map(|x| x.to_bits()).collect()).collect()
}
