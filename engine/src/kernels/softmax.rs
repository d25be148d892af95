//! Row softmax in the two forms the engine needs: attention rows with masked tails, and the policy distribution over a vocabulary.

use super::exp::exp;
use super::isa::simd;
use super::norm::fold;

const LANES: usize = 16;

/// Largest element; NaN elements are skipped (their exponentials stay NaN and show in the sum).
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for c in chunks {
        for l in 0..LANES {
            lanes[l] = if c[l] > lanes[l] { c[l] } else { lanes[l] };
        }
    }
    for (l, &v) in rest.iter().enumerate() {
        lanes[l] = if v > lanes[l] { v } else { lanes[l] };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// x ← exp(x − shift); returns the sum in fixed lanes.
#[inline(always)]
fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for c in &mut chunks {
        for l in 0..LANES {
            let e = exp(c[l] - shift);
            c[l] = e;
            lanes[l] += e;
        }
    }
    for (l, v) in chunks.into_remainder().iter_mut().enumerate() {
        *v = exp(*v - shift);
        lanes[l] += *v;
    }
    fold(lanes)
}

simd! {
    /// x ← exp(x − max x), masked places (−∞) becoming 0; returns (max, 1 / Σ).
    pub fn softmax_row(x: &mut [f32]) -> (f32, f32) {
        let m = largest(x);
        let s = exp_sum(x, m);
        (m, 1.0 / s)
    }
}

simd! {
    /// [`softmax_row`] of every row of `w`, inverse sums into `inverse`.
    pub fn softmax_rows(x: &mut [f32], w: usize, inverse: &mut [f32]) {
        for (row, inv) in x.chunks_exact_mut(w).zip(inverse) {
            let m = largest(row);
            *inv = 1.0 / exp_sum(row, m);
        }
    }
}

simd! {
    /// Each head of `hd` elements times its factor.
    pub fn scale_heads(x: &mut [f32], factors: &[f32], hd: usize) {
        for (head, &f) in x.chunks_exact_mut(hd).zip(factors) {
            for v in head {
                *v *= f;
            }
        }
    }
}

simd! {
    /// x ← exp(x − shift) · factor: probabilities again from a stored maximum and inverse sum.
    pub fn softmax_again(x: &mut [f32], shift: f32, factor: f32) {
        for v in x {
            *v = exp(*v - shift) * factor;
        }
    }
}

simd! {
    /// x ← x · factor.
    pub fn scale(x: &mut [f32], factor: f32) {
        for v in x {
            *v *= factor;
        }
    }
}

simd! {
    /// ds = p (dp − delta), into `dp`.
    pub fn softmax_backward(p: &[f32], dp: &mut [f32], delta: f32) {
        for (d, &p) in dp.iter_mut().zip(p) {
            *d = p * (*d - delta);
        }
    }
}

/// Normaliser of a policy row: log Σ exp(z) is `max + ln_sum`; `entropy` in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyRow {
    pub max: f32,
    pub sum: f32,
    pub ln_sum: f32,
    pub entropy: f32,
}

simd! {
    /// z ← z / temperature (`inverse` = 1 / temperature); returns the largest.
    fn scaled_max(z: &mut [f32], inverse: f32) -> f32 {
        for v in z.iter_mut() {
            *v *= inverse;
        }
        largest(z)
    }
}

simd! {
    /// p ← exp(z − max); returns (Σ p, Σ p (z − max)) in fixed lanes.
    fn exp_and_moments(z: &[f32], max: f32, p: &mut [f32]) -> (f32, f32) {
        let (mut s, mut t) = ([0f32; LANES], [0f32; LANES]);
        let zc = z.chunks_exact(LANES);
        let zr = zc.remainder();
        let mut pc = p.chunks_exact_mut(LANES);
        for (z, p) in zc.zip(&mut pc) {
            for l in 0..LANES {
                let d = z[l] - max;
                let e = exp(d);
                p[l] = e;
                s[l] += e;
                t[l] += if e > 0.0 { e * d } else { 0.0 };
            }
        }
        for (l, (&z, p)) in zr.iter().zip(pc.into_remainder()).enumerate() {
            let d = z - max;
            let e = exp(d);
            *p = e;
            s[l] += e;
            t[l] += if e > 0.0 { e * d } else { 0.0 };
        }
        (fold(s), fold(t))
    }
}

/// Policy softmax of one row of logits: z ← logits / temperature with forbidden places −∞, p ← exp(z − max) (not normalised).
/// `None` if a logit that counts is not finite.
pub fn policy_row(z: &mut [f32], p: &mut [f32], inverse_temperature: f32, forbidden: &[usize]) -> Option<PolicyRow> {
    for &f in forbidden {
        z[f] = f32::NEG_INFINITY;
    }
    let max = scaled_max(z, inverse_temperature);
    let (sum, moment) = exp_and_moments(z, max, p);
    if !(max.is_finite() && sum.is_finite() && sum > 0.0) {
        return None;
    }
    let ln_sum = sum.ln();
    Some(PolicyRow { max, sum, ln_sum, entropy: ln_sum - moment / sum })
}
