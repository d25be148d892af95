//! Vision tower of Qwen2.5-VL: patch embedding, blocks with window or full attention and 2-D rope, merger. One image a call.
//!
//! The published code permutes patches so that windows are contiguous. Attention does not care about order, so here patches stay in the
//! processor's order and a window is a mask.

use super::error::CandleError;
use super::ops::{self, Rope};
use super::weights::Weights;
use candle_core::{DType, Device, Tensor};
use quorum_model::{EncodedImage, VisionConfig};

/// Where a patch lies. `frame` and `window` number the sets that attend to each other in full and in windowed blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    row: usize,
    column: usize,
    frame: usize,
    window: usize,
}

/// Places of all patches in the processor's order: frames, merge units in raster order, patches of a unit in raster order.
fn places(grid: [usize; 3], config: &VisionConfig) -> Vec<Place> {
    let [frames, height, width] = grid;
    let merge = config.spatial_merge_size;
    let unit_columns = width / merge;
    let window_units = config.window_size / merge / config.patch_size;
    let (windows_down, windows_across) = ((height / merge).div_ceil(window_units), unit_columns.div_ceil(window_units));
    let place = |i: usize| {
        let (frame, inside) = (i / (height * width), i % (height * width));
        let (unit, patch) = (inside / (merge * merge), inside % (merge * merge));
        let (unit_row, unit_column) = (unit / unit_columns, unit % unit_columns);
        Place {
            row: unit_row * merge + patch / merge,
            column: unit_column * merge + patch % merge,
            frame,
            window: (frame * windows_down + unit_row / window_units) * windows_across + unit_column / window_units,
        }
    };
    (0..frames * height * width).map(place).collect()
}

/// Features of one image, one row a merge unit in raster order: `[t·h·w / merge², out_hidden]`.
pub(super) fn encode(
    config: &VisionConfig,
    weights: &Weights,
    image: &EncodedImage,
    device: &Device,
    dtype: DType,
) -> Result<Tensor, CandleError> {
    check(config, image)?;
    let places = places(image.grid, config);
    let n = places.len();
    let (hidden, head_dim) = (config.hidden_size, config.hidden_size / config.num_heads);
    let rope = rope(config, &places, head_dim, device, dtype)?;
    let full = ops::mask(n, device, dtype, |i, j| places[i].frame == places[j].frame)?;
    let windowed = ops::mask(n, device, dtype, |i, j| places[i].window == places[j].window)?;

    let patches = Tensor::from_slice(&image.patches, (n, config.patch_dim()), device)?.to_dtype(dtype)?;
    let kernel = weights.get("visual.patch_embed.proj.weight")?.reshape((hidden, config.patch_dim()))?;
    let mut x = ops::linear(&patches, &kernel, None)?;
    for layer in 0..config.depth {
        let mask = if config.full_attention_blocks.contains(&layer) { &full } else { &windowed };
        x = block(config, weights, layer, &x, &rope, mask)?;
    }
    merge(config, weights, &x)
}

fn check(config: &VisionConfig, image: &EncodedImage) -> Result<(), CandleError> {
    let [t, h, w] = image.grid;
    let merge = config.spatial_merge_size;
    if t * h * w == 0 || h % merge != 0 || w % merge != 0 || image.patches.len() != t * h * w * config.patch_dim() {
        let found = image.patches.len();
        return Err(CandleError::request(format!(
            "image grid {:?} does not fit merge size {merge} and {found} patch values",
            image.grid
        )));
    }
    if config.window_size < merge * config.patch_size || !config.hidden_size.is_multiple_of(4 * config.num_heads) {
        return Err(CandleError::shape(
            "vision window_size must hold a merge unit and the head size be a multiple of 4",
        ));
    }
    Ok(())
}

/// 2-D rope: the first quarter of a head's pairs turns with the row, the second with the column.
fn rope(
    config: &VisionConfig,
    places: &[Place],
    head_dim: usize,
    device: &Device,
    dtype: DType,
) -> Result<Rope, CandleError> {
    let per_axis = head_dim / 4;
    let angle = |n: usize, pair: usize| {
        let position = if pair < per_axis { places[n].row } else { places[n].column };
        position as f64 * config.rope_theta.powf(-((pair % per_axis) as f64) / per_axis as f64)
    };
    Ok(Rope::new(places.len(), head_dim / 2, device, dtype, angle)?)
}

fn block(
    config: &VisionConfig,
    weights: &Weights,
    layer: usize,
    x: &Tensor,
    rope: &Rope,
    mask: &Tensor,
) -> Result<Tensor, CandleError> {
    let get = |name: &str| weights.get(&format!("visual.blocks.{layer}.{name}"));
    let hidden = config.hidden_size;

    let normed = ops::rms_norm(x, get("norm1.weight")?, config.norm_eps)?;
    let qkv = ops::linear(&normed, get("attn.qkv.weight")?, Some(get("attn.qkv.bias")?))?;
    let part = |i: usize| ops::split_heads(&qkv.narrow(1, i * hidden, hidden)?, config.num_heads);
    let mixed = ops::attention(&rope.apply(&part(0)?)?, &rope.apply(&part(1)?)?, &part(2)?, mask)?;
    let x = (x + ops::linear(&mixed, get("attn.proj.weight")?, Some(get("attn.proj.bias")?))?)?;

    let normed = ops::rms_norm(&x, get("norm2.weight")?, config.norm_eps)?;
    let gate = (get("mlp.gate_proj.weight")?, Some(get("mlp.gate_proj.bias")?));
    let up = (get("mlp.up_proj.weight")?, Some(get("mlp.up_proj.bias")?));
    let down = (get("mlp.down_proj.weight")?, Some(get("mlp.down_proj.bias")?));
    Ok((&x + ops::swiglu(&normed, gate, up, down)?)?)
}

fn merge(config: &VisionConfig, weights: &Weights, x: &Tensor) -> Result<Tensor, CandleError> {
    let unit = config.spatial_merge_size * config.spatial_merge_size;
    let normed = ops::rms_norm(x, weights.get("visual.merger.ln_q.weight")?, config.norm_eps)?;
    let units = normed.reshape((x.dim(0)? / unit, unit * config.hidden_size))?;
    let inner = ops::linear(
        &units,
        weights.get("visual.merger.mlp.0.weight")?,
        Some(weights.get("visual.merger.mlp.0.bias")?),
    )?;
    let bias = weights.get("visual.merger.mlp.2.bias")?;
    Ok(ops::linear(&inner.gelu_erf()?, weights.get("visual.merger.mlp.2.weight")?, Some(bias))?)
}
