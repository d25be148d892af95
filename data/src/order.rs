//! The order of training: a seeded permutation an epoch, walked continuously over epochs. A pure function, so a resumed run needs only its step number.

use quorum_core::seed::Stream;

/// The permutation of `0..n` of one epoch (counted from 0).
pub fn order(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
    Stream::named("data order", &[seed, epoch]).permutation(n)
}

/// Indices (into the usable records) of the prompts of `step`, counted from 0: `per_step` places of the endless sequence order(0), order(1), …
/// A step may straddle two epochs; every record comes once an epoch. Empty if `n` is 0.
pub fn prompts_of_step(seed: u64, step: u64, per_step: usize, n: usize) -> Vec<usize> {
    if n == 0 {
        return Vec::new();
    }
    let start = u128::from(step) * per_step as u128;
    let mut current: Option<(u64, Vec<usize>)> = None;
    let mut out = Vec::with_capacity(per_step);
    for position in (0..per_step as u128).map(|i| start + i) {
        let epoch = (position / n as u128) as u64;
        let place = (position % n as u128) as usize;
        if current.as_ref().is_none_or(|(e, _)| *e != epoch) {
            current = Some((epoch, order(seed, epoch, n)));
        }
        out.extend(current.iter().filter_map(|(_, p)| p.get(place)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_comes_once_an_epoch_across_step_borders() {
        let (n, per_step) = (10, 4);
        let walked: Vec<usize> = (0..10).flat_map(|step| prompts_of_step(7, step, per_step, n)).collect();
        assert_eq!(walked.len(), 40);
        for (epoch, chunk) in walked.chunks(n).enumerate() {
            assert_eq!(chunk, order(7, epoch as u64, n));
            let mut sorted = chunk.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        }
        assert_ne!(order(7, 0, n), order(7, 1, n));
        assert_ne!(order(7, 0, n), order(8, 0, n));
    }

    #[test]
    fn a_step_may_be_longer_than_the_data() {
        assert_eq!(prompts_of_step(1, 0, 7, 3).len(), 7);
        assert!(prompts_of_step(1, 0, 7, 0).is_empty());
        assert_eq!(prompts_of_step(1, u64::MAX, 2, 3).len(), 2);
    }
}
