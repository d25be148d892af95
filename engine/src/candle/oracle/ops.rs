//! Building blocks that candle can differentiate: composed of elementwise operations, reductions and matmul, never of its fused ones.

use candle_core::{D, DType, Device, Result, Tensor};

/// `x · wᵀ (+ bias)`: x `[n, in]`, w `[out, in]`, bias `[out]`.
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// Root-mean-square norm over the last dimension: x `[n, h]`, weight `[h]`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let root = (mean_square + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&root)?.broadcast_mul(weight)
}

/// Log-softmax over the last dimension. The maximum is a constant to the gradient: its share cancels exactly.
pub(super) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&log_sum)
}

/// Softmax over the last dimension; entries of −∞ get probability 0.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let powers = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

/// SwiGLU feed-forward: `down(silu(gate(x)) ∘ up(x))`; each argument is (weight, bias).
pub(super) fn swiglu(x: &Tensor, gate: Affine, up: Affine, down: Affine) -> Result<Tensor> {
    let inner = (linear(x, gate.0, gate.1)?.silu()? * linear(x, up.0, up.1)?)?;
    linear(&inner, down.0, down.1)
}

/// Weight and bias of a linear layer.
pub(super) type Affine<'a> = (&'a Tensor, Option<&'a Tensor>);

/// Rotation angles of one sequence: cosines and sines, each `[n, head_dim / 2]`.
pub(super) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// `angle(row, pair)` in radians, for `n` rows of `pairs` rotary pairs.
    pub fn new(
        n: usize,
        pairs: usize,
        device: &Device,
        dtype: DType,
        angle: impl Fn(usize, usize) -> f64,
    ) -> Result<Self> {
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> = (0..n * pairs).map(|i| f(angle(i / pairs, i % pairs))).collect();
            Tensor::from_vec(values, (n, pairs), device)?.to_dtype(dtype)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Rotates pair (i, i + head_dim / 2) of each row: x `[heads, n, head_dim]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let pairs = x.dim(D::Minus1)? / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, pairs)?, x.narrow(D::Minus1, pairs, pairs)?);
        let left = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let right = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Tensor::cat(&[left, right], D::Minus1)
    }
}

/// `[n, heads · head_dim]` → `[heads, n, head_dim]`.
pub(super) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    x.reshape((n, heads, width / heads))?.transpose(0, 1)?.contiguous()
}

/// Repeats each of `[kv_heads, n, head_dim]` for its `repeats` query heads.
pub(super) fn repeat_heads(x: &Tensor, repeats: usize) -> Result<Tensor> {
    let (heads, n, dim) = x.dims3()?;
    x.unsqueeze(1)?.broadcast_as((heads, repeats, n, dim))?.reshape((heads * repeats, n, dim))
}

/// Dense attention: q, k, v `[heads, n, head_dim]`, mask `[n, n]` added to the scaled scores; result `[n, heads · head_dim]`.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (heads, n, dim) = q.dims3()?;
    let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? / (dim as f64).sqrt())?;
    let mixed = softmax(&scores.broadcast_add(mask)?)?.matmul(v)?;
    mixed.transpose(0, 1)?.contiguous()?.reshape((n, heads * dim))
}

/// `[n, n]` with 0 where row `i` may attend to column `j` and −∞ elsewhere.
pub(super) fn mask(n: usize, device: &Device, dtype: DType, allowed: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
    let values = (0..n * n).map(|i| if allowed(i / n, i % n) { 0.0f32 } else { f32::NEG_INFINITY }).collect();
    Tensor::from_vec(values, (n, n), device)?.to_dtype(dtype)
}
