//! The hot paths of a block as kernels of our own (`engine/cuda`), one launch where plain candle operations take ten: the functions of
//! `ops` once more, for tensors on a GPU. Statistics and sums are in f32, in one fixed order.

mod attention;
pub mod check;
mod launch;

pub use attention::{attend, attend_backward, spans};

use super::ops::PolicyRows;
use candle_core::{DType, Result, Tensor};
use launch::{BLOCK, File, Input, Kernel, Number, count, launch};
use std::cell::Cell;
use std::sync::OnceLock;

/// Whether `x` goes to the kernels here: it is on a GPU, in f32 or bf16, and nobody asked for candle's operations, be it `without` or
/// `QUORUM_FUSED=0` in the environment (both are there to compare).
pub fn takes(x: &Tensor) -> bool {
    static ENABLED: OnceLock<bool> = OnceLock::new();
    x.device().is_cuda()
        && matches!(x.dtype(), DType::F32 | DType::BF16)
        && !PLAIN.get()
        && *ENABLED.get_or_init(|| std::env::var_os("QUORUM_FUSED").is_none_or(|v| v != "0"))
}

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with candle's operations in place of the kernels, on this thread.
pub fn without<T>(body: impl FnOnce() -> T) -> T {
    let before = PLAIN.replace(true);
    let result = body();
    PLAIN.set(before);
    result
}

/// The spans of a batch, if attention of `q` over them goes to the kernels here.
pub fn attends<'a>(q: &Tensor, spans: Option<&'a Tensor>) -> Option<&'a Tensor> {
    let fits = q.dims().last().is_some_and(|&size| size <= attention::LONGEST);
    spans.filter(|_| fits && takes(q))
}

fn input<'a>(tensor: &'a Tensor, dtype: DType, elements: usize) -> Input<'a> {
    Input { tensor, dtype, elements }
}

/// See `ops::rms_norm`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    let x = &x.contiguous()?;
    let ((n, h), t) = (x.dims2()?, x.dtype());
    let kernel = Kernel::by_row(File::RmsNorm, "rms_norm", t, n);
    let inputs = [input(x, t, n * h), input(w, t, h)];
    let [y] = launch(&kernel, &inputs, [(t, &[n, h])], &[count(h)?, Number::F32(eps)])?;
    Ok(y)
}

/// See `ops::rms_norm_backward`.
pub fn rms_norm_backward(x: &Tensor, w: &Tensor, eps: f32, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, dy) = (&x.contiguous()?, &dy.contiguous()?);
    let ((n, h), t) = (x.dims2()?, x.dtype());
    let kernel = Kernel::by_row(File::RmsNorm, "rms_norm_dx", t, n);
    let inputs = [input(x, t, n * h), input(w, t, h), input(dy, t, n * h)];
    let outputs: [(DType, &[usize]); 2] = [(t, &[n, h]), (DType::F32, &[n])];
    let [dx, inverse] = launch(&kernel, &inputs, outputs, &[count(h)?, Number::F32(eps)])?;
    // A block of the kernel takes 32 columns.
    let kernel = Kernel::by_row(File::RmsNorm, "rms_norm_dw", t, h.div_ceil(32));
    let inputs = [input(x, t, n * h), input(dy, t, n * h), input(&inverse, DType::F32, n)];
    let [dw] = launch(&kernel, &inputs, [(DType::F32, &[h])], &[count(n)?, count(h)?])?;
    Ok((dx, dw))
}

/// See `ops::rotate`.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, sign: f64) -> Result<Tensor> {
    let x = &x.contiguous()?;
    let ((n, heads, size), t) = (x.dims3()?, x.dtype());
    let (pairs, all) = (size / 2, n * heads * size);
    let kernel = Kernel::by_element(File::Elementwise, "rotate", t, n * heads * pairs);
    let inputs = [input(x, t, all), input(cos, DType::F32, n * pairs), input(sin, DType::F32, n * pairs)];
    let numbers = [count(n)?, count(heads)?, count(pairs)?, Number::F32(sign as f32)];
    let [y] = launch(&kernel, &inputs, [(t, &[n, heads, 2 * pairs])], &numbers)?;
    Ok(y)
}

/// See `ops::swiglu`.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let gate_up = &gate_up.contiguous()?;
    let ((n, width), t) = (gate_up.dims2()?, gate_up.dtype());
    let m = width / 2;
    let kernel = Kernel::by_element(File::Elementwise, "swiglu", t, n * m);
    let [y] = launch(&kernel, &[input(gate_up, t, n * 2 * m)], [(t, &[n, m])], &[count(n)?, count(m)?])?;
    Ok(y)
}

/// See `ops::swiglu_backward`.
pub fn swiglu_backward(gate_up: &Tensor, d: &Tensor) -> Result<(Tensor, Tensor)> {
    let (gate_up, d) = (&gate_up.contiguous()?, &d.contiguous()?);
    let ((n, width), t) = (gate_up.dims2()?, gate_up.dtype());
    let m = width / 2;
    let kernel = Kernel::by_element(File::Elementwise, "swiglu_backward", t, n * m);
    let inputs = [input(gate_up, t, n * 2 * m), input(d, t, n * m)];
    let [y, d_gate_up] = launch(&kernel, &inputs, [(t, &[n, m]), (t, &[n, 2 * m])], &[count(n)?, count(m)?])?;
    Ok((y, d_gate_up))
}

/// See `ops::policy_rows`.
pub fn policy_rows(logits: &Tensor, bias: Option<&Tensor>, inverse_temperature: f32) -> Result<PolicyRows> {
    let logits = &logits.contiguous()?;
    let ((n, vocab), t, f32) = (logits.dims2()?, logits.dtype(), DType::F32);
    let none;
    let (values, biased) = match bias {
        Some(bias) => (bias, 1),
        None => {
            none = Tensor::zeros(vocab, f32, logits.device())?;
            (&none, 0)
        }
    };
    let kernel = Kernel::by_row(File::Policy, "policy_rows", t, n);
    let inputs = [input(logits, t, n * vocab), input(values, f32, vocab)];
    let outputs: [(DType, &[usize]); 5] =
        [(f32, &[n, vocab]), (f32, &[n, vocab]), (f32, &[n, 1]), (f32, &[n, 1]), (f32, &[n])];
    let numbers = [count(vocab)?, Number::F32(inverse_temperature), Number::U32(biased)];
    let [z, p, max, sum, entropy] = launch(&kernel, &inputs, outputs, &numbers)?;
    Ok(PolicyRows { z, p, max, sum, entropy })
}

/// See `ops::policy_backward`.
pub fn policy_backward(
    rows: &PolicyRows,
    total: &Tensor,
    index: &Tensor,
    factor: &Tensor,
    inverse_temperature: f32,
) -> Result<Tensor> {
    let ((n, vocab), targets, f32) = (rows.p.dims2()?, index.dim(1)?, DType::F32);
    let kernel =
        Kernel { file: File::Policy, name: "policy_backward", dtype: None, grid: [n, 1], threads: BLOCK, shared: 0 };
    let inputs = [
        input(&rows.p, f32, n * vocab),
        input(&rows.sum, f32, n),
        input(total, f32, n),
        input(index, DType::U32, n * targets),
        input(factor, f32, n * targets),
    ];
    let numbers = [count(vocab)?, count(targets)?, Number::F32(inverse_temperature)];
    let [dlogits] = launch(&kernel, &inputs, [(f32, &[n, vocab])], &numbers)?;
    Ok(dlogits)
}
