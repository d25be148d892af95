//! Each kernel against the candle operations it stands for, on the same device: results and time. For `examples/gpu_kernels.rs`.

use super::super::ops;
use super::super::rows::{PackIndex, Rows};
use super::without;
use crate::error::EngineError;
use crate::kernels::packs::{PackRows, Run};
use candle_core::{DType, Device, Tensor};
use std::time::Instant;

/// One result of a function, with kernel and without.
pub struct Comparison {
    pub name: String,
    /// Largest difference, relative to the largest value.
    pub off: f64,
    pub allowed: f64,
    /// Microseconds a call: our kernel, candle's operations.
    pub kernel: f64,
    pub plain: f64,
}

/// Sizes of the inputs: those of a decoder of 3 billion parameters, or small ones.
pub struct Shape {
    pub rows: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head: usize,
    pub vocab: usize,
}

type Outcome = Result<Vec<Comparison>, EngineError>;

/// Timed calls after the first.
const REPEATS: u32 = 5;

/// All kernels in one element type, on CUDA device `ordinal`.
///
/// # Errors
/// There is no such device, or a kernel does not run on it.
pub fn compare(ordinal: usize, bf16: bool, shape: &Shape) -> Outcome {
    let device = crate::device::Device::Cuda(ordinal).open()?;
    let dtype = if bf16 { DType::BF16 } else { DType::F32 };
    let mut bench = Bench { device, dtype, results: Vec::new() };
    bench.rows(shape)?;
    bench.policy(shape)?;
    bench.attention(shape)?;
    Ok(bench.results)
}

struct Bench {
    device: Device,
    dtype: DType,
    results: Vec<Comparison>,
}

/// Largest absolute value; NaN if there is one, which the device's own maximum would pass over.
fn largest(x: &Tensor) -> candle_core::Result<f32> {
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::abs).fold(0.0, |a, b| if a.is_nan() || a > b { a } else { b }))
}

impl Bench {
    fn random(&self, dims: &[usize]) -> candle_core::Result<Tensor> {
        Tensor::randn(0f32, 1f32, dims, &self.device)?.to_dtype(self.dtype)
    }

    fn run(
        &mut self,
        name: &str,
        allowed: [f64; 2],
        call: impl Fn() -> candle_core::Result<Vec<Tensor>>,
    ) -> Result<(), EngineError> {
        let (ours, kernel) = self.time(&call)?;
        let (theirs, plain) = without(|| self.time(&call))?;
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            let (a, b) = (ops::wide(a)?, ops::wide(b)?);
            let off = largest(&(&a - &b)?)?;
            let scale = largest(&b)?;
            let allowed = allowed[usize::from(self.dtype == DType::BF16)];
            let off = f64::from(off) / f64::from(scale).max(1e-30);
            let name = format!("{name} {:?} output {i}", self.dtype);
            self.results.push(Comparison { name, off, allowed, kernel, plain });
        }
        Ok(())
    }

    fn time(&self, call: &impl Fn() -> candle_core::Result<Vec<Tensor>>) -> candle_core::Result<(Vec<Tensor>, f64)> {
        let result = call()?;
        self.device.synchronize()?;
        let start = Instant::now();
        for _ in 0..REPEATS {
            call()?;
        }
        self.device.synchronize()?;
        Ok((result, start.elapsed().as_secs_f64() * 1e6 / f64::from(REPEATS)))
    }

    fn rows(&mut self, s: &Shape) -> Result<(), EngineError> {
        let (x, w, dy) =
            (self.random(&[s.rows, s.hidden])?, self.random(&[s.hidden])?, self.random(&[s.rows, s.hidden])?);
        self.run("rms_norm", [1e-5, 1e-2], || Ok(vec![ops::rms_norm(&x, &w, 1e-6)?]))?;
        self.run("rms_norm_backward", [1e-5, 1e-2], || {
            let (dx, dw) = ops::rms_norm_backward(&x, &w, 1e-6, &dy)?;
            Ok(vec![dx, dw])
        })?;
        let x = self.random(&[s.rows, s.heads, s.head])?;
        let angle = Tensor::randn(0f32, 3f32, (s.rows, s.head / 2), &self.device)?;
        let (cos, sin) = (angle.cos()?, angle.sin()?);
        self.run("rotate", [1e-5, 1e-2], || Ok(vec![ops::rotate(&x, &cos, &sin, -1.0)?]))?;
        let (gate_up, d) = (self.random(&[s.rows, 8 * s.hidden])?, self.random(&[s.rows, 4 * s.hidden])?);
        self.run("swiglu", [1e-5, 1e-2], || Ok(vec![ops::swiglu(&gate_up)?]))?;
        self.run("swiglu_backward", [1e-5, 1e-2], || {
            let (y, d) = ops::swiglu_backward(&gate_up, &d)?;
            Ok(vec![y, d])
        })
    }

    fn policy(&mut self, s: &Shape) -> Result<(), EngineError> {
        let n = s.rows.min(128);
        let logits = (self.random(&[n, s.vocab])? * 4.0)?;
        let bias = (0..s.vocab).map(|i| if i % 97 == 0 { -1e30f32 } else { 0.0 }).collect();
        let bias = Tensor::from_vec(bias, s.vocab, &self.device)?;
        self.run("policy_rows", [1e-5, 1e-5], || {
            let rows = ops::policy_rows(&logits, Some(&bias), 1.25)?;
            Ok(vec![rows.p, rows.sum, rows.entropy])
        })?;
        let rows = ops::policy_rows(&logits, Some(&bias), 1.25)?;
        let index = Tensor::from_vec((0..2 * n as u32).map(|i| 1 + i % 96).collect(), (n, 2), &self.device)?;
        let factor = Tensor::randn(0f32, 1f32, (n, 2), &self.device)?;
        let total = factor.sum(1)?;
        self.run("policy_backward", [1e-5, 1e-5], || {
            Ok(vec![ops::policy_backward(&rows, &total, &index, &factor, 1.25)?])
        })
    }

    /// Causal packs with branches, then windows without causality.
    fn attention(&mut self, s: &Shape) -> Result<(), EngineError> {
        let run = |start, len| Run { start, len };
        let (quarter, eighth) = (s.rows / 4, s.rows / 8);
        let branches = (0..4).map(|i| run(quarter + i * eighth, eighth)).collect();
        let causal = vec![
            PackRows { prefix: Some(run(0, quarter)), branches },
            PackRows { prefix: Some(run(s.rows - quarter, quarter)), branches: Vec::new() },
        ];
        let windows = (0..s.rows / 64).map(|i| PackRows { prefix: Some(run(i * 64, 64)), branches: Vec::new() });
        let [q, d] = [self.random(&[s.rows, s.heads, s.head])?, self.random(&[s.rows, s.heads, s.head])?];
        let [k, v] = [self.random(&[s.rows, s.kv_heads, s.head])?, self.random(&[s.rows, s.kv_heads, s.head])?];
        let scale = 1.0 / (s.head as f64).sqrt();
        for (what, packs, causal) in [("packs", causal, true), ("windows", windows.collect(), false)] {
            let index = self.index(&packs, s, causal)?;
            self.run(&format!("attend, {what}"), [2e-5, 3e-2], || Ok(vec![ops::attend(&q, &k, &v, &index, scale)?]))?;
            self.run(&format!("attend_backward, {what}"), [2e-5, 3e-2], || {
                let (dq, dk, dv) = ops::attend_backward(&q, &k, &v, &d, &index, scale)?;
                Ok(vec![dq, dk, dv])
            })?;
        }
        Ok(())
    }

    fn index(&self, packs: &[PackRows], s: &Shape, causal: bool) -> Result<PackIndex, EngineError> {
        let table = vec![0.0; s.rows * s.head / 2];
        Ok(Rows::new(packs, &table, &table, s.rows, s.heads, causal, &self.device)?.index)
    }
}
