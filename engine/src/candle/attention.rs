//! Attention of ragged packs as batched matrix products over rectangles of rows, forward, backward and one decoding step.
//! Query heads of a kv head are rows of one product, so keys and values are never repeated.

use super::kv::StepKv;
use super::ops::wide;
use super::rows::{Branches, PackIndex, Rectangle};
use candle_core::{D, Result, Tensor};

/// Mixed values `[n, heads, hd]` of q `[n, heads, hd]`, k and v `[n, kv_heads, hd]`; `scale` multiplies the scores.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, index: &PackIndex, scale: f64) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(spans) = super::fused::attends(q, index.spans.as_ref()) {
        return super::fused::attend(q, k, v, spans, scale);
    }
    let [qp, kp, vp] = [with_none(q)?, with_none(k)?, with_none(v)?];
    let mut out = Vec::with_capacity(index.runs.len() + index.branches.len());
    for run in &index.runs {
        let x = Own::gather(&qp, &kp, &vp, run)?;
        out.push(x.rows_of(&x.probabilities(run, None, scale)?.to_dtype(q.dtype())?.matmul(&x.v)?)?);
    }
    for branches in &index.branches {
        let x = Own::gather(&qp, &kp, &vp, &branches.own)?;
        let prefix = Prefix::new(&x, k, v, branches)?;
        let p = x.probabilities(&branches.own, Some(&prefix), scale)?.to_dtype(q.dtype())?;
        let (before, own) = prefix.split(&x, &p)?;
        out.push(x.rows_of(&(prefix.by_branch(&x, &before.matmul(&prefix.v)?)? + own.matmul(&x.v)?)?)?);
    }
    Tensor::cat(&out, 0)?.index_select(&index.place, 0)
}

/// Gradients of q, k and v from that of the mixed values, in their shapes.
pub fn attend_backward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d_out: &Tensor,
    index: &PackIndex,
    scale: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if let Some(spans) = super::fused::attends(q, index.spans.as_ref()) {
        return super::fused::attend_backward(q, k, v, d_out, spans, scale);
    }
    let [qp, kp, vp, dp] = [with_none(q)?, with_none(k)?, with_none(v)?, with_none(d_out)?];
    let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
    let mut onto_prefix: Vec<(usize, Tensor, Tensor)> = Vec::new();
    for run in &index.runs {
        let x = Own::gather(&qp, &kp, &vp, run)?;
        let d = x.queries(&dp, &run.rows)?;
        let p = x.probabilities(run, None, scale)?;
        let ds = score_gradient(&p, &d.matmul(&turned(&x.v)?)?, scale)?.to_dtype(q.dtype())?;
        dq.push(x.rows_of(&ds.matmul(&x.k)?)?);
        dk.push(x.key_rows(&turned(&ds)?.matmul(&x.q)?)?);
        dv.push(x.key_rows(&turned(&p.to_dtype(q.dtype())?)?.matmul(&d)?)?);
    }
    for branches in &index.branches {
        let x = Own::gather(&qp, &kp, &vp, &branches.own)?;
        let d = x.queries(&dp, &branches.own.rows)?;
        let prefix = Prefix::new(&x, k, v, branches)?;
        let d_before = prefix.by_head(&x, &d)?;
        let p = x.probabilities(&branches.own, Some(&prefix), scale)?;
        let d_p = [prefix.by_branch(&x, &d_before.matmul(&turned(&prefix.v)?)?)?, d.matmul(&turned(&x.v)?)?];
        let ds = score_gradient(&p, &Tensor::cat(&d_p, D::Minus1)?, scale)?.to_dtype(q.dtype())?;
        let (ds_before, ds_own) = prefix.split(&x, &ds)?;
        let (p_before, p_own) = prefix.split(&x, &p.to_dtype(q.dtype())?)?;
        dq.push(x.rows_of(&(prefix.by_branch(&x, &ds_before.matmul(&prefix.k)?)? + ds_own.matmul(&x.k)?)?)?);
        dk.push(x.key_rows(&turned(&ds_own)?.matmul(&x.q)?)?);
        dv.push(x.key_rows(&turned(&p_own)?.matmul(&d)?)?);
        let dk_prefix = turned(&ds_before)?.matmul(&prefix.q)?.transpose(0, 1)?;
        let dv_prefix = turned(&p_before)?.matmul(&d_before)?.transpose(0, 1)?;
        onto_prefix.push((branches.prefix.start, dk_prefix, dv_prefix));
    }
    let back = |parts: Vec<Tensor>| Tensor::cat(&parts, 0)?.index_select(&index.place, 0);
    let (dq, mut dk, mut dv) = (back(dq)?, back(dk)?, back(dv)?);
    for (start, dk_prefix, dv_prefix) in onto_prefix {
        dk = add_at(&dk, start, &dk_prefix)?;
        dv = add_at(&dv, start, &dv_prefix)?;
    }
    Ok((dq, dk, dv))
}

/// One decoding step: q `[slots, heads, hd]` over each group's prefix and each slot's own keys. Result `[slots, heads, hd]`.
pub fn attend_step(q: &Tensor, kv: &StepKv, scale: f64) -> Result<Tensor> {
    let (slots, heads, hd) = q.dims3()?;
    let (groups, kv_heads) = (kv.groups, kv.kv_heads);
    let (rows, rep, len) = (slots / groups, heads / kv_heads, kv.prefix_k.dim(1)?);
    let own_q = q.reshape((slots * kv_heads, rep, hd))?;
    // [groups · kv, rows · rep, hd]: all rows of a group share one product with its prefix.
    let to_groups = |x: &Tensor, width: usize| {
        let x = x.reshape((groups, rows, kv_heads, rep, width))?.transpose(1, 2)?.contiguous()?;
        x.reshape((groups * kv_heads, rows * rep, width))
    };
    let to_slots = |x: &Tensor, width: usize| {
        let x = x.reshape((groups, kv_heads, rows, rep, width))?.transpose(1, 2)?.contiguous()?;
        x.reshape((slots * kv_heads, rep, width))
    };
    let before = wide(&to_groups(q, hd)?.matmul(&turned(kv.prefix_k)?)?)?;
    let before = before.reshape((groups, kv_heads * rows * rep, len))?.broadcast_add(kv.prefix_mask)?;
    let before = to_slots(&before, len)?;
    let own = wide(&own_q.matmul(&turned(kv.own_k)?)?)?.broadcast_add(kv.own_mask)?;
    let p = softmax(&(Tensor::cat(&[before, own], D::Minus1)? * scale)?)?.to_dtype(q.dtype())?;
    let before = to_groups(&p.narrow(D::Minus1, 0, len)?, len)?.matmul(kv.prefix_v)?;
    let own = p.narrow(D::Minus1, len, kv.own_k.dim(1)?)?.contiguous()?.matmul(kv.own_v)?;
    (to_slots(&before, hd)? + own)?.reshape((slots, heads, hd))
}

/// The rows and one more of zeros, which stands for "none".
fn with_none(x: &Tensor) -> Result<Tensor> {
    x.pad_with_zeros(0, 0, 1)
}

fn turned(x: &Tensor) -> Result<Tensor> {
    x.transpose(D::Minus1, D::Minus2)
}

/// Softmax over the last dimension.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let powers = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

/// Gradient of the raw scores from the probabilities and their gradient.
fn score_gradient(p: &Tensor, d_p: &Tensor, scale: f64) -> Result<Tensor> {
    let d_p = wide(d_p)?;
    let mean = (p * &d_p)?.sum_keepdim(D::Minus1)?;
    (p * d_p.broadcast_sub(&mean)?)? * scale
}

/// x with `part` added from row `start` on.
fn add_at(x: &Tensor, start: usize, part: &Tensor) -> Result<Tensor> {
    let (n, len) = (x.dim(0)?, part.dim(0)?);
    let mut pieces =
        vec![x.narrow(0, 0, start)?, (x.narrow(0, start, len)? + part)?, x.narrow(0, start + len, n - start - len)?];
    pieces.retain(|p| p.elem_count() > 0);
    Tensor::cat(&pieces, 0)
}

/// Rows of a rectangle by run and kv head: q `[count · kv, rep · len, hd]`, k and v `[count · kv, len, hd]`.
struct Own {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    count: usize,
    len: usize,
    kv_heads: usize,
    rep: usize,
    hd: usize,
}

impl Own {
    fn gather(q: &Tensor, k: &Tensor, v: &Tensor, r: &Rectangle) -> Result<Self> {
        let ((_, heads, hd), kv_heads) = (q.dims3()?, k.dim(1)?);
        let keys = |x: &Tensor| {
            let x =
                x.index_select(&r.rows, 0)?.reshape((r.count, r.len, kv_heads, hd))?.transpose(1, 2)?.contiguous()?;
            x.reshape((r.count * kv_heads, r.len, hd))
        };
        let (k, v) = (keys(k)?, keys(v)?);
        let mut own = Self { q: k.clone(), k, v, count: r.count, len: r.len, kv_heads, rep: heads / kv_heads, hd };
        own.q = own.queries(q, &r.rows)?;
        Ok(own)
    }

    /// Rows of x `[n + 1, heads, hd]` in the shape of the queries.
    fn queries(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let x = x.index_select(rows, 0)?.reshape((self.count, self.len, self.kv_heads, self.rep, self.hd))?;
        let x = x.permute((0, 2, 3, 1, 4))?.contiguous()?;
        x.reshape((self.count * self.kv_heads, self.rep * self.len, self.hd))
    }

    /// The queries' shape back to rows `[count · len, heads, hd]`.
    fn rows_of(&self, x: &Tensor) -> Result<Tensor> {
        let x = x
            .reshape((self.count, self.kv_heads, self.rep, self.len, self.hd))?
            .permute((0, 3, 1, 2, 4))?
            .contiguous()?;
        x.reshape((self.count * self.len, self.kv_heads * self.rep, self.hd))
    }

    /// The keys' shape back to rows `[count · len, kv_heads, hd]`.
    fn key_rows(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.reshape((self.count, self.kv_heads, self.len, self.hd))?.transpose(1, 2)?.contiguous()?;
        x.reshape((self.count * self.len, self.kv_heads, self.hd))
    }

    /// Softmax of the scaled scores in f32: `[count · kv, rep · len, (prefix +) len]`.
    fn probabilities(&self, r: &Rectangle, prefix: Option<&Prefix>, scale: f64) -> Result<Tensor> {
        let mut own = (wide(&self.q.matmul(&turned(&self.k)?)?)? * scale)?;
        if let Some(mask) = &r.mask {
            let shape = (self.count * self.kv_heads, self.rep, self.len, self.len);
            own = own.reshape(shape)?.broadcast_add(mask)?.reshape((shape.0, self.rep * self.len, self.len))?;
        }
        let Some(prefix) = prefix else { return softmax(&own) };
        let before = (wide(&prefix.q.matmul(&turned(&prefix.k)?)?)? * scale)?;
        softmax(&Tensor::cat(&[prefix.by_branch(self, &before)?, own], D::Minus1)?)
    }
}

/// A pack's prefix by kv head, k and v `[kv, len, hd]`, and the queries of its branches by kv head `[kv, count · rep · len, hd]`.
struct Prefix {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    len: usize,
}

impl Prefix {
    fn new(x: &Own, k: &Tensor, v: &Tensor, b: &Branches) -> Result<Self> {
        let rows = |x: &Tensor| x.narrow(0, b.prefix.start, b.prefix.len)?.transpose(0, 1)?.contiguous();
        let mut prefix = Self { q: x.q.clone(), k: rows(k)?, v: rows(v)?, len: b.prefix.len };
        prefix.q = prefix.by_head(x, &x.q)?;
        Ok(prefix)
    }

    /// `[count · kv, rep · len, w]` → `[kv, count · rep · len, w]`.
    fn by_head(&self, x: &Own, t: &Tensor) -> Result<Tensor> {
        let (rows, width) = (x.rep * x.len, t.dim(D::Minus1)?);
        let t = t.reshape((x.count, x.kv_heads, rows, width))?.transpose(0, 1)?.contiguous()?;
        t.reshape((x.kv_heads, x.count * rows, width))
    }

    /// The other way round.
    fn by_branch(&self, x: &Own, t: &Tensor) -> Result<Tensor> {
        let (rows, width) = (x.rep * x.len, t.dim(D::Minus1)?);
        let t = t.reshape((x.kv_heads, x.count, rows, width))?.transpose(0, 1)?.contiguous()?;
        t.reshape((x.count * x.kv_heads, rows, width))
    }

    /// Columns of the prefix by kv head, and those of the branches themselves.
    fn split(&self, x: &Own, t: &Tensor) -> Result<(Tensor, Tensor)> {
        let before = self.by_head(x, &t.narrow(D::Minus1, 0, self.len)?.contiguous()?)?;
        Ok((before, t.narrow(D::Minus1, self.len, x.len)?.contiguous()?))
    }
}
