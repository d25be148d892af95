//! Two linear layers with an activation between, forward and backward: the MLP of blocks and mergers. What comes before (a norm) and
//! behind (a residual sum or not) belongs to the caller.

use crate::kernels::act::{
    gelu, gelu_backward, gelu_tanh, gelu_tanh_backward, sigmoid_gate, sigmoid_gate_backward, swiglu, swiglu_backward,
};
use crate::kernels::gemm::{Scratch, grow};
use crate::linear::Linear;
use crate::params::{Grads, Weights};

/// What stands between the two layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Act {
    /// silu(gate) · up; the first layer gives gate|up.
    SwiGlu,
    /// x · σ(f x): SiLU for f = 1, the "quick" GELU for 1.702.
    SigmoidGate(f32),
    /// GELU by erf.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

impl Act {
    /// out\[rows, n\] from the first layer's output.
    fn forward(self, hidden: &[f32], n: usize, out: &mut [f32]) {
        match self {
            Self::SwiGlu => swiglu(hidden, n, out),
            Self::SigmoidGate(f) => sigmoid_gate(f, hidden, out),
            Self::Gelu => gelu(hidden, out),
            Self::GeluTanh => gelu_tanh(hidden, out),
        }
    }

    /// From the first layer's output and d(out): out again, and the gradient of the first layer's output.
    fn backward(self, hidden: &[f32], n: usize, dout: &[f32], out: &mut [f32], dhidden: &mut [f32]) {
        match self {
            Self::SwiGlu => swiglu_backward(hidden, n, dout, out, dhidden),
            Self::SigmoidGate(f) => sigmoid_gate_backward(f, hidden, dout, out, dhidden),
            Self::GeluTanh => gelu_tanh_backward(hidden, dout, out, dhidden),
            Self::Gelu => {
                gelu(hidden, out);
                dhidden.copy_from_slice(dout);
                gelu_backward(hidden, out, dhidden);
            }
        }
    }
}

/// down(act(up(x))).
#[derive(Debug, Clone)]
pub struct Mlp {
    /// gate|up for [`Act::SwiGlu`].
    pub up: Linear,
    pub act: Act,
    pub down: Linear,
}

/// Buffers of a backward pass.
#[derive(Default)]
pub struct MlpScratch {
    pub act: Vec<f32>,
    pub d_act: Vec<f32>,
    pub d_wide: Vec<f32>,
}

impl Mlp {
    /// Whether any of its tensors is trained.
    pub fn trained(&self, grads: &Grads) -> bool {
        self.up.trained(grads) || self.down.trained(grads)
    }

    /// `hidden` ← up(x) and `act` ← its activation, for the caller to send through `down`. Both grow as needed.
    pub fn inner(&self, w: &Weights, x: &[f32], rows: usize, hidden: &mut Vec<f32>, act: &mut Vec<f32>) {
        let (n, wide) = (rows * self.down.n_in, rows * self.up.n_out);
        grow(hidden, wide);
        grow(act, n);
        self.up.forward(w, x, rows, hidden);
        self.act.forward(&hidden[..wide], self.down.n_in, &mut act[..n]);
    }

    /// `dx` ← gradient of the input, from the input `x`, what [`Mlp::inner`] left in `hidden`, and the output's gradient `dy`.
    pub fn backward(
        &self,
        w: &Weights,
        x: &[f32],
        hidden: &[f32],
        dy: &[f32],
        rows: usize,
        dx: &mut [f32],
        grads: &mut Grads,
        s: &mut MlpScratch,
        gemm: &mut Scratch,
    ) {
        let (n, wide) = (rows * self.down.n_in, rows * self.up.n_out);
        grow(&mut s.act, n);
        grow(&mut s.d_act, n);
        grow(&mut s.d_wide, wide);
        self.down.backward_input(w, dy, rows, &mut s.d_act, gemm);
        let (act, d_wide) = (&mut s.act[..n], &mut s.d_wide[..wide]);
        self.act.backward(&hidden[..wide], self.down.n_in, &s.d_act[..n], act, d_wide);
        self.down.backward_weights(w, &s.act, dy, rows, grads, gemm);
        self.up.backward_weights(w, x, &s.d_wide, rows, grads, gemm);
        self.up.backward_input(w, &s.d_wide, rows, dx, gemm);
    }
}
