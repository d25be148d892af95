//! The decoder's part of config.json, and its rotary positions.

use super::{MAX_LAYERS, MAX_WIDTH};
use crate::config::{Family, RopeScaling, TextConfig};
use crate::error::ModelError;
use crate::json::{Object, Value};

/// Reads the decoder's keys from the root of a flat config or from `text_config`.
pub(super) fn read(c: &Object, family: Family) -> Result<TextConfig, ModelError> {
    refuse_variants(c)?;
    let hidden_size = c.size("hidden_size", MAX_WIDTH)?;
    let num_heads = c.size("num_attention_heads", MAX_WIDTH)?;
    let num_kv_heads = c.size_opt("num_key_value_heads", MAX_WIDTH)?.unwrap_or(num_heads);
    let head_dim = head_dim(c, family, hidden_size, num_heads)?;
    if !num_heads.is_multiple_of(num_kv_heads) {
        return Err(c.error(
            "num_key_value_heads",
            format!("is {num_kv_heads}; it must divide num_attention_heads {num_heads}"),
        ));
    }
    let max_positions = c.size("max_position_embeddings", 1 << 30)?;
    let rope = Rope::read(c, family, head_dim, max_positions)?;
    let attention_bias = match family {
        Family::Qwen3Vl | Family::Qwen3 | Family::Llama => c.boolean("attention_bias")?.unwrap_or(false),
        Family::Qwen2_5Vl | Family::Qwen2Vl | Family::Qwen2 => false,
    };
    Ok(TextConfig {
        hidden_size,
        intermediate_size: c.size("intermediate_size", MAX_WIDTH)?,
        num_layers: c.size("num_hidden_layers", MAX_LAYERS)?,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: c.size("vocab_size", MAX_WIDTH)?,
        rms_norm_eps: epsilon(c)?,
        rope_theta: rope.theta,
        mrope_section: rope.section,
        mrope_interleaved: rope.interleaved,
        rope_scaling: rope.scaling,
        max_positions,
        qkv_bias: attention_bias || matches!(family, Family::Qwen2_5Vl | Family::Qwen2Vl | Family::Qwen2),
        o_bias: attention_bias,
        qk_norm: matches!(family, Family::Qwen3Vl | Family::Qwen3),
    })
}

/// Options of these families that would change the arithmetic and that we do not have.
fn refuse_variants(c: &Object) -> Result<(), ModelError> {
    if let Some(other) = c.string("hidden_act")?.filter(|&act| act != "silu") {
        return Err(c.error("hidden_act", format!("is {other:?}; these families use \"silu\"")));
    }
    if c.boolean("use_sliding_window")? == Some(true) {
        return Err(c.error(
            "use_sliding_window",
            "is true; sliding-window attention is not supported, use a checkpoint with full attention",
        ));
    }
    if let Some(types) = c.get("layer_types") {
        let full = |t: &Value| t.as_str() == Some("full_attention");
        if !types.as_array().is_some_and(|list| list.iter().all(full)) {
            return Err(c.error(
                "layer_types",
                "must be a list of \"full_attention\"; other kinds of attention are not supported",
            ));
        }
    }
    if c.boolean("mlp_bias")? == Some(true) {
        return Err(c.error("mlp_bias", "is true, which is not supported; use a checkpoint without MLP biases"));
    }
    if let Some(part) = c.number("partial_rotary_factor")?.filter(|&x| x != 1.0) {
        return Err(
            c.error("partial_rotary_factor", format!("is {part}; only heads that turn as a whole are supported"))
        );
    }
    Ok(())
}

/// Transformers has one default for every Qwen3, whatever the width.
const QWEN3_HEAD_DIM: usize = 128;

fn head_dim(c: &Object, family: Family, hidden_size: usize, num_heads: usize) -> Result<usize, ModelError> {
    let given = c.size_opt("head_dim", MAX_WIDTH)?;
    let quotient = || match hidden_size.is_multiple_of(num_heads) {
        true => Ok(hidden_size / num_heads),
        false => {
            Err(c.error("num_attention_heads", format!("is {num_heads}; it must divide hidden_size {hidden_size}")))
        }
    };
    let head_dim = match family {
        Family::Qwen3 | Family::Qwen3Vl => given.unwrap_or(QWEN3_HEAD_DIM),
        Family::Llama => given.map_or_else(quotient, Ok)?,
        // The published modules know no other head size than this one.
        Family::Qwen2_5Vl | Family::Qwen2Vl | Family::Qwen2 => {
            let own = quotient()?;
            if let Some(other) = given.filter(|&d| d != own) {
                return Err(c.error(
                    "head_dim",
                    format!("is {other}; this family needs hidden_size / num_attention_heads = {own}"),
                ));
            }
            own
        }
    };
    if !head_dim.is_multiple_of(2) {
        let key = if given.is_some() { "head_dim" } else { "num_attention_heads" };
        return Err(c.error(key, format!("gives the odd head size {head_dim}; rotary positions need an even one")));
    }
    if num_heads.saturating_mul(head_dim) > MAX_WIDTH {
        return Err(
            c.error("head_dim", format!("is {head_dim}: {num_heads} such heads are more than {MAX_WIDTH} wide"))
        );
    }
    Ok(head_dim)
}

fn epsilon(c: &Object) -> Result<f32, ModelError> {
    let eps = c.positive("rms_norm_eps")?;
    if eps > 1.0 || (eps as f32) == 0.0 {
        return Err(c.error("rms_norm_eps", format!("is {eps}; it must be a small positive number, such as 1e-6")));
    }
    Ok(eps as f32)
}

struct Rope {
    theta: f64,
    section: Vec<usize>,
    interleaved: bool,
    scaling: RopeScaling,
}

impl Rope {
    /// 5.x keeps everything in `rope_parameters`, older files in `rope_theta` and `rope_scaling`.
    fn read(c: &Object, family: Family, head_dim: usize, max_positions: usize) -> Result<Self, ModelError> {
        let parameters = c.object("rope_parameters", "rope_parameters.")?;
        let place = match parameters {
            Some(p) => Some(p),
            None => c.object("rope_scaling", "rope_scaling.")?,
        };
        let theta = theta(c, parameters.as_ref(), family)?;
        let scaling = match &place {
            None => RopeScaling::None,
            Some(s) => scaling(s, max_positions)?,
        };
        if family.vision_arch().is_none() {
            return Ok(Self { theta, section: Vec::new(), interleaved: false, scaling });
        }
        let Some(s) = place else {
            return Err(c.error(
                "rope_scaling",
                "is missing; this family needs {\"type\": \"mrope\", \"mrope_section\": [t, h, w]}",
            ));
        };
        if scaling != RopeScaling::None {
            return Err(s.error("type", "stretches the context, which is supported for text models only; remove it"));
        }
        let section = section(&s, family, head_dim)?;
        Ok(Self { theta, section, interleaved: family == Family::Qwen3Vl, scaling })
    }
}

/// The three mrope sections, checked against the head size.
fn section(s: &Object, family: Family, head_dim: usize) -> Result<Vec<usize>, ModelError> {
    let own = family == Family::Qwen3Vl;
    if let Some(given) = s.boolean("mrope_interleaved")?.filter(|&given| given != own) {
        return Err(s.error("mrope_interleaved", format!("is {given}; this family needs {own}")));
    }
    let section = s.list("mrope_section")?.ok_or_else(|| s.missing("mrope_section"))?;
    let pairs = head_dim / 2;
    if section.len() != 3 || section.iter().sum::<usize>() != pairs {
        return Err(s.error(
            "mrope_section",
            format!("is {section:?}; it must be three numbers whose sum is half the head size, {pairs}"),
        ));
    }
    // Height and width take every third pair, so a longer section would run past the head.
    if own && (3 * section[1] > pairs + 1 || 3 * section[2] > pairs) {
        return Err(s.error(
            "mrope_section",
            format!("is {section:?}; interleaved, height and width can have a third of the {pairs} pairs each"),
        ));
    }
    Ok(section)
}

fn theta(c: &Object, parameters: Option<&Object>, family: Family) -> Result<f64, ModelError> {
    let (place, value) = match parameters {
        Some(p) if p.get("rope_theta").is_some() => (p, p.positive("rope_theta")?),
        // The first Llama checkpoints do not say it.
        _ if family == Family::Llama && c.get("rope_theta").is_none() => (c, 10_000.0),
        _ => (c, c.positive("rope_theta")?),
    };
    if value <= 1.0 {
        return Err(place.error("rope_theta", format!("is {value}; it must be greater than 1")));
    }
    Ok(value)
}

/// The kind of scaling and its numbers.
fn scaling(s: &Object, max_positions: usize) -> Result<RopeScaling, ModelError> {
    if let Some(part) = s.number("partial_rotary_factor")?.filter(|&x| x != 1.0) {
        return Err(
            s.error("partial_rotary_factor", format!("is {part}; only heads that turn as a whole are supported"))
        );
    }
    let key = if s.get("rope_type").is_some() { "rope_type" } else { "type" };
    let at_least_one = |key: &str| match s.positive(key)? {
        x if x >= 1.0 => Ok(x),
        x => Err(s.error(key, format!("is {x}; it must be at least 1"))),
    };
    let original = || match s.size_opt("original_max_position_embeddings", 1 << 30)? {
        Some(n) => Ok::<_, ModelError>(n as f64),
        None => Ok(max_positions as f64),
    };
    match s.string(key)? {
        None | Some("default" | "mrope") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: at_least_one("factor")? }),
        Some("llama3") => {
            let (low, high) = (s.positive("low_freq_factor")?, s.positive("high_freq_factor")?);
            if low >= high {
                return Err(s.error("low_freq_factor", format!("is {low}; it must be below high_freq_factor {high}")));
            }
            Ok(RopeScaling::Llama3 {
                factor: at_least_one("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original()?,
            })
        }
        Some("yarn") => yarn(s, at_least_one("factor")?, original()?),
        Some(other) => Err(s.error(
            key,
            format!(
                "is {other:?}, which is not supported (default, linear, llama3 and yarn are); use another checkpoint"
            ),
        )),
    }
}

fn yarn(s: &Object, factor: f64, original_max_positions: f64) -> Result<RopeScaling, ModelError> {
    for key in ["mscale", "mscale_all_dim"] {
        if s.get(key).is_some() {
            return Err(s.error(key, "is not supported; give attention_factor instead"));
        }
    }
    let or = |key: &str, default: f64| if s.get(key).is_some() { s.positive(key) } else { Ok(default) };
    let (beta_fast, beta_slow) = (or("beta_fast", 32.0)?, or("beta_slow", 1.0)?);
    if beta_slow >= beta_fast {
        return Err(s.error("beta_slow", format!("is {beta_slow}; it must be below beta_fast {beta_fast}")));
    }
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor: or("attention_factor", 0.1 * factor.ln() + 1.0)?,
        beta_fast,
        beta_slow,
        truncate: s.boolean("truncate")?.unwrap_or(true),
        original_max_positions,
    })
}
