//! Bounds of the histograms, by what they measure: one choice for all processes, so that their series can be added up.

use super::Declared;

/// From a millisecond to an hour.
const SECONDS: &[f64] =
    &[0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0, 300.0, 900.0, 3600.0];
const RATIOS: &[f64] = &[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
const NATS: &[f64] = &[0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0];
const TOKENS: &[f64] =
    &[4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0];
const STEPS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0];
const COUNTS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0];

/// Upper bounds of the buckets of `metric`, ascending, in its unit.
pub fn buckets(metric: &Declared) -> &'static [f64] {
    match (metric.unit, metric.name) {
        ("s", _) => SECONDS,
        ("ratio", _) => RATIOS,
        ("nat", _) => NATS,
        ("tok", _) => TOKENS,
        ("step", _) => STEPS,
        (_, name) if name.starts_with("quorum_reward_") => RATIOS,
        _ => COUNTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::ALL;

    #[test]
    fn bounds_ascend() {
        for m in ALL {
            assert!(buckets(m).windows(2).all(|w| w[0] < w[1]), "{}", m.name);
        }
        let staleness = ALL.iter().find(|m| m.name == "quorum_learner_staleness_steps").unwrap();
        assert_eq!(buckets(staleness)[..3], [0.0, 1.0, 2.0], "a lag of one step is told from none");
    }
}
