//! What the candle tests share: random small models and packs, the parity fixture, comparisons. No assertions about candle itself.
#![allow(dead_code)]

pub mod fixture;

use candle_core::Device;
use quorum_engine::{Pack, PolicyDist};
use quorum_model::{EncodedImage, EncodedPrompt, Layout, ModelConfig};
use std::sync::{Arc, Once};

/// The CPU, with candle held to one thread: its elementwise pool spins, which starves tests that run at the same time.
pub fn device() -> Device {
    static ONE_THREAD: Once = Once::new();
    // SAFETY: every use of candle in these tests starts here, and nothing else in the process changes the environment.
    ONE_THREAD.call_once(|| unsafe {
        std::env::set_var("RAYON_NUM_THREADS", "1");
        std::env::set_var("CANDLE_NUM_THREADS", "1");
    });
    Device::Cpu
}

/// splitmix64: enough for test data.
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in (−1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

pub const IMAGE: u32 = 38;
pub const VOCAB: usize = 41;

/// A small Qwen2.5-VL: windows of 2×2 merge units, blocks 0 and 2 windowed, 1 full, three kv groups of two heads.
pub fn small_vl(tied: bool) -> ModelConfig {
    let json = format!(
        r#"{{"model_type": "qwen2_5_vl", "hidden_act": "silu", "vocab_size": {VOCAB}, "hidden_size": 48, "intermediate_size": 56,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "rope_scaling": {{"type": "mrope", "mrope_section": [2, 1, 1]}}, "tie_word_embeddings": {tied},
        "vision_start_token_id": 36, "vision_end_token_id": 37, "image_token_id": {IMAGE}, "video_token_id": 39,
        "bos_token_id": 34, "eos_token_id": 35,
        "vision_config": {{"model_type": "qwen2_5_vl", "depth": 3, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 40,
        "num_heads": 2, "in_chans": 3, "out_hidden_size": 48, "patch_size": 4, "spatial_merge_size": 2, "window_size": 16,
        "fullatt_block_indexes": [1], "temporal_patch_size": 2}}}}"#
    );
    ModelConfig::from_json(json).unwrap()
}

/// A small text-only Qwen2 with untied embeddings: two kv groups of two heads of 12.
pub fn small_text() -> ModelConfig {
    let json = format!(
        r#"{{"model_type": "qwen2", "hidden_act": "silu", "vocab_size": {VOCAB}, "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 34, "eos_token_id": 35}}"#
    );
    ModelConfig::from_json(json).unwrap()
}

/// Random weights in which nothing is at a default value: norms around 1, biases not 0, matrices scaled by their width.
pub fn random_weights(config: &ModelConfig, seed: u64) -> (Arc<Layout>, Vec<f32>) {
    let layout = Layout::of(config);
    let mut rng = Rng(seed);
    let mut slab = vec![0.0; layout.total()];
    for entry in layout.entries() {
        let width: usize = entry.shape[1..].iter().product();
        for value in &mut slab[entry.range.clone()] {
            *value = match (entry.shape.len(), entry.name.ends_with("bias")) {
                (1, true) => 0.3 * rng.unit(),
                (1, false) => 1.0 + 0.3 * rng.unit(),
                _ => 2.0 * rng.unit() / (width as f32).sqrt(),
            };
        }
    }
    (Arc::new(layout), slab)
}

/// Text, the images (grids in patches) and more text; positions wander differently on each axis.
pub fn random_prompt(config: &ModelConfig, rng: &mut Rng, grids: &[[usize; 3]]) -> EncodedPrompt {
    let text = |rng: &mut Rng| rng.below(30) as u32;
    let mut ids: Vec<u32> = (0..3).map(|_| text(rng)).collect();
    let mut images = Vec::new();
    for &grid in grids {
        let vision = config.vision.as_ref().unwrap();
        let patches = grid.iter().product::<usize>();
        images.push(EncodedImage { grid, patches: rng.vec(patches * vision.patch_dim()) });
        ids.push(36);
        ids.extend(vec![IMAGE; patches / (vision.spatial_merge_size * vision.spatial_merge_size)]);
        ids.push(37);
    }
    ids.extend((0..4).map(|_| text(rng)));
    let n = ids.len() as i32;
    let positions = if config.vision.is_some() {
        [(); 3].map(|()| (0..n).map(|i| i + rng.below(4) as i32).collect())
    } else {
        [(); 3].map(|()| (0..n).collect())
    };
    EncodedPrompt { ids, positions, next_position: n + 2, images }
}

/// Completions of the given lengths, of tokens that `policy()` allows.
pub fn random_completions(rng: &mut Rng, lengths: &[usize]) -> Vec<Vec<u32>> {
    lengths.iter().map(|&n| (0..n).map(|_| rng.below(30) as u32).collect()).collect()
}

pub fn pack<'a>(prompt: &'a EncodedPrompt, completions: &'a [Vec<u32>]) -> Pack<'a> {
    Pack { prompt, completions: completions.iter().map(Vec::as_slice).collect() }
}

/// Temperature 0.7 and some forbidden tokens, one of them outside the vocabulary.
pub fn policy() -> PolicyDist {
    PolicyDist { temperature: 0.7, forbidden: vec![34, 36, 37, 38, 39, 999], stop: vec![35] }
}

/// Random dL/dlogp in the shape of the completions.
pub fn random_factors(rng: &mut Rng, completions: &[Vec<u32>]) -> Vec<Vec<f32>> {
    completions.iter().map(|completion| rng.vec(completion.len())).collect()
}

pub fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// The largest |a − b|; infinite if a number is not one.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.map(|d| if d.is_nan() { f32::INFINITY } else { d }).fold(0.0, f32::max)
}

/// The largest relative distance ‖a − b‖ / ‖b‖ of a tensor, with its name. Infinite where only `b` is 0 or a number is not one.
pub fn worst_tensor(layout: &Layout, a: &[f32], b: &[f32]) -> (f64, String) {
    let mut worst = (0.0, "any tensor".to_owned());
    for entry in layout.entries() {
        let (a, b) = (&a[entry.range.clone()], &b[entry.range.clone()]);
        let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        let distance = match (norm(&difference), norm(b)) {
            (0.0, _) => 0.0,
            (distance, size) if distance.is_finite() && size > 0.0 => distance / size,
            _ => f64::INFINITY,
        };
        if distance > worst.0 {
            worst = (distance, entry.name.clone());
        }
    }
    worst
}
