//! How fast steps go, and what the rest will take.

/// Share of the newest step in the smoothed step time.
const SMOOTHING: f64 = 0.2;

/// The pace of a run since this start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// Wall seconds of the newest step.
    pub newest: f64,
    /// Sampled tokens a second of the newest step.
    pub tokens_per_second: f64,
    smoothed: Option<f64>,
}

impl Pace {
    /// A step took `seconds`.
    pub(super) fn add(&mut self, seconds: f64, tokens_per_second: f64) {
        let smoothed = self.smoothed.map_or(seconds, |s| s + SMOOTHING * (seconds - s));
        *self = Self { newest: seconds, tokens_per_second, smoothed: Some(smoothed) };
    }

    /// Whether a step was done since this start.
    pub(super) fn known(&self) -> bool {
        self.smoothed.is_some()
    }

    /// What `steps` more steps will take.
    pub(super) fn seconds_left(&self, steps: u64) -> f64 {
        self.smoothed.unwrap_or(0.0) * steps as f64
    }
}
