//! Attention over packs: rows of a prefix followed by the rows of the branches that continue it. Walks heads and tiles; the
//! arithmetic is `attention.rs`. A vision window is a pack without branches and without causality.

use super::attention::{BackwardScratch, Heads, Segment, SegmentGrad, TILE, attend, attend_backward};
use super::gemm::{Left, Panels, grow, pack_rows, pack_transposed, padded};

/// A run of consecutive rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub start: usize,
    pub len: usize,
}

/// Rows of one pack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackRows {
    pub prefix: Option<Run>,
    pub branches: Vec<Run>,
}

/// Where q, k, v lie in a row of `ld` elements: heads of q, then of k, then of v.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    pub heads: Heads,
    pub causal: bool,
}

impl Geometry {
    /// Elements of a row of q|k|v.
    pub fn ld(&self) -> usize {
        (self.heads.heads + 2 * self.heads.kv_heads) * self.heads.hd
    }

    fn k_col(&self, g: usize) -> usize {
        (self.heads.heads + g) * self.heads.hd
    }

    fn v_col(&self, g: usize) -> usize {
        (self.heads.heads + self.heads.kv_heads + g) * self.heads.hd
    }
}

/// Packed keys and values of one run and kv head.
#[derive(Default)]
struct Packed {
    run: Option<Run>,
    k: Vec<f32>,
    v: Vec<f32>,
    vt: Vec<f32>,
    kr: Vec<f32>,
}

impl Packed {
    fn load(&mut self, geo: &Geometry, run: Run, qkv: &[f32], g: usize, backward: bool) {
        let (hd, ld, n) = (geo.heads.hd, geo.ld(), run.len);
        let keys = &qkv[run.start * ld + geo.k_col(g)..];
        let values = &qkv[run.start * ld + geo.v_col(g)..];
        pack_keys(hd, n, keys, ld, &mut self.k);
        if backward {
            pack_keys(hd, n, values, ld, &mut self.vt);
            pack_values(hd, n, keys, ld, &mut self.kr);
        } else {
            pack_values(hd, n, values, ld, &mut self.v);
        }
        self.run = Some(run);
    }

    fn segment(&self, hd: usize, first: Option<usize>) -> Segment<'_> {
        let len = self.run.map_or(0, |r| r.len);
        Segment { k: Panels::new(&self.k, hd), v: Panels::new(&self.v, len), len, first }
    }

    fn grad(&self, geo: &Geometry, g: usize) -> SegmentGrad<'_> {
        let run = self.run.unwrap_or(Run { start: 0, len: 0 });
        let row = run.start * geo.ld();
        SegmentGrad {
            vt: Panels::new(&self.vt, geo.heads.hd),
            kr: Panels::new(&self.kr, run.len),
            dk: row + geo.k_col(g),
            dv: row + geo.v_col(g),
        }
    }
}

fn pack_keys(hd: usize, n: usize, src: &[f32], ld: usize, out: &mut Vec<f32>) {
    grow(out, padded(n) * hd);
    pack_transposed(hd, n, src, ld, out);
}

fn pack_values(hd: usize, n: usize, src: &[f32], ld: usize, out: &mut Vec<f32>) {
    grow(out, padded(hd) * n);
    pack_rows(n, hd, src, ld, out);
}

/// Buffers of attention over packs, kept by the caller.
#[derive(Default)]
pub struct AttentionScratch {
    prefix: Packed,
    own: Packed,
    scores: Vec<f32>,
    backward: BackwardScratch,
}

/// `att`\[rows, heads · hd\] from `qkv`\[rows, ld\] (rotated, q scaled). `stats`, if given, is \[heads, rows, 2\].
pub fn attend_packs(
    geo: &Geometry,
    packs: &[PackRows],
    rows: usize,
    qkv: &[f32],
    att: &mut [f32],
    mut stats: Option<&mut [f32]>,
    sc: &mut AttentionScratch,
) {
    let Heads { heads, kv_heads, hd } = geo.heads;
    let rep = heads / kv_heads;
    let ldo = heads * hd;
    for pack in packs {
        for g in 0..kv_heads {
            sc.prefix.run = None;
            for (run, is_prefix) in runs(pack) {
                let own = if is_prefix { &mut sc.prefix } else { &mut sc.own };
                own.load(geo, run, qkv, g, false);
                for t in (0..run.len).step_by(TILE) {
                    let m = TILE.min(run.len - t);
                    let row = run.start + t;
                    let (segments, n) = segments(&sc.prefix, &sc.own, is_prefix, hd, geo.causal.then_some(t));
                    for h in g * rep..(g + 1) * rep {
                        let q = Left::rows(&qkv[row * geo.ld() + h * hd..], geo.ld());
                        let st = stats.as_deref_mut().map(|s| &mut s[(h * rows + row) * 2..(h * rows + row + m) * 2]);
                        attend(q, m, hd, &segments[..n], &mut sc.scores, &mut att[row * ldo + h * hd..], ldo, st);
                    }
                }
            }
        }
    }
}

/// `dqkv` from `datt`: dq is written, dk and dv are added, so they must be zero on entry. Runs are visited in a fixed order.
pub fn attend_packs_backward(
    geo: &Geometry,
    packs: &[PackRows],
    rows: usize,
    qkv: &[f32],
    att: &[f32],
    datt: &[f32],
    stats: &[f32],
    dqkv: &mut [f32],
    sc: &mut AttentionScratch,
) {
    let Heads { heads, kv_heads, hd } = geo.heads;
    let rep = heads / kv_heads;
    let (ld, ldo) = (geo.ld(), heads * hd);
    for pack in packs {
        for g in 0..kv_heads {
            sc.prefix.run = None;
            for (run, is_prefix) in runs(pack) {
                let own = if is_prefix { &mut sc.prefix } else { &mut sc.own };
                own.load(geo, run, qkv, g, true);
                for t in (0..run.len).step_by(TILE) {
                    let m = TILE.min(run.len - t);
                    let row = run.start + t;
                    let (segments, n) = segments(&sc.prefix, &sc.own, is_prefix, hd, geo.causal.then_some(t));
                    let (a, b) = (sc.prefix.grad(geo, g), sc.own.grad(geo, g));
                    let grads = if n == 2 {
                        [a, b]
                    } else if is_prefix {
                        [a, a]
                    } else {
                        [b, b]
                    };
                    for h in g * rep..(g + 1) * rep {
                        let q = Left::rows(&qkv[row * ld + h * hd..], ld);
                        let st = &stats[(h * rows + row) * 2..(h * rows + row + m) * 2];
                        let at = row * ldo + h * hd;
                        attend_backward(
                            q,
                            m,
                            hd,
                            &segments[..n],
                            &grads[..n],
                            st,
                            &att[at..],
                            &datt[at..],
                            ldo,
                            dqkv,
                            ld,
                            row * ld + h * hd,
                            &mut sc.backward,
                        );
                    }
                }
            }
        }
    }
}

/// The runs of a pack, its prefix first.
fn runs(pack: &PackRows) -> impl Iterator<Item = (Run, bool)> + '_ {
    pack.prefix.iter().map(|&r| (r, true)).chain(pack.branches.iter().map(|&r| (r, false)))
}

/// Segments that rows of a run see, and how many of the two there are.
fn segments<'a>(
    prefix: &'a Packed,
    own: &'a Packed,
    is_prefix: bool,
    hd: usize,
    first: Option<usize>,
) -> ([Segment<'a>; 2], usize) {
    if is_prefix {
        let s = prefix.segment(hd, first);
        ([s, s], 1)
    } else if prefix.run.is_some() {
        ([prefix.segment(hd, None), own.segment(hd, first)], 2)
    } else {
        let s = own.segment(hd, first);
        ([s, s], 1)
    }
}
