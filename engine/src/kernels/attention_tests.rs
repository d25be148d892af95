//! Attention against its definition, decoding against the packed forward, gradients against differences.

use super::*;
use crate::kernels::isa::{Isa, choose, isa};
use crate::kernels::packs::{AttentionScratch, Geometry, PackRows, Run, attend_packs, attend_packs_backward};

const HEADS: Heads = Heads { heads: 4, kv_heads: 2, hd: 12 };
const GEO: Geometry = Geometry { heads: HEADS, causal: true };

fn numbers(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + salt * 104_729) % 1009) as f32 / 500.0 - 1.0).collect()
}

fn pack(prefix: usize, branches: &[usize]) -> (PackRows, usize) {
    let mut p = PackRows { prefix: Some(Run { start: 0, len: prefix }), branches: Vec::new() };
    let mut at = prefix;
    for &len in branches {
        p.branches.push(Run { start: at, len });
        at += len;
    }
    (p, at)
}

/// Keys that a row sees, by definition.
fn seen(p: &PackRows, row: usize) -> Vec<usize> {
    let prefix = p.prefix.unwrap();
    let own = p.branches.iter().find(|b| (b.start..b.start + b.len).contains(&row));
    own.map_or((0..=row).collect(), |b| (0..prefix.len).chain(b.start..=row).collect())
}

fn forward(p: &PackRows, rows: usize, qkv: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut att, mut stats) = (vec![0.0; rows * 48], vec![0.0; 4 * rows * 2]);
    attend_packs(
        &GEO,
        std::slice::from_ref(p),
        rows,
        qkv,
        &mut att,
        Some(&mut stats),
        &mut AttentionScratch::default(),
    );
    (att, stats)
}

/// Attention by definition, in f64.
fn naive(p: &PackRows, rows: usize, qkv: &[f32]) -> Vec<f64> {
    let ld = GEO.ld();
    let mut out = vec![0.0; rows * 48];
    for row in 0..rows {
        for h in 0..4 {
            let at = |r: usize, head: usize, i: usize| f64::from(qkv[r * ld + head * 12 + i]);
            let keys = seen(p, row);
            let s: Vec<f64> =
                keys.iter().map(|&k| (0..12).map(|i| at(row, h, i) * at(k, 4 + h / 2, i)).sum::<f64>().exp()).collect();
            let total: f64 = s.iter().sum();
            for i in 0..12 {
                out[row * 48 + h * 12 + i] = keys.iter().zip(&s).map(|(&k, s)| s / total * at(k, 6 + h / 2, i)).sum();
            }
        }
    }
    out
}

#[test]
fn packs_agree_with_the_definition() {
    for (prefix, branches) in [(1, vec![]), (5, vec![3, 1]), (70, vec![50, 2, 97]), (33, vec![32; 3])] {
        let (p, rows) = pack(prefix, &branches);
        let qkv = numbers(rows * GEO.ld(), rows);
        let (att, _) = forward(&p, rows, &qkv);
        let off = att.iter().zip(naive(&p, rows, &qkv)).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(off < 2e-6, "prefix {prefix}, branches {branches:?}: off by {off}");
    }
}

#[test]
fn instruction_sets_agree_bit_for_bit() {
    let best = isa();
    let (p, rows) = pack(37, &[50, 9]);
    let qkv = numbers(rows * GEO.ld(), 1);
    let first = forward(&p, rows, &qkv);
    for set in [Isa::Avx2, Isa::Baseline] {
        choose(set);
        let other = forward(&p, rows, &qkv);
        choose(best);
        assert!(other == first, "{set:?}");
    }
}

#[test]
fn decoding_a_row_is_the_packed_forward_bit_for_bit() {
    let (p, rows) = pack(37, &[50, 50, 50]);
    let ld = GEO.ld();
    let qkv = numbers(rows * ld, 2);
    let (att, _) = forward(&p, rows, &qkv);
    let mut kv = crate::kv::PrefixKv::default();
    kv.push(HEADS, 37, &qkv, ld);
    let mut own = crate::kv::OwnKv::new(HEADS, 1, 3, 50);
    for t in 0..50 {
        let at = |b: usize| p.branches[b].start + t;
        let q: Vec<f32> = (0..3).flat_map(|b| qkv[at(b) * ld..(at(b) + 1) * ld].to_vec()).collect();
        for b in 0..3 {
            own.append(0, b, t, &q[b * ld..]);
        }
        let mut o = vec![0.0; 3 * 48];
        attend_step(
            &q,
            ld,
            3,
            HEADS,
            |g| kv.segment(HEADS, 0, g),
            |r, g| own.segment(0, r, g, t + 1),
            &mut Vec::new(),
            &mut o,
            48,
        );
        for b in 0..3 {
            assert!(o[b * 48..(b + 1) * 48] == att[at(b) * 48..(at(b) + 1) * 48], "token {t} of branch {b}");
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    let (p, rows) = pack(6, &[5, 52]);
    let ld = GEO.ld();
    let qkv = numbers(rows * ld, 3);
    let datt = numbers(rows * 48, 4);
    let (att, stats) = forward(&p, rows, &qkv);
    let mut dqkv = vec![0.0; rows * ld];
    attend_packs_backward(
        &GEO,
        std::slice::from_ref(&p),
        rows,
        &qkv,
        &att,
        &datt,
        &stats,
        &mut dqkv,
        &mut AttentionScratch::default(),
    );
    let loss = |qkv: &[f32]| -> f64 { naive(&p, rows, qkv).iter().zip(&datt).map(|(a, d)| a * f64::from(*d)).sum() };
    for i in (0..rows * ld).step_by(131) {
        let mut moved = qkv.clone();
        moved[i] = qkv[i] + 1e-2;
        let up = loss(&moved);
        moved[i] = qkv[i] - 1e-2;
        let difference = (up - loss(&moved)) / f64::from((qkv[i] + 1e-2) - (qkv[i] - 1e-2));
        assert!((difference - f64::from(dqkv[i])).abs() < 2e-3, "element {i}: {difference} against {}", dqkv[i]);
    }
}

#[test]
fn a_single_row_decodes_like_many() {
    let (p, rows) = pack(40, &[7]);
    let ld = GEO.ld();
    let qkv = numbers(rows * ld, 6);
    let (att, _) = forward(&p, rows, &qkv);
    let mut kv = crate::kv::PrefixKv::default();
    kv.push(HEADS, 40, &qkv, ld);
    let mut own = crate::kv::OwnKv::new(HEADS, 1, 1, 7);
    for t in 0..7 {
        let q = &qkv[(40 + t) * ld..(41 + t) * ld];
        own.append(0, 0, t, q);
        let mut o = vec![0.0; 48];
        attend_step(
            q,
            ld,
            1,
            HEADS,
            |g| kv.segment(HEADS, 0, g),
            |r, g| own.segment(0, r, g, t + 1),
            &mut Vec::new(),
            &mut o,
            48,
        );
        assert!(o == att[(40 + t) * 48..(41 + t) * 48], "token {t}");
    }
}
