//! The norm of a residual stream as a layer of the model: RMSNorm or LayerNorm, forward, again, and backward.

use crate::kernels::gemm::grow;
use crate::kernels::layer_norm::{layer_norm, layer_norm_again, layer_norm_backward_input, layer_norm_backward_weight};
use crate::kernels::norm::{add_columns, rms_norm, rms_norm_again, rms_norm_backward};
use crate::params::{Grads, Param, Weights};

/// A norm over rows as wide as its weight.
#[derive(Debug, Clone)]
pub enum Norm {
    Rms { weight: Param, eps: f32 },
    Layer { weight: Param, bias: Param, eps: f32 },
}

impl Norm {
    fn weight(&self) -> &Param {
        match self {
            Self::Rms { weight, .. } | Self::Layer { weight, .. } => weight,
        }
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.weight().len()
    }

    /// Statistics kept for each row.
    fn stats(&self) -> usize {
        match self {
            Self::Rms { .. } => 1,
            Self::Layer { .. } => 2,
        }
    }

    /// Whether any of its tensors is trained.
    pub fn trained(&self, grads: &Grads) -> bool {
        match self {
            Self::Rms { weight, .. } => grads.wants(weight),
            Self::Layer { weight, bias, .. } => grads.wants(weight) || grads.wants(bias),
        }
    }

    /// out ← norm(x); `stats` keeps what [`Norm::again`] and [`Norm::backward`] need. Both buffers grow as needed.
    pub fn forward(&self, w: &Weights, x: &[f32], rows: usize, stats: &mut Vec<f32>, out: &mut Vec<f32>) {
        let (x, n) = (&x[..rows * self.width()], rows * self.stats());
        grow(out, x.len());
        grow(stats, n);
        match self {
            Self::Rms { weight, eps } => rms_norm(x, w.vector(weight), *eps, &mut stats[..n], out),
            Self::Layer { weight, bias, eps } => {
                layer_norm(x, w.vector(weight), w.vector(bias), *eps, &mut stats[..n], out);
            }
        }
    }

    /// The result of [`Norm::forward`] once more, bit for bit.
    pub fn again(&self, w: &Weights, x: &[f32], rows: usize, stats: &[f32], out: &mut Vec<f32>) {
        let x = &x[..rows * self.width()];
        grow(out, x.len());
        match self {
            Self::Rms { weight, .. } => rms_norm_again(x, w.vector(weight), stats, out),
            Self::Layer { weight, bias, .. } => layer_norm_again(x, w.vector(weight), w.vector(bias), stats, out),
        }
    }

    /// dx += gradient of the input; gradients of trained tensors are added.
    pub fn backward(
        &self,
        w: &Weights,
        x: &[f32],
        rows: usize,
        stats: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        grads: &mut Grads,
    ) {
        let n = rows * self.width();
        let (x, dy) = (&x[..n], &dy[..n]);
        match self {
            Self::Rms { weight, .. } => rms_norm_backward(x, w.vector(weight), stats, dy, dx, grads.of(weight)),
            Self::Layer { weight, bias, .. } => {
                if let Some(dw) = grads.of(weight) {
                    layer_norm_backward_weight(x, stats, dy, dw);
                }
                if let Some(db) = grads.of(bias) {
                    add_columns(dy, db);
                }
                layer_norm_backward_input(x, w.vector(weight), stats, dy, dx);
            }
        }
    }
}
