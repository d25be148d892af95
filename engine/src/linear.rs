//! A linear layer on slabs: forward, gradient of its input, gradient of its weights; low-rank adapters on ranges of its rows.
//! Weights are packed into panels once a version; what the backward products need is made from them block by block.

use crate::kernels::gemm::{
    Init, Left, MR, NR, Panels, Scratch, accumulate_transposed, gemm, pack_rows, pack_transposed, padded, turn_panels,
};
use crate::kernels::norm::add_columns;
use crate::kernels::numbers::{Element, Values};
use crate::kernels::softmax::scale;
use crate::kernels::threads::share_rows;
use crate::params::{Grads, Param, Weights};
use quorum_model::Part;

/// Elements of the panels made at once for a backward product.
const BLOCK: usize = 1 << 18;

/// A matrix \[n_out, n_in\] of a slab and the place of its panels among those of its part.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub param: Param,
    pub n_out: usize,
    pub n_in: usize,
    /// Where its panels start.
    pub at: usize,
}

impl Matrix {
    /// Elements of the panels.
    pub fn panel_len(&self) -> usize {
        padded(self.n_out) * self.n_in
    }

    fn panels<'a>(&self, w: &Weights<'a>) -> Values<'a> {
        match self.param.part {
            Part::Frozen => w.frozen.panels(self),
            Part::Trainable => w.panels.values().part(self.at, self.panel_len()),
        }
    }

    /// Fills the panels of a trainable matrix, `panels` being all of its own.
    pub fn pack<T: Element>(&self, slab: &[f32], panels: &mut [T]) {
        pack_transposed(self.n_in, self.n_out, &slab[self.param.range.clone()], self.n_in, panels);
    }

    /// y (rows `ld` apart) = init + x·Wᵀ.
    fn apply(&self, w: &Weights, x: &[f32], rows: usize, y: &mut [f32], ld: usize, init: Init) {
        let panels = Panels::of(self.panels(w), self.n_in);
        gemm(rows, self.n_out, self.n_in, Left::rows(x, self.n_in), panels, y, ld, init);
    }

    /// dx = init + dy·W, dy's rows `ld` apart. The sum over rows of W runs in ascending order, whatever the block.
    fn back(&self, w: &Weights, dy: &[f32], ld: usize, rows: usize, dx: &mut [f32], keep: bool, s: &mut Scratch) {
        if rows == 0 {
            return;
        }
        let (no, ni) = (self.n_out, self.n_in);
        let block = (BLOCK / padded(ni) / NR * NR).max(NR);
        let own = std::sync::Mutex::new(Some(s));
        share_rows(rows, MR, rows * no * ni, dx, ni, |part, dx| {
            let mut fresh = Scratch::default();
            let mine = own.lock().ok().and_then(|mut s| s.take());
            let s = mine.unwrap_or(&mut fresh);
            for from in (0..no).step_by(block) {
                let n = block.min(no - from);
                let panels = s.panels(padded(ni) * n);
                self.rows_as_panels(w, from, n, panels);
                let init = if from > 0 || keep { Init::Keep } else { Init::Zero };
                let left = Left::rows(&dy[part.start * ld + from..], ld);
                gemm(part.len(), ni, n, left, Panels::new(panels, n), dx, ni, init);
            }
        });
    }

    /// Rows `from..from + n` of W as panels.
    fn rows_as_panels(&self, w: &Weights, from: usize, n: usize, out: &mut [f32]) {
        let ni = self.n_in;
        match self.panels(w) {
            Values::F32(_) if self.param.trained() => {
                let start = self.param.range.start + from * ni;
                pack_rows(n, ni, &w.slab[start..start + n * ni], ni, out);
            }
            Values::F32(v) => turn_panels(ni, v, from, n, out),
            Values::Bf16(v) => turn_panels(ni, v, from, n, out),
        }
    }
}

/// y\[:, first..first + up.n_out\] += scale · (x·Aᵀ)·Bᵀ.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// First row of the layer it is about.
    pub first: usize,
    /// A \[rank, n_in\].
    pub down: Matrix,
    /// B \[rows, rank\].
    pub up: Matrix,
    pub scale: f32,
}

impl Adapter {
    /// scale · x·Aᵀ \[rows, rank\].
    fn reduced(&self, w: &Weights, x: &[f32], rows: usize) -> Vec<f32> {
        let rank = self.down.n_out;
        let mut t = vec![0.0; rows * rank];
        self.down.apply(w, x, rows, &mut t, rank, Init::Zero);
        scale(&mut t, self.scale);
        t
    }

    /// scale · dy·B \[rows, rank\], dy's rows `ld` apart.
    fn returned(&self, w: &Weights, dy: &[f32], ld: usize, rows: usize, s: &mut Scratch) -> Vec<f32> {
        let rank = self.down.n_out;
        let mut t = vec![0.0; rows * rank];
        self.up.back(w, &dy[self.first..], ld, rows, &mut t, false, s);
        scale(&mut t, self.scale);
        t
    }
}

/// y\[rows, n_out\] = x\[rows, n_in\] · Wᵀ + b. Several checkpoint tensors that lie side by side may form one layer (q|k|v, gate|up).
#[derive(Debug, Clone)]
pub struct Linear {
    /// Weight \[n_out, n_in\].
    pub weight: Matrix,
    pub bias: Option<Param>,
    pub n_out: usize,
    pub n_in: usize,
    pub adapters: Vec<Adapter>,
}

impl Linear {
    /// Whether anything of it learns.
    pub fn trained(&self, grads: &Grads) -> bool {
        grads.wants(&self.weight.param)
            || self.bias.as_ref().is_some_and(|b| grads.wants(b))
            || !self.adapters.is_empty()
    }

    /// Every matrix of the trainable slab.
    pub fn trained_matrices(&self) -> impl Iterator<Item = &Matrix> {
        let all = std::iter::once(&self.weight).chain(self.adapters.iter().flat_map(|a| [&a.down, &a.up]));
        all.filter(|m| m.param.trained())
    }

    /// y = x·Wᵀ + b.
    pub fn forward(&self, w: &Weights, x: &[f32], rows: usize, y: &mut [f32]) {
        let init = self.bias.as_ref().map_or(Init::Zero, |b| Init::Bias(w.vector(b)));
        self.weight.apply(w, x, rows, y, self.n_out, init);
        self.adapt(w, x, rows, y);
    }

    /// y += x·Wᵀ + b: a residual branch.
    pub fn forward_add(&self, w: &Weights, x: &[f32], rows: usize, y: &mut [f32]) {
        if let Some(b) = &self.bias {
            for row in y[..rows * self.n_out].chunks_exact_mut(self.n_out) {
                add_columns(w.vector(b), row);
            }
        }
        self.weight.apply(w, x, rows, y, self.n_out, Init::Keep);
        self.adapt(w, x, rows, y);
    }

    fn adapt(&self, w: &Weights, x: &[f32], rows: usize, y: &mut [f32]) {
        for a in self.adapters.iter().filter(|_| rows > 0) {
            let t = a.reduced(w, x, rows);
            a.up.apply(w, &t, rows, &mut y[a.first..], self.n_out, Init::Keep);
        }
    }

    /// dx = dy·W, adapters included.
    pub fn backward_input(&self, w: &Weights, dy: &[f32], rows: usize, dx: &mut [f32], s: &mut Scratch) {
        self.weight.back(w, dy, self.n_out, rows, dx, false, s);
        for a in self.adapters.iter().filter(|_| rows > 0) {
            let t = a.returned(w, dy, self.n_out, rows, s);
            a.down.back(w, &t, a.down.n_out, rows, dx, true, s);
        }
    }

    /// dW += dyᵀ·x, db += Σ dy and the adapters' gradients, into the gradient slab; nothing for what is frozen.
    pub fn backward_weights(
        &self,
        w: &Weights,
        x: &[f32],
        dy: &[f32],
        rows: usize,
        grads: &mut Grads,
        s: &mut Scratch,
    ) {
        let (no, ni) = (self.n_out, self.n_in);
        if let Some(dw) = grads.of(&self.weight.param) {
            accumulate_transposed(no, ni, rows, dy, no, x, ni, dw, ni, s);
        }
        if let Some(db) = self.bias.as_ref().and_then(|b| grads.of(b)) {
            add_columns(&dy[..rows * no], db);
        }
        for a in self.adapters.iter().filter(|_| rows > 0) {
            let rank = a.down.n_out;
            if let Some(da) = grads.of(&a.down.param) {
                let t = a.returned(w, dy, no, rows, s);
                accumulate_transposed(rank, ni, rows, &t, rank, x, ni, da, ni, s);
            }
            if let Some(db) = grads.of(&a.up.param) {
                let t = a.reduced(w, x, rows);
                accumulate_transposed(a.up.n_out, rank, rows, &dy[a.first..], no, &t, rank, db, rank, s);
            }
        }
    }
}
