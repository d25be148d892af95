//! Drawing tokens from policy rows on the device with the same counter-based numbers as the `cpu` backend: the running sum is taken over
//! blocks of the vocabulary there, and inside the block that holds the goal here, so that no row of a large vocabulary travels.

use super::ops::PolicyRows;
use crate::error::EngineError;
use crate::sampling::{DrawRow, DrawScratch, draw};
use candle_core::{D, Tensor};
use quorum_core::types::Sampling;

type Result<T> = std::result::Result<T, EngineError>;

/// Tokens of one block.
const BLOCK: usize = 512;

/// One token wanted: from which row, with which uniform number.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub row: usize,
    pub u: f64,
}

/// Tokens and their log-probs, in the order wanted.
pub fn tokens(rows: &PolicyRows, wanted: &[Wanted], s: &Sampling, inverse_temperature: f32) -> Result<Vec<(u32, f32)>> {
    let stats = Tensor::cat(&[&rows.max, &rows.sum.log()?], 1)?.to_vec2::<f32>()?;
    if wanted.iter().any(|w| stats[w.row].iter().any(|x| !x.is_finite())) {
        return Err(EngineError::NotFinite("the logits".into()));
    }
    let ratio = 1.0 / (s.temperature * inverse_temperature);
    let chosen = if s.temperature == 0.0 {
        let best = rows.z.argmax(D::Minus1)?.to_vec1::<u32>()?;
        wanted.iter().map(|w| best[w.row]).collect()
    } else if s.top_k > 0 || s.top_p < 1.0 {
        filtered(rows, wanted, s, inverse_temperature)?
    } else if ratio == 1.0 {
        by_blocks(&rows.p, wanted)?
    } else {
        by_blocks(&(rows.z.broadcast_sub(&rows.max)? * f64::from(ratio))?.exp()?, wanted)?
    };
    let vocab = rows.z.dim(1)?;
    let at = wanted.iter().zip(&chosen).map(|(w, &token)| (w.row * vocab) as u32 + token).collect();
    let z = picked(&rows.z.flatten_all()?, at)?.to_vec1::<f32>()?;
    let with_logprob = |((w, token), z): ((&Wanted, u32), f32)| (token, z - stats[w.row][0] - stats[w.row][1]);
    Ok(wanted.iter().zip(chosen).zip(z).map(with_logprob).collect())
}

fn picked(x: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
    let n = rows.len();
    Ok(x.index_select(&Tensor::from_vec(rows, n, x.device())?, 0)?)
}

/// top-k and top-p: whole rows travel.
fn filtered(rows: &PolicyRows, wanted: &[Wanted], s: &Sampling, inverse_temperature: f32) -> Result<Vec<u32>> {
    let (z, p) = (rows.z.to_vec2::<f32>()?, rows.p.to_vec2::<f32>()?);
    let max = rows.max.flatten_all()?.to_vec1::<f32>()?;
    let mut scratch = DrawScratch::default();
    let one = |w: &Wanted| {
        let row = DrawRow { z: &z[w.row], p: &p[w.row], max: max[w.row], inverse_temperature };
        draw(row, s, || w.u, &mut scratch) as u32
    };
    Ok(wanted.iter().map(one).collect())
}

/// Inverse CDF over weights `[n, vocab]`, first over blocks, then inside one.
fn by_blocks(weights: &Tensor, wanted: &[Wanted]) -> Result<Vec<u32>> {
    let (n, vocab) = weights.dims2()?;
    let blocks = vocab.div_ceil(BLOCK);
    let weights = weights.pad_with_zeros(1, 0, blocks * BLOCK - vocab)?.reshape((n * blocks, BLOCK))?;
    let sums = weights.sum(1)?.reshape((n, blocks))?.to_vec2::<f32>()?;
    let goals: Vec<(usize, f64)> = wanted.iter().map(|w| reach(&sums[w.row], w.u * total(&sums[w.row]))).collect();
    let at = wanted.iter().zip(&goals).map(|(w, goal)| (w.row * blocks + goal.0) as u32).collect();
    let inside = picked(&weights, at)?.to_vec2::<f32>()?;
    let token = |(row, (block, rest)): (&Vec<f32>, &(usize, f64))| (block * BLOCK + reach(row, *rest).0) as u32;
    Ok(inside.iter().zip(&goals).map(token).collect())
}

fn total(weights: &[f32]) -> f64 {
    weights.iter().map(|&x| f64::from(x)).sum()
}

/// Where the running sum passes `goal`, and what of the goal is left there; never a place of weight zero, unless all are.
fn reach(weights: &[f32], goal: f64) -> (usize, f64) {
    let (mut sum, mut last) = (0.0, (0, 0.0));
    for (i, &x) in weights.iter().enumerate().filter(|(_, x)| **x > 0.0) {
        last = (i, goal - sum);
        sum += f64::from(x);
        if sum > goal {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn blocks_give_the_token_of_one_long_sum() {
        let n = 3 * BLOCK + 77;
        let row: Vec<f32> = (0..n).map(|i| if i % 7 == 0 { 0.0 } else { ((i * 37) % 101) as f32 }).collect();
        let weights = Tensor::from_vec(row.clone(), (1, n), &Device::Cpu).unwrap();
        let sum = total(&row);
        for step in 0..2000 {
            let u = f64::from(step) / 2000.0 + 1e-4;
            let token = by_blocks(&weights, &[Wanted { row: 0, u }]).unwrap()[0] as usize;
            let before = total(&row[..token]);
            assert!(row[token] > 0.0 && before <= u * sum + 1e-3 && u * sum < before + f64::from(row[token]) + 1e-3);
        }
    }
}
