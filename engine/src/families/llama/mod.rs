//! Llama-style text (SmolLM2, TinyLlama, Llama 3): RMSNorm, SwiGLU, no biases unless `attention_bias` asks for them on q, k, v and o.
//! Frequencies of rope may be scaled (linear, Llama 3.1).

use super::decoder;
use crate::block::Block;
use crate::error::EngineError;
use crate::model::finder::Finder;
use quorum_model::ModelConfig;

/// Decoder block `i`.
pub fn block(f: &mut Finder, c: &ModelConfig, i: usize) -> Result<Block, EngineError> {
    decoder::block(f, c, i)
}
