//! Parts that the towers of all vision families have in common.

use crate::block::Block;
use crate::error::EngineError;
use crate::kernels::attention::Heads;
use crate::mlp::{Act, Mlp};
use crate::model::finder::Finder;
use crate::model::merger::Merger;
use crate::norm::Norm;
use quorum_model::{Activation, ModelConfig, VisionArch, VisionConfig};

/// (row, column) of every cell of a grid in raster order.
pub fn raster(h: usize, w: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..h).flat_map(move |i| (0..w).map(move |j| (i, j)))
}

/// Shapes that the kernels need.
pub fn check(v: &VisionConfig, hidden: usize) -> Result<(), EngineError> {
    let shape = |m: String| Err(EngineError::Shape(m));
    if v.num_heads == 0
        || !v.hidden_size.is_multiple_of(v.num_heads)
        || !(v.hidden_size / v.num_heads).is_multiple_of(4)
    {
        return shape(format!(
            "vision hidden_size {} with {} heads: the head size must be a multiple of 4",
            v.hidden_size, v.num_heads
        ));
    }
    if v.spatial_merge_size == 0 || v.patch_size == 0 {
        return shape("vision spatial_merge_size and patch_size must be positive".into());
    }
    if v.out_hidden_size != hidden {
        return shape(format!(
            "vision out_hidden_size {} is not the decoder's hidden_size {hidden}",
            v.out_hidden_size
        ));
    }
    if v.arch == VisionArch::Qwen2_5 && v.window_size / v.spatial_merge_size / v.patch_size == 0 {
        return shape(format!("vision window_size {} holds no merged patch", v.window_size));
    }
    if let Some(block) = v.deepstack_blocks.iter().find(|&&b| b >= v.depth) {
        return shape(format!("deepstack_visual_indexes names block {block}; there are only {}", v.depth));
    }
    Ok(())
}

/// A LayerNorm.
pub fn layer_norm(f: &Finder, c: &ModelConfig, name: &str, width: usize, eps: f32) -> Result<Norm, EngineError> {
    Ok(Norm::Layer {
        weight: f.tensor(&c.vision_name(&format!("{name}.weight")), &[width])?,
        bias: f.tensor(&c.vision_name(&format!("{name}.bias")), &[width])?,
        eps,
    })
}

/// An RMSNorm.
pub fn rms_norm(f: &Finder, c: &ModelConfig, name: &str, width: usize, eps: f32) -> Result<Norm, EngineError> {
    Ok(Norm::Rms { weight: f.tensor(&c.vision_name(&format!("{name}.weight")), &[width])?, eps })
}

/// Two layers with biases, `shape` = (input, hidden, output), and an activation between.
fn mlp(
    f: &mut Finder,
    c: &ModelConfig,
    [first, second]: [String; 2],
    (n_in, hidden, n_out): (usize, usize, usize),
    act: Act,
) -> Result<Mlp, EngineError> {
    let full = |name: &str, what: &str| c.vision_name(&format!("{name}.{what}"));
    Ok(Mlp {
        up: f.linear(&[(&full(&first, "weight"), hidden)], n_in, &[&full(&first, "bias")])?,
        act,
        down: f.linear(&[(&full(&second, "weight"), n_out)], hidden, &[&full(&second, "bias")])?,
    })
}

/// The activation of an ungated MLP.
fn act(a: Activation) -> Act {
    match a {
        Activation::Silu => Act::SigmoidGate(1.0),
        Activation::QuickGelu => Act::SigmoidGate(1.702),
        Activation::Gelu => Act::Gelu,
        Activation::GeluTanh => Act::GeluTanh,
    }
}

/// Block `i` with the given norms and MLP.
pub fn block(
    f: &mut Finder,
    c: &ModelConfig,
    v: &VisionConfig,
    i: usize,
    [norm1, norm2]: [Norm; 2],
    mlp: Mlp,
) -> Result<Block, EngineError> {
    let h = v.hidden_size;
    let name = |s: &str| c.vision_name(&format!("blocks.{i}.attn.{s}"));
    Ok(Block {
        norm1,
        qkv: f.linear(&[(&name("qkv.weight"), 3 * h)], h, &[&name("qkv.bias")])?,
        qk_norm: None,
        out: f.linear(&[(&name("proj.weight"), h)], h, &[&name("proj.bias")])?,
        norm2,
        mlp,
        heads: Heads { heads: v.num_heads, kv_heads: v.num_heads, hd: h / v.num_heads },
        causal: false,
    })
}

/// All blocks of a tower with LayerNorm and an ungated MLP whose two layers are called `fc1` and `fc2`.
pub fn layer_norm_blocks(
    f: &mut Finder,
    c: &ModelConfig,
    v: &VisionConfig,
    [fc1, fc2]: [&str; 2],
) -> Result<Vec<Block>, EngineError> {
    let (h, eps) = (v.hidden_size, v.norm_eps);
    let mut blocks = Vec::with_capacity(v.depth);
    for i in 0..v.depth {
        let name = |s: &str| format!("blocks.{i}.{s}");
        let norms = [layer_norm(f, c, &name("norm1"), h, eps)?, layer_norm(f, c, &name("norm2"), h, eps)?];
        let mlp = mlp(f, c, [name(fc1), name(fc2)], (h, v.intermediate_size, h), act(v.activation))?;
        blocks.push(block(f, c, v, i, norms, mlp)?);
    }
    Ok(blocks)
}

/// A merger with the given norm and the names of its two layers.
pub fn merger(
    f: &mut Finder,
    c: &ModelConfig,
    v: &VisionConfig,
    norm: Norm,
    layers: [String; 2],
) -> Result<Merger, EngineError> {
    let merged = v.merged_size();
    Ok(Merger { norm, mlp: mlp(f, c, layers, (merged, merged, v.out_hidden_size), Act::Gelu)? })
}
