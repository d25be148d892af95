//! A linear layer on slabs: forward, gradient of its input, gradient of its weights. Weights are packed into panels once a version.

use crate::kernels::gemm::{
    Init, Left, Panels, Scratch, accumulate_transposed, gemm, pack_rows, pack_transposed, padded,
};
use crate::kernels::norm::add_columns;
use std::ops::Range;

/// y\[rows, n_out\] = x\[rows, n_in\] · Wᵀ + b. Several checkpoint tensors that lie side by side may form one layer (q|k|v, gate|up).
#[derive(Debug, Clone)]
pub struct Linear {
    /// Weight \[n_out, n_in\] and bias in the slab.
    pub weight: Range<usize>,
    pub bias: Option<Range<usize>>,
    pub n_out: usize,
    pub n_in: usize,
    /// Where its panels start in [`Weights::forward`] and [`Weights::backward`].
    pub forward_at: usize,
    pub backward_at: usize,
}

/// One version of the weights: the slab and the panels made of it.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    pub slab: &'a [f32],
    pub forward: &'a [f32],
    /// Empty unless gradients are wanted.
    pub backward: &'a [f32],
}

impl Linear {
    /// Elements of the panels for the forward product.
    pub fn forward_len(&self) -> usize {
        padded(self.n_out) * self.n_in
    }

    /// Elements of the panels for the input's gradient.
    pub fn backward_len(&self) -> usize {
        padded(self.n_in) * self.n_out
    }

    /// Fills this layer's forward panels.
    pub fn pack_forward(&self, slab: &[f32], panels: &mut [f32]) {
        let out = &mut panels[self.forward_at..self.forward_at + self.forward_len()];
        pack_transposed(self.n_in, self.n_out, &slab[self.weight.clone()], self.n_in, out);
    }

    /// Fills this layer's backward panels.
    pub fn pack_backward(&self, slab: &[f32], panels: &mut [f32]) {
        let out = &mut panels[self.backward_at..self.backward_at + self.backward_len()];
        pack_rows(self.n_out, self.n_in, &slab[self.weight.clone()], self.n_in, out);
    }

    /// y = x·Wᵀ + b.
    pub fn forward(&self, w: &Weights, x: &[f32], rows: usize, y: &mut [f32]) {
        let init = self.bias.as_ref().map_or(Init::Zero, |b| Init::Bias(&w.slab[b.clone()]));
        let panels = Panels::new(&w.forward[self.forward_at..][..self.forward_len()], self.n_in);
        gemm(rows, self.n_out, self.n_in, Left::rows(x, self.n_in), panels, y, self.n_out, init);
    }

    /// y += x·Wᵀ + b: a residual branch.
    pub fn forward_add(&self, w: &Weights, x: &[f32], rows: usize, y: &mut [f32]) {
        if let Some(b) = &self.bias {
            for row in y[..rows * self.n_out].chunks_exact_mut(self.n_out) {
                add_columns(&w.slab[b.clone()], row);
            }
        }
        let panels = Panels::new(&w.forward[self.forward_at..][..self.forward_len()], self.n_in);
        gemm(rows, self.n_out, self.n_in, Left::rows(x, self.n_in), panels, y, self.n_out, Init::Keep);
    }

    /// dx = dy·W.
    pub fn backward_input(&self, w: &Weights, dy: &[f32], rows: usize, dx: &mut [f32]) {
        let panels = Panels::new(&w.backward[self.backward_at..][..self.backward_len()], self.n_out);
        gemm(rows, self.n_in, self.n_out, Left::rows(dy, self.n_out), panels, dx, self.n_in, Init::Zero);
    }

    /// dW += dyᵀ·x and db += Σ dy, into the gradient slab.
    pub fn backward_weights(&self, x: &[f32], dy: &[f32], rows: usize, grads: &mut [f32], s: &mut Scratch) {
        let (no, ni) = (self.n_out, self.n_in);
        accumulate_transposed(no, ni, rows, dy, no, x, ni, &mut grads[self.weight.clone()], ni, s);
        if let Some(b) = &self.bias {
            add_columns(&dy[..rows * no], &mut grads[b.clone()]);
        }
    }
}
