//! The matrix product against its documented arithmetic and against the gemm crate.

use super::*;
use crate::kernels::isa::{Isa, choose, isa};

fn numbers(n: usize, salt: u64) -> Vec<f32> {
    (0..n as u64).map(|i| ((i * 2_654_435_761 + salt * 40_503) % 2003) as f32 / 1000.0 - 1.0).collect()
}

/// The documented arithmetic, one element at a time.
fn chain(m: usize, n: usize, k: usize, a: Left, b: &[f32], start: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut out = Vec::new();
    for i in 0..m {
        for j in 0..n {
            out.push((0..k).fold(start(i, j), |s, kk| a.data[i * a.rs + kk * a.cs].mul_add(b[kk * n + j], s)));
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
