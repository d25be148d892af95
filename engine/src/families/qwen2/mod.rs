//! Qwen2 and Qwen2.5 text, also the decoder of Qwen2-VL and Qwen2.5-VL: RMSNorm, biases on q, k and v, SwiGLU. With three axes of
//! positions (mrope) if the configuration has sections.

use super::decoder;
use crate::block::Block;
use crate::error::EngineError;
use crate::model::finder::Finder;
use quorum_model::ModelConfig;

/// Decoder block `i`.
pub fn block(f: &mut Finder, c: &ModelConfig, i: usize) -> Result<Block, EngineError> {
    decoder::block(f, c, i)
}
