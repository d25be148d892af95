//! A loaded fixture with a few groups to sample and train on.
#![allow(dead_code, clippy::unwrap_used)]

use quorum_core::config::{LoraSection, TrainSection};
use quorum_core::types::{Purpose, SampleKey, Sampling};
use quorum_engine::{Devices, Engine, EngineError, GenRequest, Pack, PackScores, PolicyDist, Sample};
use quorum_model::{AlphaMode, Checkpoint, EncodedPrompt, Partition, RawTensor, SaveDtype, to_rgb};
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

    /// The trainable slab of `e`: the model's own tensors, and adapters whose B is not zero.
    pub fn slab(&self, e: &Engine) -> Vec<f32> {
        let mut slab = adapters(e);
        for entry in e.layout().entries() {
            if let Some(own) = self.checkpoint.layout.get(&entry.name) {
                slab[entry.range.clone()].copy_from_slice(&self.weights[own.range.clone()]);
            }
        }
        slab
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

/// All matrices that can have adapters.
pub const ADAPTED: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Training of adapters on these matrices.
pub fn lora(rank: u32, targets: &[&str]) -> TrainSection {
    let targets = targets.iter().map(|t| t.to_string()).collect();
    TrainSection { lora: LoraSection { rank, alpha: 6.0, targets }, ..TrainSection::default() }
}

/// An engine for `train` with the frozen ones of `weights`, a slab of the whole checkpoint.
pub fn loaded(
    on: impl Into<Devices>,
    checkpoint: &Checkpoint,
    weights: &[f32],
    train: &TrainSection,
    bf16: bool,
    threads: usize,
) -> Result<Engine, EngineError> {
    let parts = Partition::of(&checkpoint.config, &checkpoint.layout, train).unwrap();
    let mut loader = Engine::loader_on(on, &checkpoint.config, parts, bf16, threads)?;
    for e in checkpoint.layout.entries() {
        let bytes: Vec<u8> = weights[e.range.clone()].iter().flat_map(|x| x.to_le_bytes()).collect();
        loader.put(&e.name, &RawTensor::new(SaveDtype::F32, &bytes)).unwrap();
    }
    loader.finish()
}

/// A trainable slab with adapters whose B is not zero; all else is zero.
pub fn adapters(engine: &Engine) -> Vec<f32> {
    let mut slab = engine.partition().fresh_adapters(3);
    for e in engine.layout().entries().iter().filter(|e| e.name.contains("lora_B")) {
        for (i, x) in slab[e.range.clone()].iter_mut().enumerate() {
            *x = ((i * 37 + e.range.start) % 101) as f32 * 0.002 - 0.1;
        }
    }
    slab
}

/// Uneven dL/dlogp for pack `i`.
pub fn objective(i: usize, s: &PackScores) -> Vec<Vec<f32>> {
    let row = |(c, l): (usize, &Vec<f32>)| (0..l.len()).map(|t| ((i * 5 + c * 3 + t) % 7) as f32 - 2.5).collect();
    s.logprobs.iter().enumerate().map(row).collect()
}

/// Bits of all numbers, for exact comparison.
pub fn bits<'a>(rows: impl IntoIterator<Item = &'a Vec<f32>>) -> Vec<Vec<u32>> {
    rows.into_iter().map(|r| r.iter().map(|x| x.to_bits()).collect()).collect()
}
