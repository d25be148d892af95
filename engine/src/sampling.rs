//! Drawing one token from a row of policy logits: greedy, or inverse CDF over the (possibly filtered) distribution.

use crate::error::EngineError;
use crate::kernels::exp::exp;
use crate::kernels::isa::simd;
use quorum_core::types::Sampling;

/// Rejects settings that mean nothing.
pub fn check(s: &Sampling) -> Result<(), EngineError> {
    let bad = |m: String| Err(EngineError::Request(m));
    if !(s.temperature >= 0.0 && s.temperature.is_finite()) {
        return bad(format!("sampling temperature {} must be 0 (greedy) or a positive number", s.temperature));
    }
    if s.temperature > 0.0 && !(1.0 / s.temperature).is_finite() {
        return bad(format!("sampling temperature {} is too small; use 0 for greedy", s.temperature));
    }
    if !(s.top_p > 0.0 && s.top_p <= 1.0) {
        return bad(format!("top_p {} must be in (0, 1]; 1 turns it off", s.top_p));
    }
    if s.max_new_tokens == 0 {
        return bad("max_new_tokens must be at least 1".into());
    }
    Ok(())
}

simd! {
    /// w ← exp((z − max) · ratio).
    fn weights_at(z: &[f32], max: f32, ratio: f32, w: &mut [f32]) {
        for (w, &z) in w.iter_mut().zip(z) {
            *w = exp((z - max) * ratio);
        }
    }
}

/// Buffers of a draw.
#[derive(Default)]
pub struct DrawScratch {
    weights: Vec<f32>,
    order: Vec<u32>,
}

/// One row to draw from.
#[derive(Clone, Copy)]
pub struct DrawRow<'a> {
    /// Logits / policy temperature, −∞ where forbidden.
    pub z: &'a [f32],
    /// exp(z − max).
    pub p: &'a [f32],
    pub max: f32,
    /// 1 / policy temperature.
    pub inverse_temperature: f32,
}

/// Draws a token; `u` in [0, 1) gives it its uniform random number when needed.
pub fn draw(row: DrawRow, s: &Sampling, u: impl FnOnce() -> f64, scratch: &mut DrawScratch) -> usize {
    if s.temperature == 0.0 {
        return argmax(row.z);
    }
    let ratio = 1.0 / (s.temperature * row.inverse_temperature);
    let plain = s.top_k == 0 && s.top_p >= 1.0;
    if plain && ratio == 1.0 {
        return inverse_cdf(row.p, u());
    }
    scratch.weights.resize(row.z.len(), 0.0);
    weights_at(row.z, row.max, ratio, &mut scratch.weights);
    filter(s.top_k as usize, s.top_p, scratch);
    inverse_cdf(&scratch.weights, u())
}

/// First index of the largest element.
fn argmax(z: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in z.iter().enumerate() {
        if x > z[best] {
            best = i;
        }
    }
    best
}

/// The index where the running sum of weights passes u · Σ; never one of weight zero.
fn inverse_cdf(w: &[f32], u: f64) -> usize {
    let total: f64 = w.iter().map(|&x| f64::from(x)).sum();
    let goal = u * total;
    let (mut sum, mut last) = (0.0, 0);
    for (i, &x) in w.iter().enumerate() {
        if x > 0.0 {
            sum += f64::from(x);
            last = i;
            if sum > goal {
                return i;
            }
        }
    }
    last
}

/// Zeroes the weights that top-k and then top-p remove, as transformers' warpers do (ties at the k-th place stay).
fn filter(top_k: usize, top_p: f32, scratch: &mut DrawScratch) {
    let w = &mut scratch.weights;
    let n = w.len();
    if (top_k == 0 || top_k >= n) && top_p >= 1.0 {
        return;
    }
    let order = &mut scratch.order;
    order.clear();
    order.extend((0..n as u32).filter(|&i| w[i as usize] > 0.0));
    order.sort_by(|&a, &b| w[b as usize].total_cmp(&w[a as usize]));
    let mut kept = order.len();
    if top_k > 0 && top_k < kept {
        let least = w[order[top_k - 1] as usize];
        kept = order.iter().take_while(|&&i| w[i as usize] >= least).count();
    }
    if top_p < 1.0 {
        let total: f64 = order[..kept].iter().map(|&i| f64::from(w[i as usize])).sum();
        let limit = (1.0 - f64::from(top_p)) * total;
        let mut tail = 0.0;
        while kept > 1 {
            tail += f64::from(w[order[kept - 1] as usize]);
            if tail > limit {
                break;
            }
            kept -= 1;
        }
    }
    for &i in &order[kept..] {
        w[i as usize] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(temperature: f32, top_p: f32, top_k: u32) -> Sampling {
        Sampling { temperature, top_p, top_k, max_new_tokens: 1 }
    }

    fn probabilities(z: &[f32], s: &Sampling) -> Vec<f64> {
        let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut scratch = DrawScratch { weights: vec![0.0; z.len()], order: Vec::new() };
        weights_at(z, max, 1.0 / s.temperature, &mut scratch.weights);
        filter(s.top_k as usize, s.top_p, &mut scratch);
        let total: f64 = scratch.weights.iter().map(|&x| f64::from(x)).sum();
        scratch.weights.iter().map(|&x| f64::from(x) / total).collect()
    }

    #[test]
    fn distributions_agree_with_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/sampling_expected.json");
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let rows: Vec<Vec<f32>> = serde_json::from_value(json["logits"].clone()).unwrap();
        let mut compared = 0;
        for case in json["cases"].as_array().unwrap() {
            let number = |k: &str| case[k].as_f64().unwrap_or(0.0);
            if number("repetition_penalty") != 1.0 || number("min_p") != 0.0 || number("temperature") == 0.0 {
                continue;
            }
            let s = settings(number("temperature") as f32, number("top_p") as f32, number("top_k") as u32);
            let want: Vec<Vec<f64>> = serde_json::from_value(case["probs"].clone()).unwrap();
            for (z, want) in rows.iter().zip(&want) {
                for (i, (a, b)) in probabilities(z, &s).iter().zip(want).enumerate() {
                    assert!((a - b).abs() < 2e-6, "{s:?}: token {i} has {a} against {b}");
                }
                compared += 1;
            }
        }
        assert!(compared >= 6, "only {compared} rows compared");
    }

    #[test]
    fn draws_follow_the_weights() {
        let w = [0.0f32, 1.0, 0.0, 3.0, 0.0];
        assert_eq!(inverse_cdf(&w, 0.0), 1);
        assert_eq!(inverse_cdf(&w, 0.2499), 1);
        assert_eq!(inverse_cdf(&w, 0.25), 3);
        assert_eq!(inverse_cdf(&w, 1.0 - 1e-16), 3);
    }

    #[test]
    fn ties_go_to_the_first() {
        assert_eq!(argmax(&[f32::NEG_INFINITY, 2.0, 5.0, 5.0]), 2);
    }

    #[test]
    fn bad_settings_are_named() {
        assert!(check(&settings(-1.0, 1.0, 0)).is_err());
        assert!(check(&settings(f32::NAN, 1.0, 0)).is_err());
        assert!(check(&settings(1.0, 0.0, 0)).is_err());
        assert!(check(&settings(1.0, 1.0, 3)).is_ok());
    }
}
