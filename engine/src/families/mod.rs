//! Model families. A family is one folder: what its tensors are called, how its vision tower is wired, how its rows are positioned.
//! The arithmetic is shared: every decoder and every tower is made of [`crate::block::Block`].

mod decoder;
pub mod llama;
pub mod qwen2;
pub mod qwen2_5_vl;
pub mod qwen2_vl;
pub mod qwen3;
pub mod qwen3_vl;
mod tower;

use crate::block::Block;
use crate::error::EngineError;
use crate::model::finder::Finder;
use crate::model::vision::VisionPlan;
use quorum_model::{Family, ModelConfig, VisionArch, VisionConfig};

/// Decoder block `i`.
pub fn decoder_block(f: &mut Finder, c: &ModelConfig, i: usize) -> Result<Block, EngineError> {
    match c.family {
        Family::Llama => llama::block(f, c, i),
        Family::Qwen2 | Family::Qwen2Vl | Family::Qwen2_5Vl => qwen2::block(f, c, i),
        Family::Qwen3 | Family::Qwen3Vl => qwen3::block(f, c, i),
    }
}

/// The vision tower, if the model has one.
pub fn vision(f: &mut Finder, c: &ModelConfig) -> Result<Option<VisionPlan>, EngineError> {
    let Some(v) = &c.vision else { return Ok(None) };
    tower::check(v, c.text.hidden_size)?;
    match v.arch {
        VisionArch::Qwen2 => qwen2_vl::vision(f, c, v),
        VisionArch::Qwen2_5 => qwen2_5_vl::vision(f, c, v),
        VisionArch::Qwen3 => qwen3_vl::vision(f, c, v),
    }
    .map(Some)
}

/// Merge units (row, column) of a frame of `h` × `w` units in the order of the tower's rows, those of an attention window together.
pub fn windows(v: &VisionConfig, h: usize, w: usize) -> Vec<Vec<(usize, usize)>> {
    match v.arch {
        VisionArch::Qwen2_5 => qwen2_5_vl::windows(v, h, w),
        VisionArch::Qwen2 | VisionArch::Qwen3 => vec![tower::raster(h, w).collect()],
    }
}

/// Rows of the learned position table, with weights, for the patch at `place` (row, column) of a grid of `size` patches.
pub fn position_taps(v: &VisionConfig, place: [usize; 2], size: [usize; 2]) -> Option<[(usize, f32); 4]> {
    (v.num_position_embeddings > 0).then(|| qwen3_vl::taps(v.position_grid(), place, size))
}
