//! The Qwen2 decoder with 1-D or three-axis (mrope) positions: embedding, image splice, causal blocks, final norm, LM head.

use super::error::CandleError;
use super::ops::{self, Rope};
use super::weights::Weights;
use candle_core::{DType, Device, Tensor};
use quorum_model::{ModelConfig, TextConfig};

/// Token ids, positions per axis (temporal, height, width), and which rows come from images.
pub(super) struct Sequence {
    pub ids: Vec<u32>,
    pub positions: [Vec<i32>; 3],
    /// Rows that take the image features, in order.
    pub image_rows: Vec<usize>,
}

/// Final hidden states after the last norm, `[n, hidden]`. `features`: rows of all images, `None` without images.
pub(super) fn hidden(
    config: &TextConfig,
    weights: &Weights,
    sequence: &Sequence,
    features: Option<&Tensor>,
    device: &Device,
    dtype: DType,
) -> Result<Tensor, CandleError> {
    let n = sequence.ids.len();
    let rope = rope(config, sequence, device, dtype)?;
    let causal = ops::mask(n, device, dtype, |i, j| j <= i)?;
    let mut x = embed(weights, sequence, features, device)?;
    for layer in 0..config.num_layers {
        x = block(config, weights, layer, &x, &rope, &causal)?;
    }
    Ok(ops::rms_norm(&x, weights.get("model.norm.weight")?, config.rms_norm_eps)?)
}

/// Logits `[n, vocab]` of final hidden states.
pub(super) fn head(config: &ModelConfig, weights: &Weights, hidden: &Tensor) -> Result<Tensor, CandleError> {
    let name = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
    Ok(ops::linear(hidden, weights.get(name)?, None)?)
}

/// Embeddings with the image rows replaced: both tables one below the other, and one look-up.
fn embed(
    weights: &Weights,
    sequence: &Sequence,
    features: Option<&Tensor>,
    device: &Device,
) -> Result<Tensor, CandleError> {
    let n = sequence.ids.len();
    let tokens =
        weights.get("model.embed_tokens.weight")?.index_select(&Tensor::from_slice(&sequence.ids, n, device)?, 0)?;
    let found = features.map_or(Ok(0), |f| f.dim(0))?;
    if found != sequence.image_rows.len() {
        let wanted = sequence.image_rows.len();
        return Err(CandleError::request(format!(
            "the prompt has {wanted} image tokens but its images give {found} features"
        )));
    }
    let Some(features) = features else { return Ok(tokens) };
    let mut source: Vec<u32> = (0..n as u32).collect();
    for (feature, &row) in sequence.image_rows.iter().enumerate() {
        source[row] = (n + feature) as u32;
    }
    Ok(Tensor::cat(&[&tokens, features], 0)?.index_select(&Tensor::from_vec(source, n, device)?, 0)?)
}

/// Rotary pair `i` turns with the axis whose section holds `i`; without sections, with axis 0.
fn rope(config: &TextConfig, sequence: &Sequence, device: &Device, dtype: DType) -> Result<Rope, CandleError> {
    let pairs = config.head_dim / 2;
    let mut axes: Vec<usize> =
        config.mrope_section.iter().enumerate().flat_map(|(axis, &len)| vec![axis; len]).collect();
    if axes.is_empty() {
        axes = vec![0; pairs];
    }
    if axes.len() != pairs || axes.iter().any(|&axis| axis > 2) {
        return Err(CandleError::shape(format!(
            "mrope_section {:?} does not cover {pairs} rotary pairs",
            config.mrope_section
        )));
    }
    let angle = |row: usize, pair: usize| {
        f64::from(sequence.positions[axes[pair]][row]) * config.rope_theta.powf(-(pair as f64) / pairs as f64)
    };
    Ok(Rope::new(sequence.ids.len(), pairs, device, dtype, angle)?)
}

fn block(
    config: &TextConfig,
    weights: &Weights,
    layer: usize,
    x: &Tensor,
    rope: &Rope,
    mask: &Tensor,
) -> Result<Tensor, CandleError> {
    let get = |name: &str| weights.get(&format!("model.layers.{layer}.{name}"));
    let normed = ops::rms_norm(x, get("input_layernorm.weight")?, config.rms_norm_eps)?;
    let project = |name: &str, heads: usize| {
        let (weight, bias) =
            (get(&format!("self_attn.{name}_proj.weight"))?, get(&format!("self_attn.{name}_proj.bias"))?);
        Ok::<_, CandleError>(ops::split_heads(&ops::linear(&normed, weight, Some(bias))?, heads)?)
    };
    let repeats = config.num_heads / config.num_kv_heads;
    let q = rope.apply(&project("q", config.num_heads)?)?;
    let k = ops::repeat_heads(&rope.apply(&project("k", config.num_kv_heads)?)?, repeats)?;
    let v = ops::repeat_heads(&project("v", config.num_kv_heads)?, repeats)?;
    let mixed = ops::attention(&q, &k, &v, mask)?;
    let x = (x + ops::linear(&mixed, get("self_attn.o_proj.weight")?, None)?)?;

    let normed = ops::rms_norm(&x, get("post_attention_layernorm.weight")?, config.rms_norm_eps)?;
    let (gate, up, down) = (get("mlp.gate_proj.weight")?, get("mlp.up_proj.weight")?, get("mlp.down_proj.weight")?);
    Ok((&x + ops::swiglu(&normed, (gate, None), (up, None), (down, None))?)?)
}
