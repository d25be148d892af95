//! Rope scaling: what the metadata, or Llama 3's tensor of frequency factors, says in the words of config.json.

use super::header::Gguf;
use super::value::missing;
use crate::config::RopeScaling;
use serde_json::{Value, json};

/// Llama 3.1 and later store what their scaling does to each rotary pair, as divisors of its frequency.
pub(super) const FACTORS: &str = "rope_freqs.weight";
/// What every Llama 3.x checkpoint has beside its factor, and GGUF does not keep.
const LLAMA3: (f64, f64, usize) = (1.0, 4.0, 8192);

/// `rope_scaling` of config.json; `None` without scaling. `name` is the prefix of the metadata keys.
///
/// # Errors
/// Names the key or tensor that asks for something config.json cannot say.
pub(super) fn scaling(gguf: &Gguf, name: &str, head_dim: usize, theta: f64) -> Result<Option<Value>, String> {
    let m = &gguf.metadata;
    let prefix = format!("{name}.rope.scal");
    let known = ["type", "factor", "original_context_length", "finetuned"];
    for key in m.keys().filter(|key| key.starts_with(&prefix)) {
        if !known.iter().any(|k| key.ends_with(&format!("rope.scaling.{k}"))) {
            return Err(format!("has `{key}`, which is not supported; take another model"));
        }
    }
    let key = |suffix: &str| format!("{name}.rope.scaling.{suffix}");
    let kind = m.text(&key("type"))?.unwrap_or("none");
    let factor = || m.positive(&key("factor"))?.ok_or_else(|| missing(&key("factor")));
    match (kind, gguf.tensors.contains_key(FACTORS)) {
        ("none", false) => Ok(None),
        ("none", true) => llama3(gguf, head_dim, theta).map(Some),
        ("linear", false) => Ok(Some(json!({"rope_type": "linear", "factor": factor()?}))),
        ("yarn", false) => {
            let original = m.size(&key("original_context_length"), 1 << 30)?;
            Ok(Some(json!({"rope_type": "yarn", "factor": factor()?, "original_max_position_embeddings": original})))
        }
        (kind, _) => Err(format!("scales its rope in a way that is not supported ({kind:?}); take another model")),
    }
}

/// Finds the factor from the stored divisors and checks that it explains all of them.
fn llama3(gguf: &Gguf, head_dim: usize, theta: f64) -> Result<Value, String> {
    let pairs = head_dim / 2;
    let mut divisors = vec![0.0; pairs];
    match gguf.tensors.get(FACTORS) {
        Some(stored) if stored.shape == [pairs] => stored.quant.dequantize(stored.data, &mut divisors),
        _ => return Err(format!("has tensor {FACTORS} of another shape than [{pairs}]; download it again")),
    }
    let (low, high, original) = LLAMA3;
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_positions: original as f64,
    };
    let explained = divisors.iter().enumerate().all(|(pair, &divisor)| {
        let plain = RopeScaling::None.frequency(pair, head_dim, theta);
        let expected = plain / scaling.frequency(pair, head_dim, theta);
        (f64::from(divisor) - expected).abs() <= 1e-3 * expected
    });
    match explained && factor.is_finite() {
        true => Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        })),
        false => Err(format!("has frequency factors in {FACTORS} that are not Llama 3's; take another model")),
    }
}
