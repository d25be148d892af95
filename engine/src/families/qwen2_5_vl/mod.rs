//! Qwen2.5-VL: a ViT with RMSNorm and SwiGLU whose blocks attend inside windows, except a few that see the whole frame; 2-D rope, one
//! merger. Its rows are in window order. The decoder is Qwen2's with mrope.

use super::tower;
use crate::error::EngineError;
use crate::mlp::{Act, Mlp};
use crate::model::finder::Finder;
use crate::model::vision::VisionPlan;
use quorum_model::{ModelConfig, VisionConfig};

/// The vision tower.
pub fn vision(f: &mut Finder, c: &ModelConfig, v: &VisionConfig) -> Result<VisionPlan, EngineError> {
    let (h, eps) = (v.hidden_size, v.norm_eps);
    let mut blocks = Vec::with_capacity(v.depth);
    let patch = f.linear(&[(&c.vision_name("patch_embed.proj.weight"), h)], v.patch_dim(), &[])?;
    for i in 0..v.depth {
        let name = |s: &str| format!("blocks.{i}.{s}");
        let norms = [tower::rms_norm(f, c, &name("norm1"), h, eps)?, tower::rms_norm(f, c, &name("norm2"), h, eps)?];
        let mlp = mlp(f, c, v, i)?;
        blocks.push(tower::block(f, c, v, i, norms, mlp)?);
    }
    let norm = tower::rms_norm(f, c, "merger.ln_q", h, eps)?;
    let merger = tower::merger(f, c, v, norm, ["merger.mlp.0".into(), "merger.mlp.2".into()])?;
    Ok(VisionPlan { config: v.clone(), patch, positions: None, blocks, merger, deepstack: Vec::new() })
}

/// SwiGLU with biases.
fn mlp(f: &mut Finder, c: &ModelConfig, v: &VisionConfig, i: usize) -> Result<Mlp, EngineError> {
    let name = |s: &str| c.vision_name(&format!("blocks.{i}.mlp.{s}"));
    let (h, m) = (v.hidden_size, v.intermediate_size);
    let weights = [name("gate_proj.weight"), name("up_proj.weight")];
    let biases = [name("gate_proj.bias"), name("up_proj.bias")];
    Ok(Mlp {
        up: f.linear(&[(&weights[0], m), (&weights[1], m)], h, &[&biases[0], &biases[1]])?,
        act: Act::SwiGlu,
        down: f.linear(&[(&name("down_proj.weight"), h)], m, &[&name("down_proj.bias")])?,
    })
}

/// Merge units of a frame, window after window; windows at the right and lower edge may be smaller.
pub fn windows(v: &VisionConfig, h: usize, w: usize) -> Vec<Vec<(usize, usize)>> {
    let side = v.window_size / v.spatial_merge_size / v.patch_size;
    let window = |(wi, wj): (usize, usize)| {
        let (top, left) = (wi * side, wj * side);
        tower::raster(side.min(h - top), side.min(w - left)).map(|(i, j)| (top + i, left + j)).collect()
    };
    tower::raster(h.div_ceil(side), w.div_ceil(side)).map(window).collect()
}
