//! Paired bootstrap over questions. Percentile intervals, seeded, so that a figure can be made again.

use quorum_core::seed::Stream;
use serde::Serialize;

/// A difference after − before in points (0–100) with its 95 % interval.
#[derive(Debug, Clone, Copy, Serialize, PartialEq)]
pub struct Interval {
    pub gain: f64,
    pub low: f64,
    pub high: f64,
}

/// Resamples questions with replacement, `rounds` times. `before` and `after` hold one score in 0..=1 a question, in the same order.
pub fn paired(before: &[f64], after: &[f64], rounds: usize, seed: u64) -> Interval {
    let n = before.len().min(after.len());
    let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| 100.0 * (a - b)).collect();
    if n == 0 {
        return Interval { gain: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    let mean = |sum: f64| sum / n as f64;
    let mut stream = Stream::named("paired bootstrap", &[seed]);
    let mut means: Vec<f64> = (0..rounds)
        .map(|round| mean((0..n).map(|i| differences[stream.below(n as u64, (round * n + i) as u64) as usize]).sum()))
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |q: f64| means[((means.len() - 1) as f64 * q).round() as usize];
    Interval { gain: mean(differences.iter().sum()), low: at(0.025), high: at(0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_difference_has_no_width() {
        let before = vec![0.25; 40];
        let after = vec![0.5; 40];
        assert_eq!(paired(&before, &after, 200, 1), Interval { gain: 25.0, low: 25.0, high: 25.0 });
    }

    #[test]
    fn noise_around_zero_covers_zero() {
        let before: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let after: Vec<f64> = (0..400).map(|i| f64::from((i / 2) % 2)).collect();
        let i = paired(&before, &after, 500, 3);
        assert!(i.low < 0.0 && i.high > 0.0 && i.gain.abs() < 1e-9, "{i:?}");
    }
}
