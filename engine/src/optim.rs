//! The fused optimiser pass over a slab: gradient norm, clipping and AdamW as in torch (decay on all parameters).

use crate::kernels::isa::simd;
use crate::types::AdamW;

const LANES: usize = 8;

simd! {
    /// Σ g² in f64, in fixed lanes.
    pub fn sum_of_squares(g: &[f32]) -> f64 {
        let mut lanes = [0f64; LANES];
        let chunks = g.chunks_exact(LANES);
        let rest = chunks.remainder();
        for c in chunks {
            for l in 0..LANES {
                let x = f64::from(c[l]);
                lanes[l] = x.mul_add(x, lanes[l]);
            }
        }
        for (l, &x) in rest.iter().enumerate() {
            lanes[l] = f64::from(x).mul_add(f64::from(x), lanes[l]);
        }
        lanes.iter().sum()
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
        assert!((sum_of_squares(&g) - want).abs() < 1e-9);
        assert!(sum_of_squares(&[1.0, f32::NAN]).is_nan());
    }
}
