//! Reads and checks `config.json`: flat (hub), nested with `rope_scaling` (transformers 4.5x) and nested with `rope_parameters` (5.x).

use super::{Family, ModelConfig, TextConfig, VisionConfig};
use crate::error::ModelError;
use crate::json::{Object, parse_object};

const FILE: &str = "config.json";
/// Bounds on untrusted sizes: generous for any real model, small enough that no product of them overflows.
const MAX_WIDTH: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 10;

impl ModelConfig {
    /// Reads the text of a `config.json`, flat or nested.
    ///
    /// # Errors
    /// Names the key and what it should be: unsupported family, activation or rope, sizes that do not divide, ids outside the vocabulary.
    pub fn from_json(json: impl AsRef<[u8]>) -> Result<Self, ModelError> {
        let map = parse_object(FILE, json.as_ref())?;
        let root = Object::new(FILE, "", &map);
        let family = family(&root)?;
        let nested = root.object("text_config", "text_config.")?;
        let body = nested.unwrap_or(root);
        let text = text(&body, family)?;
        let vision = match family {
            Family::Qwen2 => None,
            Family::Qwen2_5Vl => {
                let v = root.object("vision_config", "vision_config.")?.ok_or_else(|| root.missing("vision_config"))?;
                Some(vision(&v, &text)?)
            }
        };
        let token = |key: &str| -> Result<Option<u32>, ModelError> {
            if family == Family::Qwen2 {
                return Ok(None);
            }
            let id = root.token(key)?.ok_or_else(|| root.missing(key))?;
            if id as usize >= text.vocab_size {
                return Err(root.error(key, format!("is {id}, outside the vocabulary of {} tokens", text.vocab_size)));
            }
            Ok(Some(id))
        };
        let tied = match root.boolean("tie_word_embeddings")? {
            Some(tied) => tied,
            None => body.boolean("tie_word_embeddings")?.unwrap_or(false),
        };
        Ok(Self {
            family,
            image_token_id: token("image_token_id")?,
            video_token_id: token("video_token_id")?,
            vision_start_token_id: token("vision_start_token_id")?,
            vision_end_token_id: token("vision_end_token_id")?,
            tie_word_embeddings: tied,
            text,
            vision,
        })
    }
}

fn family(root: &Object) -> Result<Family, ModelError> {
    match root.string("model_type")? {
        Some("qwen2_5_vl") => Ok(Family::Qwen2_5Vl),
        Some("qwen2") => Ok(Family::Qwen2),
        Some(other) => Err(root.error(
            "model_type",
            format!("is {other:?}, which is not supported; use a checkpoint of qwen2_5_vl or qwen2"),
        )),
        None => Err(root.missing("model_type")),
    }
}

fn text(c: &Object, family: Family) -> Result<TextConfig, ModelError> {
    require_silu(c)?;
    if c.boolean("use_sliding_window")? == Some(true) {
        return Err(c.error(
            "use_sliding_window",
            "is true; sliding-window attention is not supported, use a checkpoint with full attention",
        ));
    }
    let hidden_size = c.size("hidden_size", MAX_WIDTH)?;
    let num_heads = c.size("num_attention_heads", MAX_WIDTH)?;
    let num_kv_heads = c.size_opt("num_key_value_heads", MAX_WIDTH)?.unwrap_or(num_heads);
    // The published Qwen2 and Qwen2.5-VL modules have no other head size than this one.
    if !hidden_size.is_multiple_of(num_heads) {
        return Err(c.error("num_attention_heads", format!("is {num_heads}; it must divide hidden_size {hidden_size}")));
    }
    let head_dim = hidden_size / num_heads;
    if let Some(given) = c.size_opt("head_dim", MAX_WIDTH)?
        && given != head_dim
    {
        return Err(c.error(
            "head_dim",
            format!("is {given}; this family needs hidden_size / num_attention_heads = {head_dim}"),
        ));
    }
    if !num_heads.is_multiple_of(num_kv_heads) {
        return Err(c.error(
            "num_key_value_heads",
            format!("is {num_kv_heads}; it must divide num_attention_heads {num_heads}"),
        ));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(c.error(
            "num_attention_heads",
            format!("gives the odd head size {head_dim}; rotary positions need an even one"),
        ));
    }
    let (rope_theta, mrope_section) = rope(c, family, head_dim)?;
    Ok(TextConfig {
        hidden_size,
        intermediate_size: c.size("intermediate_size", MAX_WIDTH)?,
        num_layers: c.size("num_hidden_layers", MAX_LAYERS)?,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: c.size("vocab_size", MAX_WIDTH)?,
        rms_norm_eps: c.positive("rms_norm_eps")? as f32,
        rope_theta,
        mrope_section,
        max_positions: c.size("max_position_embeddings", 1 << 30)?,
    })
}

fn require_silu(c: &Object) -> Result<(), ModelError> {
    match c.string("hidden_act")? {
        None | Some("silu") => Ok(()),
        Some(other) => Err(c.error("hidden_act", format!("is {other:?}; this family uses \"silu\""))),
    }
}

/// Base and mrope sections. 5.x keeps both in `rope_parameters`, older files in `rope_theta` and `rope_scaling`.
fn rope(c: &Object, family: Family, head_dim: usize) -> Result<(f64, Vec<usize>), ModelError> {
    let parameters = c.object("rope_parameters", "rope_parameters.")?;
    let scaling = match parameters {
        Some(p) => Some(p),
        None => c.object("rope_scaling", "rope_scaling.")?,
    };
    let theta = match parameters {
        Some(p) if p.get("rope_theta").is_some() => p.positive("rope_theta")?,
        _ => c.positive("rope_theta")?,
    };
    if let Some(s) = &scaling {
        for key in ["rope_type", "type"] {
            match s.string(key)? {
                None | Some("default" | "mrope") => {}
                Some(other) => {
                    return Err(s.error(
                        key,
                        format!(
                            "is {other:?}, which is not supported; remove the rope scaling or use another checkpoint"
                        ),
                    ));
                }
            }
        }
    }
    if family == Family::Qwen2 {
        return Ok((theta, Vec::new()));
    }
    let Some(s) = scaling else {
        return Err(c.error(
            "rope_scaling",
            "is missing; this family needs {\"type\": \"mrope\", \"mrope_section\": [t, h, w]}",
        ));
    };
    let section = s.list("mrope_section")?.ok_or_else(|| s.missing("mrope_section"))?;
    if section.len() != 3 || section.iter().sum::<usize>() != head_dim / 2 {
        return Err(s.error(
            "mrope_section",
            format!("is {section:?}; it must be three numbers whose sum is half the head size, {}", head_dim / 2),
        ));
    }
    Ok((theta, section))
}

fn vision(c: &Object, text: &TextConfig) -> Result<VisionConfig, ModelError> {
    require_silu(c)?;
    let size = |key: &str, max: usize, default: usize| Ok::<_, ModelError>(c.size_opt(key, max)?.unwrap_or(default));
    let in_channels = match c.size_opt("in_channels", 16)? {
        Some(n) => n,
        None => size("in_chans", 16, 3)?,
    };
    let rope_theta = match c.object("rope_parameters", "vision_config.rope_parameters.")? {
        Some(p) if p.get("rope_theta").is_some() => p.positive("rope_theta")?,
        _ => 10_000.0,
    };
    let vision = VisionConfig {
        depth: c.size("depth", MAX_LAYERS)?,
        hidden_size: c.size("hidden_size", MAX_WIDTH)?,
        intermediate_size: c.size("intermediate_size", MAX_WIDTH)?,
        num_heads: c.size("num_heads", MAX_WIDTH)?,
        in_channels,
        out_hidden_size: c.size("out_hidden_size", MAX_WIDTH)?,
        patch_size: size("patch_size", 1 << 10, 14)?,
        temporal_patch_size: size("temporal_patch_size", 64, 2)?,
        spatial_merge_size: size("spatial_merge_size", 64, 2)?,
        window_size: size("window_size", 1 << 20, 112)?,
        full_attention_blocks: c.list("fullatt_block_indexes")?.ok_or_else(|| c.missing("fullatt_block_indexes"))?,
        // Fixed in the published module, not a key of the file.
        rms_norm_eps: 1e-6,
        rope_theta,
    };
    check_vision(c, &vision, text)?;
    Ok(vision)
}

fn check_vision(c: &Object, v: &VisionConfig, text: &TextConfig) -> Result<(), ModelError> {
    // The 2-D rope splits half a head evenly between rows and columns.
    if !v.hidden_size.is_multiple_of(v.num_heads) || !(v.hidden_size / v.num_heads).is_multiple_of(4) {
        return Err(c.error(
            "num_heads",
            format!(
                "is {}; it must divide hidden_size {} into heads whose size is a multiple of 4",
                v.num_heads, v.hidden_size
            ),
        ));
    }
    if v.in_channels != 3 {
        return Err(c.error("in_channels", format!("is {}; images have 3 channels", v.in_channels)));
    }
    if v.out_hidden_size != text.hidden_size {
        return Err(c.error(
            "out_hidden_size",
            format!("is {}; it must equal the text hidden_size {}", v.out_hidden_size, text.hidden_size),
        ));
    }
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
