//! Qwen2-VL: a ViT with LayerNorm, a two-layer MLP with the quick GELU and full attention inside a frame, 2-D rope, one merger.
//! The decoder is Qwen2's with mrope.

use super::tower;
use crate::error::EngineError;
use crate::model::finder::Finder;
use crate::model::vision::VisionPlan;
use quorum_model::{ModelConfig, VisionConfig};

/// The vision tower.
pub fn vision(f: &mut Finder, c: &ModelConfig, v: &VisionConfig) -> Result<VisionPlan, EngineError> {
    let (h, eps) = (v.hidden_size, v.norm_eps);
    let patch = f.linear(&[(&c.vision_name("patch_embed.proj.weight"), h)], v.patch_dim(), &[])?;
    let blocks = tower::layer_norm_blocks(f, c, v, ["mlp.fc1", "mlp.fc2"])?;
    let norm = tower::layer_norm(f, c, "merger.ln_q", h, eps)?;
    let merger = tower::merger(f, c, v, norm, ["merger.mlp.0".into(), "merger.mlp.2".into()])?;
    Ok(VisionPlan { config: v.clone(), patch, positions: None, blocks, merger, deepstack: Vec::new() })
}
