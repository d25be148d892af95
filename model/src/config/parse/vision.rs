//! The vision tower's part of config.json.

use super::{MAX_LAYERS, MAX_WIDTH};
use crate::config::{Activation, TextConfig, VisionArch, VisionConfig};
use crate::error::ModelError;
use crate::json::Object;

/// Pixels a patch may be wide, and patches a merged cell or a moment may be: an image is at least one merged cell large.
const MAX_PATCH: usize = 256;
const MAX_MERGE: usize = 16;

/// Widths whose keys differ between the towers.
struct Widths {
    hidden: usize,
    intermediate: usize,
    out: usize,
}

/// Reads `vision_config`.
pub(super) fn read(c: &Object, arch: VisionArch, text: &TextConfig) -> Result<VisionConfig, ModelError> {
    let size = |key: &str, max: usize, default: usize| Ok::<_, ModelError>(c.size_opt(key, max)?.unwrap_or(default));
    let in_channels = match c.size_opt("in_channels", 16)? {
        Some(n) => n,
        None => size("in_chans", 16, 3)?,
    };
    let rope_theta = match c.object("rope_parameters", "vision_config.rope_parameters.")? {
        Some(p) if p.get("rope_theta").is_some() => p.positive("rope_theta")?,
        _ => 10_000.0,
    };
    let widths = widths(c, arch)?;
    let depth = c.size("depth", MAX_LAYERS)?;
    let (window_size, full_attention_blocks) = match arch {
        VisionArch::Qwen2_5 => (
            size("window_size", 1 << 20, 112)?,
            c.list("fullatt_block_indexes")?.ok_or_else(|| c.missing("fullatt_block_indexes"))?,
        ),
        VisionArch::Qwen2 | VisionArch::Qwen3 => (0, (0..depth).collect()),
    };
    let (num_position_embeddings, deepstack_blocks) = match arch {
        VisionArch::Qwen3 => (
            c.size("num_position_embeddings", MAX_WIDTH)?,
            c.list("deepstack_visual_indexes")?.ok_or_else(|| c.missing("deepstack_visual_indexes"))?,
        ),
        VisionArch::Qwen2 | VisionArch::Qwen2_5 => (0, Vec::new()),
    };
    let vision = VisionConfig {
        arch,
        activation: activation(c, arch)?,
        depth,
        hidden_size: widths.hidden,
        intermediate_size: widths.intermediate,
        num_heads: c.size("num_heads", MAX_WIDTH)?,
        in_channels,
        out_hidden_size: widths.out,
        patch_size: size("patch_size", MAX_PATCH, if arch == VisionArch::Qwen3 { 16 } else { 14 })?,
        temporal_patch_size: size("temporal_patch_size", MAX_MERGE, 2)?,
        spatial_merge_size: size("spatial_merge_size", MAX_MERGE, 2)?,
        window_size,
        full_attention_blocks,
        deepstack_blocks,
        num_position_embeddings,
        // Fixed in the published modules, not a key of the file.
        norm_eps: 1e-6,
        rope_theta,
    };
    check(c, &vision, text)?;
    Ok(vision)
}

/// Qwen2-VL calls the tower's width `embed_dim` and the decoder's `hidden_size`.
fn widths(c: &Object, arch: VisionArch) -> Result<Widths, ModelError> {
    if arch != VisionArch::Qwen2 {
        return Ok(Widths {
            hidden: c.size("hidden_size", MAX_WIDTH)?,
            intermediate: c.size("intermediate_size", MAX_WIDTH)?,
            out: c.size("out_hidden_size", MAX_WIDTH)?,
        });
    }
    let hidden = c.size("embed_dim", MAX_WIDTH)?;
    let ratio = match c.get("mlp_ratio") {
        Some(_) => c.positive("mlp_ratio")?,
        None => 4.0,
    };
    // As the reference: int(embed_dim * mlp_ratio).
    let intermediate = (hidden as f64 * ratio) as usize;
    if !(1..=MAX_WIDTH).contains(&intermediate) {
        return Err(c.error("mlp_ratio", format!("is {ratio}; embed_dim × mlp_ratio must be from 1 to {MAX_WIDTH}")));
    }
    Ok(Widths { hidden, intermediate, out: c.size("hidden_size", MAX_WIDTH)? })
}

fn activation(c: &Object, arch: VisionArch) -> Result<Activation, ModelError> {
    let given = c.string("hidden_act")?;
    if arch == VisionArch::Qwen2_5 {
        return match given {
            None | Some("silu") => Ok(Activation::Silu),
            Some(other) => Err(c.error("hidden_act", format!("is {other:?}; this family uses \"silu\""))),
        };
    }
    match (given, arch) {
        (None, VisionArch::Qwen2) | (Some("quick_gelu"), _) => Ok(Activation::QuickGelu),
        (None, _) | (Some("gelu_pytorch_tanh" | "gelu_new"), _) => Ok(Activation::GeluTanh),
        (Some("gelu"), _) => Ok(Activation::Gelu),
        (Some("silu"), _) => Ok(Activation::Silu),
        (Some(other), _) => Err(
            c.error("hidden_act", format!("is {other:?}; quick_gelu, gelu_pytorch_tanh, gelu and silu are supported"))
        ),
    }
}

/// Checks what the towers have in common, then what each has of its own.
fn check(c: &Object, v: &VisionConfig, text: &TextConfig) -> Result<(), ModelError> {
    // The 2-D rope splits half a head evenly between rows and columns.
    if !v.hidden_size.is_multiple_of(v.num_heads) || !(v.hidden_size / v.num_heads).is_multiple_of(4) {
        return Err(c.error(
            "num_heads",
            format!(
                "is {}; it must divide the tower's width {} into heads whose size is a multiple of 4",
                v.num_heads, v.hidden_size
            ),
        ));
    }
    if v.in_channels != 3 {
        return Err(c.error("in_channels", format!("is {}; images have 3 channels", v.in_channels)));
    }
    if v.out_hidden_size != text.hidden_size {
        let key = if v.arch == VisionArch::Qwen2 { "hidden_size" } else { "out_hidden_size" };
        return Err(
            c.error(key, format!("is {}; it must equal the text hidden_size {}", v.out_hidden_size, text.hidden_size))
        );
    }
    if v.merged_size() > MAX_WIDTH {
        return Err(c.error(
            "spatial_merge_size",
            format!("is {}; merged cells would be {} wide", v.spatial_merge_size, v.merged_size()),
        ));
    }
    match v.arch {
        VisionArch::Qwen2 => Ok(()),
        VisionArch::Qwen2_5 => check_windows(c, v),
        VisionArch::Qwen3 => check_positions_and_deepstack(c, v, text),
    }
}

fn check_windows(c: &Object, v: &VisionConfig) -> Result<(), ModelError> {
    let merged = v.patch_size * v.spatial_merge_size;
    if v.window_size < merged || !v.window_size.is_multiple_of(merged) {
        return Err(c.error(
            "window_size",
            format!("is {}; it must be a multiple of patch_size × spatial_merge_size = {merged}", v.window_size),
        ));
    }
    if let Some(block) = v.full_attention_blocks.iter().find(|&&b| b >= v.depth) {
        return Err(c.error("fullatt_block_indexes", format!("names block {block}; there are only {}", v.depth)));
    }
    Ok(())
}

fn check_positions_and_deepstack(c: &Object, v: &VisionConfig, text: &TextConfig) -> Result<(), ModelError> {
    let side = v.position_grid();
    if side * side != v.num_position_embeddings {
        return Err(c.error(
            "num_position_embeddings",
            format!("is {}; it must be a square number", v.num_position_embeddings),
        ));
    }
    let blocks = &v.deepstack_blocks;
    if let Some(block) = blocks.iter().find(|&&b| b >= v.depth) {
        return Err(c.error("deepstack_visual_indexes", format!("names block {block}; there are only {}", v.depth)));
    }
    if blocks.iter().enumerate().any(|(i, b)| blocks[..i].contains(b)) || !blocks.is_sorted() {
        return Err(c.error("deepstack_visual_indexes", format!("is {blocks:?}; each block once, ascending")));
    }
    if blocks.len() > text.num_layers {
        return Err(c.error(
            "deepstack_visual_indexes",
            format!("has {} blocks, but only {} decoder layers can take their features", blocks.len(), text.num_layers),
        ));
    }
    Ok(())
}
