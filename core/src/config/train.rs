//! `[train]`: which parameters learn, and in which precision the policy computes.

use serde::{Deserialize, Serialize};

/// Parts of a model that can be frozen.
pub const PARTS: [&str; 3] = ["vision", "embeddings", "language"];
/// Linear layers of the language model that can carry adapters.
pub const LORA_TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Ranks above this are mistakes: adapters would outweigh the layers they adapt.
const MAX_RANK: u32 = 4096;

/// Precision of the weights the policy computes with. Arithmetic, gradients and optimiser are f32 in either case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    F32,
    /// Weights rounded to bf16 (nearest even) in workers and learner alike; the learner keeps the f32 masters.
    Bf16,
}

/// `[train]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// Parts that do not learn: "vision" (the tower with its merger), "embeddings" (embed_tokens and lm_head), "language" (the rest of the decoder).
    /// They cost neither gradient nor optimiser memory.
    pub freeze: Vec<String>,
    pub precision: Precision,
    /// Keep only each block's input for the backward pass and compute the rest again: less memory, about a third more time, same bits.
    pub checkpointing: bool,
    pub lora: LoraSection,
}

/// `[train.lora]`: low-rank adapters; all other weights are frozen then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraSection {
    /// Rank; 0 = no adapters.
    pub rank: u32,
    /// The update is scaled by alpha / rank.
    pub alpha: f32,
    /// Linear layers of the language model.
    pub targets: Vec<String>,
}

impl Default for LoraSection {
    fn default() -> Self {
        Self { rank: 0, alpha: 32.0, targets: LORA_TARGETS.map(str::to_owned).to_vec() }
    }
}

/// What is wrong with the section, one line each.
pub(super) fn mistakes(t: &TrainSection) -> Vec<String> {
    let mut wrong = Vec::new();
    for part in t.freeze.iter().filter(|p| !PARTS.contains(&p.as_str())) {
        wrong.push(format!("train.freeze: there is no part `{part}`; parts are {}", PARTS.join(", ")));
    }
    if t.lora.rank > 0 {
        if !t.freeze.is_empty() {
            wrong
                .push("train.freeze must be empty with train.lora.rank > 0: adapters freeze every other weight".into());
        }
        if t.lora.rank > MAX_RANK {
            wrong.push(format!("train.lora.rank is {}; it must be at most {MAX_RANK}", t.lora.rank));
        }
        if !(t.lora.alpha > 0.0 && t.lora.alpha.is_finite()) {
            wrong.push("train.lora.alpha must be above 0".into());
        }
        if t.lora.targets.is_empty() {
            wrong.push(format!("train.lora.targets must name a layer; layers are {}", LORA_TARGETS.join(", ")));
        }
    }
    for target in t.lora.targets.iter().filter(|x| !LORA_TARGETS.contains(&x.as_str())) {
        wrong.push(format!("train.lora.targets: there is no layer `{target}`; layers are {}", LORA_TARGETS.join(", ")));
    }
    wrong
}
