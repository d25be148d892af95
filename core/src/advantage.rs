//! Advantages of one group from its rewards (METHOD §1): group-normalised, or one of two unscaled variants.

use serde::{Deserialize, Serialize};

/// What the centred reward is divided by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// (r − mean) / (std + ε), std unbiased (n − 1).
    #[default]
    GroupStd,
    /// r − mean (Dr. GRPO).
    Mean,
    /// r − mean of the others (RLOO).
    LeaveOneOut,
}

/// How rewards become advantages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdvantageRule {
    pub baseline: Baseline,
    /// Added to the standard deviation.
    pub epsilon: f32,
}

impl Default for AdvantageRule {
    fn default() -> Self {
        Self { baseline: Baseline::GroupStd, epsilon: 1e-6 }
    }
}

impl From<&crate::config::ObjectiveSection> for AdvantageRule {
    fn from(c: &crate::config::ObjectiveSection) -> Self {
        let baseline = if c.scale_advantages { Baseline::GroupStd } else { Baseline::Mean };
        Self { baseline, epsilon: c.advantage_epsilon }
    }
}

/// One advantage a reward. They sum to about 0 (INV-6); a unanimous group, or a group of one, gives exactly 0.
pub fn advantages(rewards: &[f32], rule: &AdvantageRule) -> Vec<f32> {
    let n = rewards.len();
    if n < 2 || rewards.iter().all(|r| *r == rewards[0]) {
        return vec![0.0; n];
    }
    let sum: f64 = rewards.iter().map(|r| f64::from(*r)).sum();
    let mean = sum / n as f64;
    let squares: f64 = rewards.iter().map(|r| (f64::from(*r) - mean).powi(2)).sum();
    let factor = match rule.baseline {
        Baseline::GroupStd => 1.0 / ((squares / (n - 1) as f64).sqrt() + f64::from(rule.epsilon)),
        Baseline::Mean => 1.0,
        // r − (sum − r)/(n − 1) = (r − mean)·n/(n − 1).
        Baseline::LeaveOneOut => n as f64 / (n - 1) as f64,
    };
    rewards.iter().map(|r| ((f64::from(*r) - mean) * factor) as f32).collect()
}
