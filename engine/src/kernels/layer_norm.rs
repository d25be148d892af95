//! LayerNorm forward and backward by row. Statistics are pairs (mean, 1 / deviation); sums run in the fixed lanes of `norm.rs`.

use super::isa::simd;
use super::norm::{LANES, fold};

/// Σ f(i) for i in 0..n in fixed lanes.
#[inline(always)]
fn sum(n: usize, f: impl Fn(usize, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n - n % LANES;
    for i in (0..whole).step_by(LANES) {
        for l in 0..LANES {
            lanes[l] = f(i + l, lanes[l]);
        }
    }
    for i in whole..n {
        lanes[i - whole] = f(i, lanes[i - whole]);
    }
    fold(lanes)
}

simd! {
    /// out = (x − mean) · rstd · w + b for each row of `w.len()`; `stats` receives (mean, rstd) of each row.
    pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, stats: &mut [f32], out: &mut [f32]) {
        let h = w.len();
        for ((x, out), st) in x.chunks_exact(h).zip(out.chunks_exact_mut(h)).zip(stats.chunks_exact_mut(2)) {
            let mean = sum(h, |i, acc| acc + x[i]) / h as f32;
            let variance = sum(h, |i, acc| (x[i] - mean).mul_add(x[i] - mean, acc)) / h as f32;
            let rstd = 1.0 / (variance + eps).sqrt();
            (st[0], st[1]) = (mean, rstd);
            for i in 0..h {
                out[i] = ((x[i] - mean) * rstd).mul_add(w[i], b[i]);
            }
        }
    }
}

simd! {
    /// The forward result again from stored statistics, bit for bit.
    pub fn layer_norm_again(x: &[f32], w: &[f32], b: &[f32], stats: &[f32], out: &mut [f32]) {
        let h = w.len();
        for ((x, out), st) in x.chunks_exact(h).zip(out.chunks_exact_mut(h)).zip(stats.chunks_exact(2)) {
            for i in 0..h {
                out[i] = ((x[i] - st[0]) * st[1]).mul_add(w[i], b[i]);
            }
        }
    }
}

simd! {
    /// dw += ∂norm/∂w · dy, rows in order. The bias' gradient is a sum of columns.
    pub fn layer_norm_backward_weight(x: &[f32], stats: &[f32], dy: &[f32], dw: &mut [f32]) {
        let h = dw.len();
        for ((x, dy), st) in x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(stats.chunks_exact(2)) {
            for i in 0..h {
                dw[i] = ((x[i] - st[0]) * st[1]).mul_add(dy[i], dw[i]);
            }
        }
    }
}

simd! {
    /// dx += ∂norm/∂x · dy.
    pub fn layer_norm_backward_input(x: &[f32], w: &[f32], stats: &[f32], dy: &[f32], dx: &mut [f32]) {
        let h = w.len();
        let rows = x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(dx.chunks_exact_mut(h)).zip(stats.chunks_exact(2));
        for (((x, dy), dx), st) in rows {
            let (mean, rstd) = (st[0], st[1]);
            let a = sum(h, |i, acc| dy[i].mul_add(w[i], acc)) / h as f32;
            let b = sum(h, |i, acc| (dy[i] * w[i]).mul_add((x[i] - mean) * rstd, acc)) / h as f32;
            for i in 0..h {
                dx[i] += rstd * (dy[i] * w[i] - a - (x[i] - mean) * rstd * b);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Σ cᵢ · norm(x)ᵢ in f64.
    fn reference(x: &[f64], w: &[f64], b: &[f64], c: &[f64]) -> f64 {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let rstd = 1.0 / (variance + 1e-6).sqrt();
        (0..x.len()).map(|i| c[i] * ((x[i] - mean) * rstd * w[i] + b[i])).sum()
    }

    #[test]
    fn gradients_agree_with_differences() {
        let n = 37;
        let at = |i: usize, s: f64| (i as f64 * 0.7 + s).sin() * 1.5 + 0.3;
        let wide: [Vec<f64>; 4] = std::array::from_fn(|k| (0..n).map(|i| at(i, k as f64)).collect());
        let [x, w, b, c] = wide.each_ref().map(|v| v.iter().map(|&a| a as f32).collect::<Vec<f32>>());
        let (mut stats, mut out, mut again) = ([0.0; 2], vec![0.0; n], vec![0.0; n]);
        layer_norm(&x, &w, &b, 1e-6, &mut stats, &mut out);
        layer_norm_again(&x, &w, &b, &stats, &mut again);
        assert_eq!(out, again);
        let value: f64 = (0..n).map(|i| wide[3][i] * f64::from(out[i])).sum();
        assert!((value - reference(&wide[0], &wide[1], &wide[2], &wide[3])).abs() < 1e-4);
        let (mut dx, mut dw) = (vec![0.0; n], vec![0.0; n]);
        layer_norm_backward_input(&x, &w, &stats, &c, &mut dx);
        layer_norm_backward_weight(&x, &stats, &c, &mut dw);
        for (which, ours) in [(0, &dx), (1, &dw)] {
            for i in 0..n {
                let mut moved = wide.clone();
                moved[which][i] += 1e-5;
                let up = reference(&moved[0], &moved[1], &moved[2], &moved[3]);
                moved[which][i] -= 2e-5;
                let down = reference(&moved[0], &moved[1], &moved[2], &moved[3]);
                let want = (up - down) / 2e-5;
                assert!((want - f64::from(ours[i])).abs() < 1e-4, "{which} {i}: {} against {want}", ours[i]);
            }
        }
    }
}
