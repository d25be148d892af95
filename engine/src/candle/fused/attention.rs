//! Attention of ragged packs without a matrix of scores, and who sees whom as the kernels want it.

use super::input;
use super::launch::{File, Kernel, Number, count, launch};
use crate::kernels::packs::{PackRows, Run};
use candle_core::{DType, Device, Result, Tensor};

/// Rows and keys of a tile, threads of a block, floats of a tile's row and of a row of scores (`cuda/attention.cu`).
const TILE: usize = 32;
const THREADS: usize = 128;
const STRIDE: usize = LONGEST + 1;
const SCORES: usize = TILE + 1;

/// Longest head the kernels take.
pub const LONGEST: usize = 128;

/// For each of `n` rows: the keys it sees, those of its pack's prefix and those of its own run, and the rows that see it at most:
/// `[n, 6]`, three stretches from … to. Rows outside all packs see nothing.
pub fn spans(packs: &[PackRows], n: usize, causal: bool, device: &Device) -> Result<Tensor> {
    let mut spans = vec![0u32; n * 6];
    for pack in packs {
        let prefix = pack.prefix.unwrap_or(Run { start: 0, len: 0 });
        let mut fill = |run: &Run, before: &Run, seen_to: usize| {
            for row in run.start..(run.start + run.len).min(n) {
                let own = if causal { row + 1 } else { run.start + run.len };
                let seen_from = if causal { row } else { run.start };
                let stretches = [before.start, before.start + before.len, run.start, own, seen_from, seen_to];
                spans[row * 6..row * 6 + 6].copy_from_slice(&stretches.map(|x| x as u32));
            }
        };
        let ends = pack.branches.iter().chain(&pack.prefix).map(|run| run.start + run.len);
        fill(&prefix, &Run { start: prefix.start, len: 0 }, ends.max().unwrap_or(0));
        for branch in &pack.branches {
            fill(branch, &prefix, branch.start + branch.len);
        }
    }
    Tensor::from_vec(spans, (n, 6), device)
}

/// Sizes of a call: rows, query heads, kv heads, elements of a head.
struct Shape {
    n: usize,
    heads: usize,
    kv_heads: usize,
    size: usize,
    dtype: DType,
}

impl Shape {
    fn of(q: &Tensor, k: &Tensor) -> Result<Self> {
        let ((n, heads, size), kv_heads) = (q.dims3()?, k.dim(1)?);
        if size > LONGEST || kv_heads == 0 || heads % kv_heads != 0 {
            candle_core::bail!("no attention kernel for {heads} heads on {kv_heads} of {size} elements");
        }
        Ok(Self { n, heads, kv_heads, size, dtype: q.dtype() })
    }

    fn queries(&self) -> usize {
        self.n * self.heads * self.size
    }

    fn keys(&self) -> usize {
        self.n * self.kv_heads * self.size
    }

    fn numbers(&self, scale: f64) -> Result<[Number; 5]> {
        let [n, heads, kv_heads, size] = [count(self.n)?, count(self.heads)?, count(self.kv_heads)?, count(self.size)?];
        Ok([n, heads, kv_heads, size, Number::F32(scale as f32)])
    }

    fn kernel(&self, name: &'static str, heads: usize, tiles: usize, scores: usize) -> Kernel {
        let shared = (tiles * TILE * STRIDE + scores * TILE * SCORES) * size_of::<f32>();
        let grid = [self.n.div_ceil(TILE), heads];
        Kernel { file: File::Attention, name, dtype: Some(self.dtype), grid, threads: THREADS, shared }
    }
}

/// See `attention::attend`; `spans` as above.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, spans: &Tensor, scale: f64) -> Result<Tensor> {
    let (q, k, v) = (&q.contiguous()?, &k.contiguous()?, &v.contiguous()?);
    Ok(forward(&Shape::of(q, k)?, [q, k, v], spans, scale)?.0)
}

/// The mixed values and log Σ exp(score) of each head and row.
fn forward(shape: &Shape, [q, k, v]: [&Tensor; 3], spans: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
    let t = shape.dtype;
    let inputs = [
        input(q, t, shape.queries()),
        input(k, t, shape.keys()),
        input(v, t, shape.keys()),
        input(spans, DType::U32, shape.n * 6),
    ];
    let kernel = shape.kernel("attend", shape.heads, 3, 1);
    let outputs: [(DType, &[usize]); 2] =
        [(t, &[shape.n, shape.heads, shape.size]), (DType::F32, &[shape.heads, shape.n])];
    let [out, logsum] = launch(&kernel, &inputs, outputs, &shape.numbers(scale)?)?;
    Ok((out, logsum))
}

/// See `attention::attend_backward`. The forward pass runs once more: its sums are cheaper to compute than to keep for every block.
pub fn attend_backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d_out: &Tensor,
    spans: &Tensor,
    scale: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (q, k, v, d_out) = (&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, &d_out.contiguous()?);
    let shape = Shape::of(q, k)?;
    let (t, f32, n, heads) = (shape.dtype, DType::F32, shape.n, shape.heads);
    let (out, logsum) = forward(&shape, [q, k, v], spans, scale)?;
    let inputs = [input(&out, t, shape.queries()), input(d_out, t, shape.queries())];
    let kernel = Kernel::by_element(File::Attention, "attend_delta", t, n * heads);
    let [delta] = launch(&kernel, &inputs, [(f32, &[heads, n])], &[count(n)?, count(heads)?, count(shape.size)?])?;
    let inputs = [
        input(q, t, shape.queries()),
        input(k, t, shape.keys()),
        input(v, t, shape.keys()),
        input(d_out, t, shape.queries()),
        input(spans, DType::U32, n * 6),
        input(&logsum, f32, heads * n),
        input(&delta, f32, heads * n),
    ];
    let numbers = shape.numbers(scale)?;
    let [dq] = launch(&shape.kernel("attend_dq", heads, 4, 2), &inputs, [(t, &[n, heads, shape.size])], &numbers)?;
    let keys: &[usize] = &[n, shape.kv_heads, shape.size];
    let [dk, dv] =
        launch(&shape.kernel("attend_dkv", shape.kv_heads, 4, 2), &inputs, [(t, keys), (t, keys)], &numbers)?;
    Ok((dq, dk, dv))
}
