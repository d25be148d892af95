//! cos and sin by position, computed once, and how the three axes of multimodal rope pick from them.

use crate::kernels::rope::cos_sin;
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
        // Rounded to f32 as the reference does.
        let frequencies: Vec<f32> = config.rope_frequencies().into_iter().map(|f| f as f32).collect();
        let amplitude = config.rope_scaling.amplitude() as f32;
        let both = (0..positions).flat_map(|p| frequencies.iter().map(move |&f| cos_sin(p as i32, f)));
        let (cos, sin) = both.map(|(c, s)| (c * amplitude, s * amplitude)).unzip();
        Self { half, axis: config.rope_axes(), cos, sin }
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
