//! Rotary frequencies of the decoder: which axis turns a pair, and the scalings that stretch a model's context.

use std::f64::consts::TAU;

/// How rotary frequencies differ from `theta^(-2i / head_dim)` (`rope_scaling` or `rope_parameters` of config.json).
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: wavelengths beyond `original_max_positions / low_freq_factor` are stretched by `factor`, those below
    /// `original_max_positions / high_freq_factor` are kept, those between are blended.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
    /// YaRN (Peng et al. 2023): pairs are blended by how often they turn within the original context, and cos and sin grow by `attention_factor`.
    Yarn {
        factor: f64,
        attention_factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        truncate: bool,
        original_max_positions: f64,
    },
}

impl RopeScaling {
    /// Radians per position of rotary pair `pair` of a head of `head_dim`.
    pub fn frequency(&self, pair: usize, head_dim: usize, theta: f64) -> f64 {
        let plain = theta.powf(-((2 * pair) as f64) / head_dim as f64);
        match *self {
            Self::None => plain,
            Self::Linear { factor } => plain / factor,
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions } => {
                // Turns within the original context; above `high` kept, below `low` stretched.
                let turns = original_max_positions * plain / TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - keep) * plain / factor + keep * plain
            }
            Self::Yarn { factor, beta_fast, beta_slow, truncate, original_max_positions, .. } => {
                let dim = head_dim as f64;
                let pair_of = |turns: f64| dim * (original_max_positions / (turns * TAU)).ln() / (2.0 * theta.ln());
                let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, mut last) = (first.max(0.0), last.min(dim - 1.0));
                if first == last {
                    last += 0.001;
                }
                let stretch = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                stretch * plain / factor + (1.0 - stretch) * plain
            }
        }
    }

    /// Factor on cos and sin; 1 for all but YaRN.
    pub fn amplitude(&self) -> f64 {
        match *self {
            Self::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }
}

/// Axis of each of `pairs` rotary pairs. Without sections all turn with axis 0.
pub(super) fn axes(pairs: usize, section: &[usize], interleaved: bool) -> Vec<u8> {
    let &[_, height, width] = section else { return vec![0; pairs] };
    if !interleaved {
        return section.iter().enumerate().flat_map(|(axis, &n)| std::iter::repeat_n(axis as u8, n)).collect();
    }
    // Turns t h w t h w …; an axis that has used its section up leaves its turns to t.
    let axis = |pair: usize| match pair % 3 {
        1 if pair < 3 * height => 1,
        2 if pair < 3 * width => 2,
        _ => 0,
    };
    (0..pairs).map(axis).collect()
}
