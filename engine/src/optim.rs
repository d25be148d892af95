//! The fused optimiser pass over a slab: gradient norm, clipping and AdamW as in torch (decay on all parameters).

use crate::kernels::isa::simd;
use crate::types::AdamW;

const LANES: usize = 8;

simd! {
    /// Adds g² to a running sum in fixed lanes.
    fn add_squares(lanes: &mut [f64; LANES], g: &[f32]) {
        let mut sums = *lanes;
        let chunks = g.chunks_exact(LANES);
        let rest = chunks.remainder();
        for c in chunks {
            for l in 0..LANES {
                let x = f64::from(c[l]);
                sums[l] = x.mul_add(x, sums[l]);
            }
        }
        for (l, &x) in rest.iter().enumerate() {
            sums[l] = f64::from(x).mul_add(f64::from(x), sums[l]);
        }
        *lanes = sums;
    }
}

/// A running Σ g² in f64. Continued over the stretches of a slab in order, it has the bits of one pass over the whole, provided that every
/// stretch but the last is a multiple of 8 elements long.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SquareSum([f64; LANES]);

impl SquareSum {
    /// Bytes of [`SquareSum::to_bytes`].
    pub const BYTES: usize = LANES * 8;

    /// Adds the next stretch.
    pub fn add(&mut self, g: &[f32]) {
        add_squares(&mut self.0, g);
    }

    /// The sum so far.
    pub fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    /// For another process to go on from.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// What [`SquareSum::to_bytes`] gave; none if the length is another.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let lanes: Vec<f64> = numbers.iter().map(|b| f64::from_le_bytes(*b)).collect();
        if rest.is_empty() { Some(Self(lanes.try_into().ok()?)) } else { None }
    }
}

/// Numbers of one AdamW step.
#[derive(Debug, Clone, Copy)]
pub struct StepFactors {
    /// Factor on the gradient (clipping).
    pub clip: f32,
    /// 1 − learning rate × decay.
    pub decay: f32,
    /// Learning rate / (1 − β₁ᵗ).
    pub rate: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub v_scale: f32,
}

impl StepFactors {
    /// Step number `t` counts from 1.
    pub fn new(o: &AdamW, learning_rate: f32, t: u64, clip: f32) -> Self {
        let power = |b: f32| 1.0 - f64::from(b).powf(t as f64);
        Self {
            clip,
            decay: 1.0 - learning_rate * o.weight_decay,
            rate: (f64::from(learning_rate) / power(o.beta1)) as f32,
            v_scale: (1.0 / power(o.beta2).sqrt()) as f32,
        }
    }
}

simd! {
    /// One pass: w, m and v change, g is zeroed.
    pub fn adamw(o: &AdamW, f: StepFactors, w: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        let (b1, b2, eps) = (o.beta1, o.beta2, o.eps);
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let x = *g * f.clip;
            *g = 0.0;
            *m = b1.mul_add(*m, (1.0 - b1) * x);
            *v = b2.mul_add(*v, (1.0 - b2) * x * x);
            let denom = v.sqrt().mul_add(f.v_scale, eps);
            *w = *w * f.decay - f.rate * *m / denom;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_step_moves_by_the_learning_rate() {
        let o = AdamW { weight_decay: 0.0, ..AdamW::default() };
        let (mut w, mut g, mut m, mut v) = ([1.0f32, -2.0], [0.3f32, -7.0], [0.0; 2], [0.0; 2]);
        adamw(&o, StepFactors::new(&o, 0.01, 1, 1.0), &mut w, &mut g, &mut m, &mut v);
        assert!((w[0] - 0.99).abs() < 1e-6 && (w[1] + 1.99).abs() < 1e-6, "{w:?}");
        assert_eq!(g, [0.0; 2]);
    }

    #[test]
    fn squares_are_summed() {
        let g: Vec<f32> = (0..1003).map(|i| (i as f32).sin()).collect();
        let want: f64 = g.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let sum_of = |parts: &[&[f32]]| {
            let mut sum = SquareSum::default();
            for part in parts {
                sum.add(part);
                sum = SquareSum::from_bytes(&sum.to_bytes()).unwrap();
            }
            sum.total()
        };
        let whole = sum_of(&[&g]);
        assert!((whole - want).abs() < 1e-9);
        assert!(sum_of(&[&[1.0, f32::NAN]]).is_nan());
        assert_eq!(
            whole.to_bits(),
            sum_of(&[&g[..512], &g[512..520], &g[520..]]).to_bits(),
            "the same bits in stretches"
        );
        assert_eq!(SquareSum::from_bytes(&[0; SquareSum::BYTES - 1]), None);
        assert_eq!(SquareSum::from_bytes(&[0; SquareSum::BYTES + 8]), None);
    }
}
