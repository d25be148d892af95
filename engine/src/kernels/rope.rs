//! Rotary positions on q and k in place, half-split form, from tables of cos and sin with `head_dim / 2` entries a row.

use super::isa::simd;

simd! {
    /// Rotates `heads` heads of `hd` at the start of each row of `x` (rows `ld` apart), the first `scaled` heads times `scale`.
    /// `sign` −1 rotates back (the gradient). cos and sin: \[rows, hd / 2\].
    pub fn rotate(x: &mut [f32], ld: usize, heads: usize, hd: usize, cos: &[f32], sin: &[f32], sign: f32, scaled: usize, scale: f32) {
        let half = hd / 2;
        for ((row, cos), sin) in x.chunks_exact_mut(ld).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half)) {
            for (h, head) in row[..heads * hd].chunks_exact_mut(hd).enumerate() {
                let f = if h < scaled { scale } else { 1.0 };
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    let (x, y, s) = (a[i], b[i], sign * sin[i]);
                    a[i] = (x * cos[i] - y * s) * f;
                    b[i] = (y * cos[i] + x * s) * f;
                }
            }
        }
    }
}

/// Inverse frequencies 1 / theta^(2i / dim) for i in 0..dim / 2, rounded to f32 as torch does.
pub fn inverse_frequencies(dim: usize, theta: f64) -> Vec<f32> {
    (0..dim / 2).map(|i| (1.0 / theta.powf((2 * i) as f64 / dim as f64)) as f32).collect()
}

/// cos and sin of position × frequency, the angle rounded to f32.
pub fn cos_sin(position: i32, frequency: f32) -> (f32, f32) {
    let angle = f64::from(position as f32 * frequency);
    (angle.cos() as f32, angle.sin() as f32)
}
