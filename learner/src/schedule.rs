//! The learning rate as a pure function of the step.

use quorum_core::config::{OptimSection, Schedule};

/// Rate of `step` (counted from 0) of a run of `steps`: linear warm-up, then the schedule's fall to 0 at `steps`.
pub fn learning_rate(optim: &OptimSection, steps: u64, step: u64) -> f32 {
    let warmup = optim.warmup_steps;
    let factor = if step < warmup {
        // The first step already moves, the last of the warm-up has the full rate.
        (step + 1) as f64 / warmup as f64
    } else {
        let length = steps.saturating_sub(warmup).max(1) as f64;
        let done = ((step - warmup) as f64 / length).min(1.0);
        match optim.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - done,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    };
    (f64::from(optim.learning_rate) * factor) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optim(schedule: Schedule, warmup_steps: u64) -> OptimSection {
        OptimSection { learning_rate: 1.0, schedule, warmup_steps, ..OptimSection::default() }
    }

    #[test]
    fn warm_up_rises_to_the_full_rate() {
        let o = optim(Schedule::Constant, 4);
        let rates: Vec<f32> = (0..6).map(|s| learning_rate(&o, 10, s)).collect();
        assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn linear_falls_to_zero_at_the_end() {
        let o = optim(Schedule::Linear, 2);
        let rates: Vec<f32> = (0..11).map(|s| learning_rate(&o, 10, s)).collect();
        assert_eq!(rates[..3], [0.5, 1.0, 1.0]);
        assert_eq!((rates[6], rates[10]), (0.5, 0.0));
        assert!(rates[2..].windows(2).all(|w| w[1] < w[0]));
    }

    #[test]
    fn cosine_is_half_way_in_the_middle() {
        let o = optim(Schedule::Cosine, 0);
        assert_eq!(learning_rate(&o, 10, 0), 1.0);
        assert!((learning_rate(&o, 10, 5) - 0.5).abs() < 1e-6);
        assert!(learning_rate(&o, 10, 10).abs() < 1e-6);
        assert!(learning_rate(&o, 10, 1) > 0.97);
    }

    #[test]
    fn odd_settings_stay_in_range() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            for (warmup, steps) in [(0, 0), (5, 3), (0, 1)] {
                for step in 0..8 {
                    let rate = learning_rate(&optim(schedule, warmup), steps, step);
                    assert!((0.0..=1.0).contains(&rate), "{schedule:?} {warmup} {steps} {step}: {rate}");
                }
            }
        }
    }
}
