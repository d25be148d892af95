//! The seam for fused kernels: what a block is made of besides matrix products, forward and backward, each as plain candle operations.
//! Tensors are contiguous, in the compute type (f32 or bf16); statistics, softmax and gradients of weights are in f32.

pub use super::attention::{attend, attend_backward, attend_step};
use candle_core::{D, DType, Result, Tensor};

/// The same values in f32.
pub fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// 1 / √(mean square + eps) of each row `[n, 1]`, from f32.
fn inverse_root(x: &Tensor, eps: f32) -> Result<Tensor> {
    (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?.recip()
}

/// RMSNorm over rows: x `[n, h]`, w `[h]`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if super::fused::takes(x) {
        return super::fused::rms_norm(x, w, eps);
    }
    let f = wide(x)?;
    f.broadcast_mul(&inverse_root(&f, eps)?)?.broadcast_mul(&wide(w)?)?.to_dtype(x.dtype())
}

/// (dx `[n, h]`, dw `[h]` in f32) from dy `[n, h]`.
pub fn rms_norm_backward(x: &Tensor, w: &Tensor, eps: f32, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if super::fused::takes(x) {
        return super::fused::rms_norm_backward(x, w, eps, dy);
    }
    let (f, dy) = (wide(x)?, wide(dy)?);
    let root = inverse_root(&f, eps)?;
    let normed = f.broadcast_mul(&root)?;
    let dw = (&dy * &normed)?.sum(0)?;
    let g = dy.broadcast_mul(&wide(w)?)?;
    let share = (&g * &normed)?.mean_keepdim(D::Minus1)?;
    let dx = (g - normed.broadcast_mul(&share)?)?.broadcast_mul(&root)?;
    Ok((dx.to_dtype(x.dtype())?, dw))
}

/// (normed rows, 1 / deviation) of f32 rows.
fn standardise(x: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let root = inverse_root(&centred, eps)?;
    Ok((centred.broadcast_mul(&root)?, root))
}

/// LayerNorm over rows: x `[n, h]`, w and b `[h]`.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<Tensor> {
    let (normed, _) = standardise(&wide(x)?, eps)?;
    normed.broadcast_mul(&wide(w)?)?.broadcast_add(&wide(b)?)?.to_dtype(x.dtype())
}

/// (dx `[n, h]`, dw `[h]`, db `[h]`, both in f32) from dy `[n, h]`.
pub fn layer_norm_backward(x: &Tensor, w: &Tensor, eps: f32, dy: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    let dy = wide(dy)?;
    let (normed, root) = standardise(&wide(x)?, eps)?;
    let (dw, db) = ((&dy * &normed)?.sum(0)?, dy.sum(0)?);
    let g = dy.broadcast_mul(&wide(w)?)?;
    let share = (&g * &normed)?.mean_keepdim(D::Minus1)?;
    let dx = g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)?;
    let dx = (dx - normed.broadcast_mul(&share)?)?.broadcast_mul(&root)?;
    Ok((dx.to_dtype(x.dtype())?, dw, db))
}

/// Rotates the pairs (i, i + hd / 2) of every head: x `[n, heads, hd]`, cos and sin `[n, hd / 2]` in f32. `sign` −1 turns back.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, sign: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if super::fused::takes(x) {
        return super::fused::rotate(x, cos, sin, sign);
    }
    let half = x.dim(D::Minus1)? / 2;
    let (f, cos, sin) = (wide(x)?, cos.unsqueeze(1)?, (sin.unsqueeze(1)? * sign)?);
    let (a, b) = (f.narrow(D::Minus1, 0, half)?, f.narrow(D::Minus1, half, half)?);
    let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[left, right], D::Minus1)?.to_dtype(x.dtype())
}

/// 1 / (1 + e⁻ˣ).
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// silu(gate) · up of rows gate|up `[n, 2m]`: `[n, m]`.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if super::fused::takes(gate_up) {
        return super::fused::swiglu(gate_up);
    }
    let (gate, up) = halves(gate_up)?;
    ((&gate * sigmoid(&gate)?)? * up)?.to_dtype(gate_up.dtype())
}

/// (activation `[n, m]` again, gradient of gate|up `[n, 2m]`) from the gradient `d` of the activation.
pub fn swiglu_backward(gate_up: &Tensor, d: &Tensor) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if super::fused::takes(gate_up) {
        return super::fused::swiglu_backward(gate_up, d);
    }
    let ((gate, up), d) = (halves(gate_up)?, wide(d)?);
    let s = sigmoid(&gate)?;
    let silu = (&gate * &s)?;
    let slope = (&s + (&silu * (1.0 - &s)?)?)?;
    let d_gate = ((&d * &up)? * slope)?;
    let d_up = (&d * &silu)?;
    let dtype = gate_up.dtype();
    Ok(((silu * up)?.to_dtype(dtype)?, Tensor::cat(&[d_gate, d_up], 1)?.to_dtype(dtype)?))
}

fn halves(gate_up: &Tensor) -> Result<(Tensor, Tensor)> {
    let m = gate_up.dim(1)? / 2;
    Ok((wide(&gate_up.narrow(1, 0, m)?)?, wide(&gate_up.narrow(1, m, m)?)?))
}

/// The policy distribution of some rows, all f32.
pub struct PolicyRows {
    /// Logits / temperature, −1e30 and less where forbidden: `[n, vocab]`.
    pub z: Tensor,
    /// exp(z − max): `[n, vocab]`.
    pub p: Tensor,
    /// `[n, 1]` each.
    pub max: Tensor,
    pub sum: Tensor,
    /// Nats: `[n]`.
    pub entropy: Tensor,
}

/// Policy rows of logits `[n, vocab]`; `bias` `[vocab]` is 0 or −1e30 where a token is forbidden.
pub fn policy_rows(logits: &Tensor, bias: Option<&Tensor>, inverse_temperature: f32) -> Result<PolicyRows> {
    #[cfg(feature = "cuda")]
    if super::fused::takes(logits) {
        return super::fused::policy_rows(logits, bias, inverse_temperature);
    }
    let mut z = (wide(logits)? * f64::from(inverse_temperature))?;
    if let Some(bias) = bias {
        z = z.broadcast_add(bias)?;
    }
    let max = z.max_keepdim(D::Minus1)?;
    let shifted = z.broadcast_sub(&max)?;
    let p = shifted.exp()?;
    let sum = p.sum_keepdim(D::Minus1)?;
    let mean = ((&p * shifted)?.sum_keepdim(D::Minus1)? / &sum)?;
    let entropy = (sum.log()? - mean)?.squeeze(1)?;
    Ok(PolicyRows { z, p, max, sum, entropy })
}

/// Gradient of the logits `[n, vocab]` (f32) of Σ factor · log p(token): `index` and `factor` `[n, k]` name each row's targets (factor 0
/// where there are fewer), `total` `[n]` is the sum of a row's factors.
pub fn policy_backward(
    rows: &PolicyRows,
    total: &Tensor,
    index: &Tensor,
    factor: &Tensor,
    inverse_temperature: f32,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if super::fused::takes(&rows.p) {
        return super::fused::policy_backward(rows, total, index, factor, inverse_temperature);
    }
    let t = f64::from(inverse_temperature);
    let share = ((total.unsqueeze(1)? / &rows.sum)? * -t)?;
    rows.p.broadcast_mul(&share)?.scatter_add(index, &(factor * t)?, 1)
}
