//! The one attention kernel: a tile of query rows against a list of key segments. Prefill, decode, the training forward and the
//! vision tower all call it with the same segments in the same order, so a row's result is the same bits in each of them.
//!
//! Scores of segment s start at column Σ padded(len) of the earlier ones; a score is one chain over head_dim, the sum of
//! exponentials runs in 16 fixed lanes by column, a value is a product of `gemm.rs` over the keys in order. Masked places hold exactly 0.

use super::gemm::{Init, Left, Panels, gemm, grow, pack_rows, padded};
use super::norm::row_dot;
use super::softmax::{scale, scale_heads, softmax_again, softmax_backward, softmax_row, softmax_rows};

/// Query rows handled at once.
pub const TILE: usize = 48;

/// One run of keys and values of one kv head.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// Keys transposed: \[head_dim, len\].
    pub k: Panels<'a>,
    /// Values: \[len, head_dim\].
    pub v: Panels<'a>,
    pub len: usize,
    /// Row i of the tile sees keys 0..=first + i; `None`: all of them.
    pub first: Option<usize>,
}

impl Segment<'_> {
    /// Keys seen by the last row of a tile of `m` rows.
    pub fn visible(&self, m: usize) -> usize {
        self.first.map_or(self.len, |f| self.len.min(f + m))
    }

    /// Keys seen by row `i`.
    fn visible_to(&self, i: usize) -> usize {
        self.visible(i + 1)
    }
}

/// Columns of a score row.
fn width(segments: &[Segment], m: usize) -> usize {
    segments.iter().map(|s| padded(s.visible(m))).sum()
}

/// S = Q·K for all segments, masked places −∞.
fn scores(q: Left, m: usize, hd: usize, segments: &[Segment], s: &mut [f32], w: usize) {
    let mut at = 0;
    for seg in segments {
        let n = padded(seg.visible(m));
        gemm(m, n, hd, q, seg.k, &mut s[at..], w, Init::Zero);
        for i in 0..m {
            s[i * w + at + seg.visible_to(i)..i * w + at + n].fill(f32::NEG_INFINITY);
        }
        at += n;
    }
}

/// O\[m, head_dim\] (rows `ldo` apart) = softmax(Q·K) · V. Q must be scaled already. `stats` receives (max, 1 / Σ) of each row.
pub fn attend(
    q: Left,
    m: usize,
    hd: usize,
    segments: &[Segment],
    buf: &mut Vec<f32>,
    o: &mut [f32],
    ldo: usize,
    stats: Option<&mut [f32]>,
) {
    let w = width(segments, m);
    grow(buf, m * w + 2 * m);
    let (s, own_stats) = buf[..m * w + 2 * m].split_at_mut(m * w);
    let stats = stats.unwrap_or(own_stats);
    scores(q, m, hd, segments, s, w);
    for (row, st) in s.chunks_exact_mut(w).zip(stats.chunks_exact_mut(2)) {
        (st[0], st[1]) = softmax_row(row);
    }
    let mut at = 0;
    for (x, seg) in segments.iter().enumerate() {
        let init = if x == 0 { Init::Zero } else { Init::Keep };
        gemm(m, hd, seg.visible(m), Left::rows(&s[at..], w), seg.v, o, ldo, init);
        at += padded(seg.visible(m));
    }
    for (o, st) in o.chunks_mut(ldo).zip(stats.chunks_exact(2)).take(m) {
        scale(&mut o[..hd], st[1]);
    }
}

/// One new token of each of `rows` branches that share a prefix: the same arithmetic as [`attend`] with the segments
/// (prefix, own), the prefix part done for all rows at once. Row r's queries start at `q[r * ldq]`, its own keys are `own(r, kv head)`.
pub fn attend_step<'a>(
    q: &[f32],
    ldq: usize,
    rows: usize,
    heads: Heads,
    prefix: impl Fn(usize) -> Segment<'a>,
    own: impl Fn(usize, usize) -> Segment<'a>,
    buf: &mut Vec<f32>,
    o: &mut [f32],
    ldo: usize,
) {
    let Heads { heads: nh, kv_heads, hd } = heads;
    let rep = nh / kv_heads;
    let wp = padded(prefix(0).len);
    let w = wp + padded(own(0, 0).len);
    grow(buf, rows * nh * (w + 1));
    let (s, inverse) = buf[..rows * nh * (w + 1)].split_at_mut(rows * nh * w);
    for g in 0..kv_heads {
        let (pre, h) = (prefix(g), g * rep);
        by_rows_or_heads(rows, rep, |r, h0, m, along_rows| {
            let (lda, ldc) = if along_rows { (ldq, nh * w) } else { (hd, w) };
            let left = Left::rows(&q[r * ldq + (h + h0) * hd..], lda);
            gemm(m, wp, hd, left, pre.k, &mut s[(r * nh + h + h0) * w..], ldc, Init::Zero);
        });
        for r in 0..rows {
            let own = own(r, g);
            let s = &mut s[(r * nh + h) * w..][..rep * w];
            gemm(rep, w - wp, hd, Left::rows(&q[r * ldq + h * hd..], hd), own.k, &mut s[wp..], w, Init::Zero);
            for row in s.chunks_exact_mut(w) {
                row[pre.len..wp].fill(f32::NEG_INFINITY);
                row[wp + own.len..].fill(f32::NEG_INFINITY);
            }
        }
    }
    softmax_rows(s, w, inverse);
    for g in 0..kv_heads {
        let (pre, h) = (prefix(g), g * rep);
        by_rows_or_heads(rows, rep, |r, h0, m, along_rows| {
            let (lda, ldc) = if along_rows { (nh * w, ldo) } else { (w, hd) };
            let left = Left::rows(&s[(r * nh + h + h0) * w..], lda);
            gemm(m, hd, pre.len, left, pre.v, &mut o[r * ldo + (h + h0) * hd..], ldc, Init::Zero);
        });
        for r in 0..rows {
            let own = own(r, g);
            let left = Left::rows(&s[(r * nh + h) * w + wp..], w);
            gemm(rep, hd, own.len, left, own.v, &mut o[r * ldo + h * hd..], hd, Init::Keep);
        }
    }
    for (o, inverse) in o.chunks_mut(ldo).zip(inverse.chunks_exact(nh)) {
        scale_heads(&mut o[..nh * hd], inverse, hd);
    }
}

/// Cuts rows × heads into products along rows (one a head) or along heads (one a row), whichever are fewer; the result is the same.
/// Calls `product(first row, first head, count, along rows)`.
fn by_rows_or_heads(rows: usize, rep: usize, mut product: impl FnMut(usize, usize, usize, bool)) {
    if rows < rep {
        (0..rows).for_each(|r| product(r, 0, rep, false));
    } else {
        (0..rep).for_each(|h| product(0, h, rows, true));
    }
}

/// Head counts of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    /// Elements of a head.
    pub hd: usize,
}

/// What the gradient of one segment needs besides [`Segment`].
#[derive(Clone, Copy)]
pub struct SegmentGrad<'a> {
    /// Values transposed: \[head_dim, len\].
    pub vt: Panels<'a>,
    /// Keys: \[len, head_dim\].
    pub kr: Panels<'a>,
    /// Where the first key's and value's gradients lie in `dqkv`.
    pub dk: usize,
    pub dv: usize,
}

/// Buffers of [`attend_backward`].
#[derive(Default)]
pub struct BackwardScratch {
    p: Vec<f32>,
    dp: Vec<f32>,
    q_rows: Vec<f32>,
    do_rows: Vec<f32>,
}

/// Gradients of one tile: dQ is written at `dqkv[dq..]`, dK and dV are added at the segments' places (all rows `ld` apart).
/// `o` and `d_o` are the tile's output and its gradient, rows `ldo` apart; probabilities are recomputed from `stats`.
pub fn attend_backward(
    q: Left,
    m: usize,
    hd: usize,
    segments: &[Segment],
    grads: &[SegmentGrad],
    stats: &[f32],
    o: &[f32],
    d_o: &[f32],
    ldo: usize,
    dqkv: &mut [f32],
    ld: usize,
    dq: usize,
    b: &mut BackwardScratch,
) {
    let w = width(segments, m);
    grow(&mut b.p, m * w);
    grow(&mut b.dp, m * w);
    grow(&mut b.q_rows, padded(hd) * m);
    grow(&mut b.do_rows, padded(hd) * m);
    pack_rows(m, hd, q.data, q.rs, &mut b.q_rows);
    pack_rows(m, hd, d_o, ldo, &mut b.do_rows);
    let (p, dp) = (&mut b.p[..m * w], &mut b.dp[..m * w]);
    scores(q, m, hd, segments, p, w);
    for (row, st) in p.chunks_exact_mut(w).zip(stats.chunks_exact(2)) {
        softmax_again(row, st[0], st[1]);
    }
    let mut at = 0;
    for (seg, g) in segments.iter().zip(grads) {
        let n = padded(seg.visible(m));
        gemm(m, n, hd, Left::rows(d_o, ldo), g.vt, &mut dp[at..], w, Init::Zero);
        at += n;
    }
    for (i, (p, dp)) in p.chunks_exact(w).zip(dp.chunks_exact_mut(w)).enumerate() {
        let delta = row_dot(&d_o[i * ldo..i * ldo + hd], &o[i * ldo..i * ldo + hd]);
        softmax_backward(p, dp, delta);
    }
    let mut at = 0;
    for (x, (seg, g)) in segments.iter().zip(grads).enumerate() {
        let n = seg.visible(m);
        let init = if x == 0 { Init::Zero } else { Init::Keep };
        gemm(m, hd, n, Left::rows(&dp[at..], w), g.kr, &mut dqkv[dq..], ld, init);
        gemm(n, hd, m, Left::transposed(&dp[at..], w), Panels::new(&b.q_rows, m), &mut dqkv[g.dk..], ld, Init::Keep);
        gemm(n, hd, m, Left::transposed(&p[at..], w), Panels::new(&b.do_rows, m), &mut dqkv[g.dv..], ld, Init::Keep);
        at += padded(n);
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
