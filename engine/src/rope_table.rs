//! cos and sin by position, computed once, and how the three axes of multimodal rope pick from them.

use crate::kernels::rope::{cos_sin, inverse_frequencies};
use quorum_model::TextConfig;

/// Rotary table of the decoder: `head_dim / 2` frequencies a position.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    half: usize,
    /// Axis (temporal, height, width) that each frequency reads its position from.
    axis: Vec<u8>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Positions `0..positions`.
    pub fn new(config: &TextConfig, positions: usize) -> Self {
        let half = config.head_dim / 2;
        let axis = if config.mrope_section.is_empty() {
            vec![0; half]
        } else {
            config.mrope_section.iter().enumerate().flat_map(|(a, &n)| std::iter::repeat_n(a as u8, n)).collect()
        };
        let frequencies = inverse_frequencies(config.head_dim, config.rope_theta);
        let both = (0..positions).flat_map(|p| frequencies.iter().map(move |&f| cos_sin(p as i32, f)));
        let (cos, sin) = both.unzip();
        Self { half, axis, cos, sin }
    }

    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Appends the row of a token at these positions, which must lie in the table.
    pub fn extend(&self, position: [i32; 3], cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        for (i, &a) in self.axis.iter().enumerate() {
            let at = position[a as usize] as usize * self.half + i;
            cos.push(self.cos[at]);
            sin.push(self.sin[at]);
        }
    }
}
