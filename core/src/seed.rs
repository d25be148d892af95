//! Counter-based random numbers: every draw is a pure function of a key and a counter, so order and batching cannot matter (D1).

use crate::types::{Purpose, SampleKey};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of numbers addressed by counter.
#[derive(Debug, Clone)]
pub struct Stream {
    rng: ChaCha8Rng,
}

impl Stream {
    /// The stream of one sample.
    pub fn of_sample(key: &SampleKey) -> Self {
        let purpose: u8 = match key.purpose {
            Purpose::Train => 0,
            Purpose::EvalGreedy => 1,
            Purpose::EvalSampled => 2,
            Purpose::EvalCool => 3,
        };
        let mut h = blake3::Hasher::new_derive_key("quorum 2026 sample stream v1");
        h.update(&key.seed.to_le_bytes());
        h.update(&[purpose]);
        h.update(&key.step.to_le_bytes());
        h.update(&key.prompt.to_le_bytes());
        h.update(&key.sample.to_le_bytes());
        h.update(&key.view.to_le_bytes());
        Self { rng: ChaCha8Rng::from_seed(*h.finalize().as_bytes()) }
    }

    /// The stream of a named purpose, e.g. `("data order", &[seed, epoch])`.
    pub fn named(name: &str, numbers: &[u64]) -> Self {
        let mut h = blake3::Hasher::new_derive_key("quorum 2026 named stream v1");
        h.update(&(name.len() as u64).to_le_bytes());
        h.update(name.as_bytes());
        for n in numbers {
            h.update(&n.to_le_bytes());
        }
        Self { rng: ChaCha8Rng::from_seed(*h.finalize().as_bytes()) }
    }

    /// 64 random bits at `counter`.
    pub fn bits(&mut self, counter: u64) -> u64 {
        let position = u128::from(counter) * 2;
        // Setting the position throws away what is computed ahead, which the next counter needs.
        if self.rng.get_word_pos() != position {
            self.rng.set_word_pos(position);
        }
        self.rng.next_u64()
    }

    /// Uniform in [0, 1) with 53 bits, at `counter`.
    pub fn uniform(&mut self, counter: u64) -> f64 {
        (self.bits(counter) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform integer in `0..n` (n > 0), at `counter`. Bias < n / 2^64.
    pub fn below(&mut self, n: u64, counter: u64) -> u64 {
        ((u128::from(self.bits(counter)) * u128::from(n)) >> 64) as u64
    }

    /// A seeded permutation of `0..n` (Fisher–Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            let j = self.below(i as u64 + 1, i as u64) as usize;
            order.swap(i, j);
        }
        order
    }
}

/// Seed of the augmented views of a training step: worker and learner must draw the same ones, and a prompt gets fresh ones each time it comes round.
pub fn views_of_step(run_seed: u64, step: u64) -> u64 {
    Stream::named("views of step", &[run_seed, step]).bits(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sample: u32) -> SampleKey {
        SampleKey { seed: 1, purpose: Purpose::Train, step: 2, prompt: 3, sample, view: 0 }
    }

    #[test]
    fn a_draw_depends_on_key_and_counter_alone() {
        let mut a = Stream::of_sample(&key(0));
        let mut b = Stream::of_sample(&key(0));
        let forward: Vec<u64> = (0..9).map(|c| a.bits(c)).collect();
        let backward: Vec<u64> = (0..9).rev().map(|c| b.bits(c)).collect();
        assert_eq!(forward, backward.into_iter().rev().collect::<Vec<_>>());
        assert_ne!(Stream::of_sample(&key(1)).bits(0), forward[0]);
    }

    #[test]
    fn permutations_hold_every_index_once() {
        let mut p = Stream::named("order", &[7]).permutation(100);
        p.sort_unstable();
        assert_eq!(p, (0..100).collect::<Vec<_>>());
    }
}
