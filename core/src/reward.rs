//! What each sample of a group is paid, given the vote. A missing answer is paid 0 by every source (INV-9).

use crate::answer::canonical_in;
use crate::vote::{VoteRecord, VoteRule};
use serde::{Deserialize, Serialize};

/// Where rewards come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardSource {
    /// 1 for the majority answer, 0 otherwise.
    #[default]
    Majority,
    /// The share of the pool that gave the same answer.
    Soft,
    /// 1 for the label's answer (comparison only: needs labels). The vote plays no part.
    GroundTruth,
    /// A fair coin for every answered sample (control). The vote plays no part.
    Random,
}

impl RewardSource {
    /// The name in the configuration and in metric labels.
    pub fn label(self) -> &'static str {
        match self {
            RewardSource::Majority => "majority",
            RewardSource::Soft => "soft",
            RewardSource::GroundTruth => "ground_truth",
            RewardSource::Random => "random",
        }
    }
}

/// One reward a sample of the pool.
///
/// `answers` is the pool the `record` was voted on under `rule`. `label` is read by `GroundTruth` alone; without one it pays nobody.
/// `uniform(i)` gives a number in [0, 1) for sample `i` and is called by `Random` alone. A group whose vote does not pay
/// gets zeros from `Majority` and `Soft`.
pub fn rewards(
    record: &VoteRecord,
    answers: &[Option<String>],
    source: RewardSource,
    rule: &VoteRule,
    label: Option<&str>,
    uniform: &mut dyn FnMut(u32) -> f32,
) -> Vec<f32> {
    let mut paid = vec![0.0; answers.len()];
    let mut pay = |samples: &[u32], amount: f32| {
        for &i in samples {
            if let Some(p) = paid.get_mut(i as usize) {
                *p = amount;
            }
        }
    };
    match source {
        RewardSource::Majority => {
            if let Some(c) = record.winner() {
                pay(&c.samples, 1.0);
            }
        }
        RewardSource::Soft if record.outcome.pays() => {
            for c in &record.clusters {
                pay(&c.samples, (c.samples.len() as f64 / f64::from(record.pool())) as f32);
            }
        }
        RewardSource::Soft => {}
        RewardSource::GroundTruth => {
            let truth = label.and_then(|l| canonical_in(l, rule.notation));
            if let Some(c) = truth.and_then(|t| record.clusters.iter().find(|c| c.key == t.as_str())) {
                pay(&c.samples, 1.0);
            }
        }
        RewardSource::Random => {
            for i in record.clusters.iter().flat_map(|c| &c.samples) {
                pay(&[*i], if uniform(*i) < 0.5 { 1.0 } else { 0.0 });
            }
        }
    }
    paid
}
