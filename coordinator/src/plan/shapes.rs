//! A model's shapes as far as memory depends on them, taken from its configuration and tensor table.

use quorum_model::{Entry, Layout, ModelConfig};
use serde::Serialize;

/// Columns a weight panel is rounded up to (`engine/src/kernels/gemm.rs`, NR).
const PANEL: u64 = 32;

/// `n` rounded up to whole panels.
pub(super) fn padded(n: u64) -> u64 {
    n.div_ceil(PANEL) * PANEL
}

/// Blocks of one tower. Units: elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Blocks {
    pub count: u64,
    pub width: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    /// Columns of the first MLP product: gate and up together where the MLP is gated.
    pub up: u64,
    /// Columns that enter the second one.
    pub ffn: u64,
    /// q and k are normed head by head.
    pub qk_norm: bool,
}

impl Blocks {
    /// Columns of q, k and v together.
    pub fn qkv(&self) -> u64 {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of the attention's output.
    pub fn attended(&self) -> u64 {
        self.heads * self.head_dim
    }
}

/// The vision tower besides its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Vision {
    pub blocks: Blocks,
    /// Elements of a flattened patch.
    pub patch: u64,
    /// Patches that become one token.
    pub merge: u64,
    /// Width of a merged token before and after the merger.
    pub merged: u64,
    pub out: u64,
    /// Mergers: 1, and those that feed early decoder layers.
    pub mergers: u64,
}

/// Elements by part, in the order of the forward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    pub vision: u64,
    pub embedding: u64,
    pub decoder: u64,
    /// The output matrix where it is not the embedding.
    pub head: u64,
}

/// Everything the memory model needs of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shapes {
    /// Elements of all tensors.
    pub elements: u64,
    pub parts: Parts,
    /// Elements of the largest tensor.
    pub largest: u64,
    pub text: Blocks,
    pub vision: Option<Vision>,
    pub vocab: u64,
    pub max_positions: u64,
}

impl Shapes {
    /// Reads configuration and tensor table.
    pub fn of(config: &ModelConfig, layout: &Layout) -> Self {
        let t = &config.text;
        let text = Blocks {
            count: t.num_layers as u64,
            width: t.hidden_size as u64,
            heads: t.num_heads as u64,
            kv_heads: t.num_kv_heads as u64,
            head_dim: t.head_dim as u64,
            up: 2 * t.intermediate_size as u64,
            ffn: t.intermediate_size as u64,
            qk_norm: t.qk_norm,
        };
        let vision = config.vision.as_ref().map(|v| Vision {
            blocks: Blocks {
                count: v.depth as u64,
                width: v.hidden_size as u64,
                heads: v.num_heads as u64,
                kv_heads: v.num_heads as u64,
                head_dim: (v.hidden_size / v.num_heads.max(1)) as u64,
                up: v.intermediate_size as u64 * if v.arch.gated_mlp() { 2 } else { 1 },
                ffn: v.intermediate_size as u64,
                qk_norm: false,
            },
            patch: v.patch_dim() as u64,
            merge: (v.spatial_merge_size * v.spatial_merge_size) as u64,
            merged: v.merged_size() as u64,
            out: v.out_hidden_size as u64,
            mergers: 1 + v.deepstack_blocks.len() as u64,
        });
        let embedding = config.embedding_name();
        let visual = config.family.vision_prefix();
        let mut parts = Parts::default();
        for e in layout.entries() {
            let n = e.range.len() as u64;
            match e.name.as_str() {
                name if visual.is_some_and(|p| name.starts_with(p)) => parts.vision += n,
                name if name == embedding => parts.embedding += n,
                "lm_head.weight" => parts.head += n,
                _ => parts.decoder += n,
            }
        }
        Self {
            elements: layout.total() as u64,
            parts,
            largest: layout.entries().iter().map(|e| e.range.len() as u64).max().unwrap_or(0),
            text,
            vision,
            vocab: t.vocab_size as u64,
            max_positions: t.max_positions as u64,
        }
    }
}

/// Elements of the panels of a tensor that inputs are multiplied with; `None` for vectors and tables.
pub(super) fn panel_elements(config: &ModelConfig, entry: &Entry) -> Option<u64> {
    // Learned positions are added, not multiplied with; the embedding is a table unless it is the output matrix too.
    let table = entry.name == config.embedding_name() && !config.tie_word_embeddings;
    if entry.shape.len() < 2 || table || entry.name.ends_with("pos_embed.weight") {
        return None;
    }
    let n_out = entry.shape.first().copied().unwrap_or(1).max(1) as u64;
    Some(padded(n_out) * (entry.range.len() as u64 / n_out))
}
