//! The matrix product against its documented arithmetic and against the gemm crate.

use super::*;
use crate::kernels::isa::{Isa, choose, isa};
use crate::kernels::threads::with_threads;

fn numbers(n: usize, salt: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i * 2_654_435_761 + salt * 40_503) % 2003) as f32 / 1000.0 - 1.0).collect()
}

/// The documented arithmetic, one element at a time.
fn chain(m: usize, n: usize, k: usize, a: Left, b: &[f32], start: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut out = Vec::new();
    for i in 0..m {
        for j in 0..n {
            let term = |s: f32, kk: usize| a.data[i * a.rs + kk * a.cs].mul_add(b[kk * n + j], s);
            out.push((0..k).step_by(KC).fold(start(i, j), |c, k0| c + (k0..k.min(k0 + KC)).fold(0.0, term)));
        }
    }
    out
}

const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 32, 128),
    (2, 33, 5),
    (3, 31, 300),
    (11, 64, 32),
    (12, 12, 16),
    (13, 96, 257),
    (25, 100, 512),
    (64, 256, 128),
    (241, 40, 70),
    (7, 512, 600),
    (5, 3, 0),
];

#[test]
fn every_element_is_the_documented_chain_on_every_instruction_set() {
    let best = isa();
    let sets: &[Isa] =
        if best == Isa::Avx512 { &[Isa::Avx512, Isa::Avx2, Isa::Baseline] } else { &[Isa::Avx2, Isa::Baseline] };
    for &set in sets {
        choose(set);
        for (m, n, k) in SHAPES {
            let (a, b, old, bias) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * n, 3), numbers(n, 4));
            let mut panels = vec![0.0; padded(n) * k];
            pack_rows(k, n, &b, n, &mut panels);
            for left in [Left::rows(&a, k), Left::transposed(&a, m)] {
                for (init, start) in [(Init::Zero, 0), (Init::Keep, 1), (Init::Bias(&bias), 2)] {
                    let mut c = old.clone();
                    gemm(m, n, k, left, Panels::new(&panels, k), &mut c, n, init);
                    let want = chain(m, n, k, left, &b, |i, j| [0.0, old[i * n + j], bias[j]][start]);
                    assert!(c == want, "{m}×{n}×{k} on {set:?}, start {start}");
                }
            }
            let mut c = old.clone();
            accumulate_transposed(m, n, k, &a, m, &b, n, &mut c, n, &mut Scratch::default());
            assert!(
                c == chain(m, n, k, Left::transposed(&a, m), &b, |i, j| old[i * n + j]),
                "Aᵀ·B {m}×{n}×{k} on {set:?}"
            );
        }
    }
    choose(best);
}

#[test]
fn a_large_start_does_not_coarsen_the_sum() {
    let k = 240;
    let (a, b) = (numbers(k, 1), numbers(k, 2));
    let exact: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    let mut panels = vec![0.0; padded(1) * k];
    pack_rows(k, 1, &b, 1, &mut panels);
    let mut c = [8192.0f32];
    gemm(1, 1, k, Left::rows(&a, k), Panels::new(&panels, k), &mut c, 1, Init::Keep);
    assert_eq!(c[0], (8192.0 + exact) as f32);
}

#[test]
fn packing_by_rows_and_transposed_agree() {
    for (_, n, k) in SHAPES {
        let b = numbers(k * n, 5);
        let bt: Vec<f32> = (0..n * k).map(|i| b[(i % k.max(1)) * n + i / k.max(1)]).collect();
        let (mut one, mut two) = (vec![7.0; padded(n) * k], vec![8.0; padded(n) * k]);
        pack_rows(k, n, &b, n, &mut one);
        pack_transposed(k, n, &bt, k, &mut two);
        assert_eq!(one, two);
    }
}

#[test]
fn agrees_with_the_gemm_crate() {
    for (m, n, k) in SHAPES.into_iter().filter(|s| s.2 > 0) {
        let (a, b) = (numbers(m * k, 6), numbers(k * n, 7));
        let mut panels = vec![0.0; padded(n) * k];
        pack_rows(k, n, &b, n, &mut panels);
        let (mut c, mut want) = (vec![0.0; m * n], vec![0.0f32; m * n]);
        gemm(m, n, k, Left::rows(&a, k), Panels::new(&panels, k), &mut c, n, Init::Zero);
        // SAFETY: the slices have exactly these shapes.
        unsafe {
            let (cn, kn) = (n as isize, k as isize);
            ::gemm::gemm(
                m,
                n,
                k,
                want.as_mut_ptr(),
                1,
                cn,
                false,
                a.as_ptr(),
                1,
                kn,
                b.as_ptr(),
                1,
                cn,
                0.0,
                1.0,
                false,
                false,
                false,
                ::gemm::Parallelism::None,
            );
        }
        let off = c.iter().zip(&want).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5 * k as f32, "{m}×{n}×{k} differs by {off}");
    }
}

#[test]
fn threads_and_bf16_change_no_bit() {
    let (m, n, k) = (307, 300, 259);
    let (a, old) = (numbers(m * k, 1), numbers(m * n, 3));
    let b: Vec<f32> = numbers(k * n, 2).iter().map(|&x| u16::round(x).widen()).collect();
    let mut panels = vec![0.0; padded(n) * k];
    pack_rows(k, n, &b, n, &mut panels);
    let narrow: Vec<u16> = panels.iter().map(|&x| u16::round(x)).collect();
    let best = isa();
    let sets: &[Isa] =
        if best == Isa::Avx512 { &[Isa::Avx512, Isa::Avx2, Isa::Baseline] } else { &[Isa::Avx2, Isa::Baseline] };
    let mut want: Option<(Vec<f32>, Vec<f32>)> = None;
    for &set in sets {
        choose(set);
        for (threads, values) in
            [1, 2, 5].into_iter().flat_map(|t| [(t, Values::F32(&panels)), (t, Values::Bf16(&narrow))])
        {
            let (mut c, mut d) = (old.clone(), vec![0.5; k * n]);
            with_threads(threads, || {
                gemm(m, n, k, Left::rows(&a, k), Panels::of(values, k), &mut c, n, Init::Keep);
                accumulate_transposed(k, n, m, &a, k, &c, n, &mut d, n, &mut Scratch::default());
            });
            let want = want.get_or_insert_with(|| (c.clone(), d.clone()));
            assert!(*want == (c, d), "{threads} threads on {set:?}");
        }
    }
    choose(best);
}

#[test]
fn turned_panels_are_the_packed_rows() {
    for (_, n, k) in SHAPES.into_iter().filter(|s| s.2 > 0) {
        let w = numbers(n * k, 9);
        let mut forward = vec![0.0f32; padded(n) * k];
        pack_transposed(k, n, &w, k, &mut forward);
        for from in (0..n).step_by(NR) {
            let rows = (n - from).min(2 * NR);
            let (mut turned, mut packed) = (vec![0.0; padded(k) * rows], vec![0.0; padded(k) * rows]);
            turn_panels(k, &forward, from, rows, &mut turned);
            pack_rows(rows, k, &w[from * k..], k, &mut packed);
            assert_eq!(turned, packed, "{n}×{k} from {from}");
        }
    }
}
