//! One transformer block of the plan on device tensors, forward and explicit backward.

use super::layers::heads;
use super::ops;
use super::rows::Rows;
use super::store::{Grads, Weights};
use crate::block::Block;
use crate::error::EngineError;
use crate::kernels::attention::Heads;
use crate::params::Param;
use candle_core::Tensor;

type Result<T> = std::result::Result<T, EngineError>;

/// q `[n, heads, hd]`, k and v `[n, kv_heads, hd]`, q and k normed and rotated.
pub struct Projected {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    /// q and k before their norms; only with qk-norm.
    raw: Option<(Tensor, Tensor)>,
}

/// What the backward pass of a block reads.
pub struct Kept {
    x_in: Tensor,
    projected: Projected,
    mixed: Tensor,
    x_mid: Tensor,
    hidden: Tensor,
}

impl Kept {
    /// Queries, keys and values.
    pub fn projected(&self) -> &Projected {
        &self.projected
    }
}

/// What is kept of each block between the passes.
pub enum Tape {
    Nothing,
    /// The input; the forward pass is done again.
    Input(Tensor),
    All(Box<Kept>),
}

impl Weights<'_> {
    /// q, k and v of rows x, from their own norm on.
    pub fn project(&self, b: &Block, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Projected> {
        let qkv = self.linear(&b.qkv, &self.norm(&b.norm1, x)?)?;
        let Heads { heads: h, kv_heads: kv, hd } = b.heads;
        let mut q = heads(&qkv.narrow(1, 0, h * hd)?, h)?;
        let mut k = heads(&qkv.narrow(1, h * hd, kv * hd)?, kv)?;
        let v = heads(&qkv.narrow(1, (h + kv) * hd, kv * hd)?, kv)?;
        let mut raw = None;
        if let Some(n) = &b.qk_norm {
            let normed = (self.head_norm(&n.q, n.eps, &q)?, self.head_norm(&n.k, n.eps, &k)?);
            raw = Some((q, k));
            (q, k) = normed;
        }
        Ok(Projected { q: ops::rotate(&q, cos, sin, 1.0)?, k: ops::rotate(&k, cos, sin, 1.0)?, v, raw })
    }

    fn head_norm(&self, weight: &Param, eps: f32, x: &Tensor) -> Result<Tensor> {
        let (n, heads, hd) = x.dims3()?;
        Ok(ops::rms_norm(&x.reshape((n * heads, hd))?, self.get(weight)?, eps)?.reshape((n, heads, hd))?)
    }

    /// (x behind attention, hidden rows of the MLP, x behind the block) from the mixed values `[n, heads, hd]`.
    pub fn finish(&self, b: &Block, x: &Tensor, mixed: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let x_mid = (x + self.linear_sum(&b.out, &mixed.flatten_from(1)?)?)?;
        let (y, hidden) = self.mlp(&b.mlp, &self.norm(&b.norm2, &x_mid)?)?;
        let out = (&x_mid + y)?;
        Ok((x_mid, hidden, out))
    }

    /// Rows behind the block, and everything its backward pass reads.
    pub fn block(&self, b: &Block, x: &Tensor, rows: &Rows) -> Result<(Tensor, Kept)> {
        let p = self.project(b, x, &rows.cos, &rows.sin)?;
        let mixed = ops::attend(&p.q, &p.k, &p.v, &rows.index, f64::from(b.scale()))?;
        let (x_mid, hidden, out) = self.finish(b, x, &mixed)?;
        Ok((out, Kept { x_in: x.clone(), projected: p, mixed, x_mid, hidden }))
    }

    /// Gradient of the block's input from that of its output.
    pub fn block_backward(&self, b: &Block, rows: &Rows, tape: Tape, dy: &Tensor, grads: &mut Grads) -> Result<Tensor> {
        let kept = match tape {
            Tape::All(kept) => *kept,
            Tape::Input(x) => self.block(b, &x, rows)?.1,
            Tape::Nothing => {
                return Err(EngineError::Device("a block was passed backward without its forward pass".into()));
            }
        };
        let normed = self.norm(&b.norm2, &kept.x_mid)?;
        let d_normed = self.mlp_backward(&b.mlp, &normed, &kept.hidden, dy, grads)?;
        let dx = (dy + self.norm_backward(&b.norm2, &kept.x_mid, &d_normed, grads)?)?;
        self.attention_backward(b, rows, &kept, &dx, grads)
    }

    fn attention_backward(
        &self,
        b: &Block,
        rows: &Rows,
        kept: &Kept,
        dx: &Tensor,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let p = &kept.projected;
        self.linear_weights(&b.out, &kept.mixed.flatten_from(1)?, dx, grads)?;
        let d_mixed = heads(&self.linear_input(&b.out, dx)?, b.heads.heads)?;
        let (dq, dk, dv) = ops::attend_backward(&p.q, &p.k, &p.v, &d_mixed, &rows.index, f64::from(b.scale()))?;
        let mut dq = ops::rotate(&dq, &rows.cos, &rows.sin, -1.0)?;
        let mut dk = ops::rotate(&dk, &rows.cos, &rows.sin, -1.0)?;
        if let (Some(n), Some((q, k))) = (&b.qk_norm, &p.raw) {
            dq = self.head_norm_backward(&n.q, n.eps, q, &dq, grads)?;
            dk = self.head_norm_backward(&n.k, n.eps, k, &dk, grads)?;
        }
        let d_qkv = Tensor::cat(&[dq.flatten_from(1)?, dk.flatten_from(1)?, dv.flatten_from(1)?], 1)?;
        self.linear_weights(&b.qkv, &self.norm(&b.norm1, &kept.x_in)?, &d_qkv, grads)?;
        let d_normed = self.sum(self.linear_input(&b.qkv, &d_qkv)?)?;
        Ok((dx + self.norm_backward(&b.norm1, &kept.x_in, &d_normed, grads)?)?)
    }

    fn head_norm_backward(
        &self,
        weight: &Param,
        eps: f32,
        x: &Tensor,
        dy: &Tensor,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let (n, heads, hd) = x.dims3()?;
        let flat = (n * heads, hd);
        let (dx, dw) = ops::rms_norm_backward(&x.reshape(flat)?, self.get(weight)?, eps, &dy.reshape(flat)?)?;
        grads.add(weight, || Ok(dw))?;
        Ok(dx.reshape((n, heads, hd))?)
    }
}
