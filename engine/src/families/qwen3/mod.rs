//! Qwen3 text, also the decoder of Qwen3-VL: like Qwen2 without biases, and every head of q and k is normed before rope. The heads
//! together need not be as wide as the residual stream.

use super::decoder;
use crate::block::Block;
use crate::error::EngineError;
use crate::model::finder::Finder;
use crate::qk_norm::QkNorm;
use quorum_model::ModelConfig;

/// Decoder block `i`.
pub fn block(f: &mut Finder, c: &ModelConfig, i: usize) -> Result<Block, EngineError> {
    let mut block = decoder::block(f, c, i)?;
    let norm =
        |f: &Finder, s: &str| f.tensor(&c.text_name(&format!("layers.{i}.self_attn.{s}.weight")), &[c.text.head_dim]);
    block.qk_norm = Some(QkNorm { q: norm(f, "q_norm")?, k: norm(f, "k_norm")?, eps: c.text.rms_norm_eps });
    Ok(block)
}
