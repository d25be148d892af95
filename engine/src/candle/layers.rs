//! Linear layers with adapters, norms and MLPs of the plan on device tensors: forward, and backward into [`Grads`].

use super::ops;
use super::store::{Grads, Weights};
use crate::error::EngineError;
use crate::linear::Linear;
use crate::mlp::{Act, Mlp};
use crate::norm::Norm;
use candle_core::{D, Tensor};

type Result<T> = std::result::Result<T, EngineError>;

impl Weights<'_> {
    /// y = x·Wᵀ + b, adapters included: x `[n, n_in]`.
    pub fn linear(&self, l: &Linear, x: &Tensor) -> Result<Tensor> {
        self.biased(l, self.product(l, x)?)
    }

    /// The same of a layer whose inputs the shards share out: the sum of their products, and the bias once.
    pub fn linear_sum(&self, l: &Linear, x: &Tensor) -> Result<Tensor> {
        self.biased(l, self.sum(self.product(l, x)?)?)
    }

    fn biased(&self, l: &Linear, y: Tensor) -> Result<Tensor> {
        Ok(match &l.bias {
            Some(b) => y.broadcast_add(self.get(b)?)?,
            None => y,
        })
    }

    /// x·Wᵀ, adapters included.
    fn product(&self, l: &Linear, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.get(&l.weight.param)?.t()?)?;
        if l.adapters.is_empty() {
            return Ok(y);
        }
        let mut columns = Vec::new();
        let mut at = 0;
        for a in &l.adapters {
            let reduced = (x.matmul(&self.get(&a.down.param)?.t()?)? * f64::from(a.scale))?;
            let delta = reduced.matmul(&self.get(&a.up.param)?.t()?)?;
            columns.push(y.narrow(1, at, a.first - at)?);
            columns.push((y.narrow(1, a.first, a.up.n_out)? + delta)?);
            at = a.first + a.up.n_out;
        }
        columns.push(y.narrow(1, at, l.n_out - at)?);
        columns.retain(|c| c.elem_count() > 0);
        Ok(Tensor::cat(&columns, 1)?)
    }

    /// Gradients of the layer's weights from its input and dy.
    pub fn linear_weights(&self, l: &Linear, x: &Tensor, dy: &Tensor, grads: &mut Grads) -> Result<()> {
        grads.add(&l.weight.param, || dy.t()?.matmul(x))?;
        if let Some(b) = &l.bias {
            grads.add(b, || ops::wide(dy)?.sum(0))?;
        }
        for a in &l.adapters {
            let part = dy.narrow(1, a.first, a.up.n_out)?.contiguous()?;
            let returned = (part.matmul(self.get(&a.up.param)?)? * f64::from(a.scale))?;
            let reduced = (x.matmul(&self.get(&a.down.param)?.t()?)? * f64::from(a.scale))?;
            grads.add(&a.down.param, || returned.t()?.matmul(x))?;
            grads.add(&a.up.param, || part.t()?.matmul(&reduced))?;
        }
        Ok(())
    }

    /// dx = dy·W, adapters included.
    pub fn linear_input(&self, l: &Linear, dy: &Tensor) -> Result<Tensor> {
        let mut dx = dy.matmul(self.get(&l.weight.param)?)?;
        for a in &l.adapters {
            let part = dy.narrow(1, a.first, a.up.n_out)?.contiguous()?;
            let returned = (part.matmul(self.get(&a.up.param)?)? * f64::from(a.scale))?;
            dx = (dx + returned.matmul(self.get(&a.down.param)?)?)?;
        }
        Ok(dx)
    }

    /// norm(x): x `[n, width]`.
    pub fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        Ok(match norm {
            Norm::Rms { weight, eps } => ops::rms_norm(x, self.get(weight)?, *eps)?,
            Norm::Layer { weight, bias, eps } => ops::layer_norm(x, self.get(weight)?, self.get(bias)?, *eps)?,
        })
    }

    /// dx from dy; gradients of trained weights are added.
    pub fn norm_backward(&self, norm: &Norm, x: &Tensor, dy: &Tensor, grads: &mut Grads) -> Result<Tensor> {
        match norm {
            Norm::Rms { weight, eps } => {
                let (dx, dw) = ops::rms_norm_backward(x, self.get(weight)?, *eps, dy)?;
                grads.add(weight, || Ok(dw))?;
                Ok(dx)
            }
            Norm::Layer { weight, bias, eps } => {
                let (dx, dw, db) = ops::layer_norm_backward(x, self.get(weight)?, *eps, dy)?;
                grads.add(weight, || Ok(dw))?;
                grads.add(bias, || Ok(db))?;
                Ok(dx)
            }
        }
    }

    /// (down(act(up(x))), what the backward pass reads).
    pub fn mlp(&self, mlp: &Mlp, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let hidden = self.linear(&mlp.up, x)?;
        Ok((self.linear_sum(&mlp.down, &activate(mlp.act, &hidden)?)?, hidden))
    }

    /// Gradient of the MLP's input from its input, what [`Weights::mlp`] kept, and dy.
    pub fn mlp_backward(
        &self,
        mlp: &Mlp,
        x: &Tensor,
        hidden: &Tensor,
        dy: &Tensor,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let d_act = self.linear_input(&mlp.down, dy)?;
        let (act, d_hidden) = activate_backward(mlp.act, hidden, &d_act)?;
        self.linear_weights(&mlp.down, &act, dy, grads)?;
        self.linear_weights(&mlp.up, x, &d_hidden, grads)?;
        self.sum(self.linear_input(&mlp.up, &d_hidden)?)
    }
}

const TANH_SCALE: f64 = 0.797_884_560_802_865_4; // √(2/π)
const TANH_CUBE: f64 = 0.044_715;

fn activate(act: Act, hidden: &Tensor) -> candle_core::Result<Tensor> {
    if act == Act::SwiGlu {
        return ops::swiglu(hidden);
    }
    let x = ops::wide(hidden)?;
    (&x * gate(act, &x)?)?.to_dtype(hidden.dtype())
}

/// What x is multiplied with.
fn gate(act: Act, x: &Tensor) -> candle_core::Result<Tensor> {
    match act {
        Act::SwiGlu => candle_core::bail!("a gated activation has no gate of its own"),
        Act::SigmoidGate(f) => ops::sigmoid(&(x * f64::from(f))?),
        Act::Gelu => (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5),
        Act::GeluTanh => inner(x)?.tanh()?.affine(0.5, 0.5),
    }
}

fn inner(x: &Tensor) -> candle_core::Result<Tensor> {
    ((x + (x.sqr()? * x)? * TANH_CUBE)?) * TANH_SCALE
}

/// (activation again, gradient of the hidden rows).
fn activate_backward(act: Act, hidden: &Tensor, d: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
    if act == Act::SwiGlu {
        return ops::swiglu_backward(hidden, d);
    }
    let (x, d) = (ops::wide(hidden)?, ops::wide(d)?);
    let g = gate(act, &x)?;
    let slope = match act {
        Act::SigmoidGate(f) => ((&g * g.affine(-1.0, 1.0)?)? * f64::from(f))?,
        Act::Gelu => ((x.sqr()? * -0.5)?.exp()? * (0.5 * TANH_SCALE))?,
        // g = (1 + tanh u) / 2, so g' = 2 g (1 − g) u'.
        _ => (((&g * g.affine(-1.0, 1.0)?)? * 2.0)? * x.sqr()?.affine(3.0 * TANH_CUBE * TANH_SCALE, TANH_SCALE)?)?,
    };
    let dx = (d * (&g + (&x * slope)?)?)?;
    Ok(((x * g)?.to_dtype(hidden.dtype())?, dx.to_dtype(hidden.dtype())?))
}

/// The last dimension split into heads: `[n, width]` → `[n, heads, width / heads]`.
pub fn heads(x: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (n, width) = (x.dim(0)?, x.dim(D::Minus1)?);
    x.contiguous()?.reshape((n, heads, width / heads))
}
