//! The majority vote over one group: cluster by equivalence, then count. A pure function of the answers; what is paid is in `reward`.

use crate::answer::{ExtractRule, Notation, canonical_in};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What happens when two clusters lead with the same count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TiePolicy {
    /// Nobody is paid and the group is dropped.
    #[default]
    Drop,
    /// The cluster first in canonical order (by key) wins, whatever the order of the samples.
    First,
}

/// `[vote]`: which votes count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VoteRule {
    /// Fewest answered samples a vote needs.
    pub min_votes: u32,
    pub tie: TiePolicy,
    /// Groups with agreement (share of the pool) below this are dropped.
    pub band_low: f32,
    /// Groups with agreement above this are dropped; 1 = none.
    pub band_high: f32,
    /// Which ways of writing an answer are read.
    pub notation: Notation,
    /// Where an answer may stand if there is no `\boxed{…}`.
    pub extract: ExtractRule,
}

impl Default for VoteRule {
    fn default() -> Self {
        Self {
            min_votes: 2,
            tie: TiePolicy::Drop,
            band_low: 0.0,
            band_high: 1.0,
            notation: Notation::default(),
            extract: ExtractRule::default(),
        }
    }
}

/// What became of a group's vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The majority is paid and the group can teach.
    Used,
    /// Every sample of the pool gave the same answer: all are paid, all advantages are 0.
    ZeroVariance,
    /// Fewer answers than `min_votes`.
    NoMajority,
    /// Agreement below `band_low`.
    BelowThreshold,
    /// Agreement above `band_high`.
    AboveBand,
    /// Two clusters lead together and ties are dropped.
    Tie,
}

impl Outcome {
    /// All outcomes, in the order of the metric's documentation.
    pub const ALL: [Outcome; 6] = [
        Outcome::Used,
        Outcome::ZeroVariance,
        Outcome::NoMajority,
        Outcome::BelowThreshold,
        Outcome::Tie,
        Outcome::AboveBand,
    ];

    /// Label of `quorum_vote_groups_total`.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Used => "used",
            Outcome::ZeroVariance => "zero_variance",
            Outcome::NoMajority => "no_majority",
            Outcome::BelowThreshold => "below_threshold",
            Outcome::AboveBand => "above_band",
            Outcome::Tie => "tie",
        }
    }

    /// True when the vote pays somebody.
    pub fn pays(self) -> bool {
        matches!(self, Outcome::Used | Outcome::ZeroVariance)
    }
}

/// Samples whose answers are equivalent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Canonical key.
    pub key: String,
    /// The shortest (then alphabetically first) way the answer was written.
    pub example: String,
    /// Indices into the pool, ascending.
    pub samples: Vec<u32>,
}

/// One vote, complete enough to be audited and re-scored under another rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VoteRecord {
    /// By count, largest first, then by key.
    pub clusters: Vec<Cluster>,
    /// Key of the winning cluster; none unless the outcome pays.
    pub majority: Option<String>,
    /// Samples with an answer.
    pub answered: u32,
    /// Samples without one; never candidates (INV-9).
    pub missing: u32,
    /// Share of the pool, missing answers included, in the largest cluster.
    pub agreement: f32,
    /// Share of the pool by which the largest cluster leads the second.
    pub margin: f32,
    /// Entropy of the clusters among the answered samples, nats.
    pub entropy_nats: f32,
    /// Number of clusters.
    pub distinct: u32,
    pub outcome: Outcome,
}

impl VoteRecord {
    /// The winning cluster; none unless the outcome pays.
    pub fn winner(&self) -> Option<&Cluster> {
        let key = self.majority.as_ref()?;
        self.clusters.iter().find(|c| c.key == *key)
    }

    /// Samples in the pool.
    pub fn pool(&self) -> u32 {
        self.answered + self.missing
    }
}

/// Votes over the pool (one entry a sample; `None` = no answer). The outcome does not depend on the order of the samples.
pub fn vote(answers: &[Option<String>], rule: &VoteRule) -> VoteRecord {
    let clusters = cluster(answers, rule.notation);
    let pool = answers.len() as u32;
    let answered: u32 = clusters.iter().map(|c| c.samples.len() as u32).sum();
    let count = |i: usize| clusters.get(i).map_or(0, |c| c.samples.len() as u32);
    let share = |n: u32| if pool == 0 { 0.0 } else { (f64::from(n) / f64::from(pool)) as f32 };
    let agreement = share(count(0));
    let outcome = if answered == 0 || answered < rule.min_votes {
        Outcome::NoMajority
    } else if count(0) == count(1) && rule.tie == TiePolicy::Drop {
        Outcome::Tie
    } else if agreement < rule.band_low {
        Outcome::BelowThreshold
    } else if agreement > rule.band_high {
        Outcome::AboveBand
    } else if count(0) == pool {
        Outcome::ZeroVariance
    } else {
        Outcome::Used
    };
    VoteRecord {
        majority: outcome.pays().then(|| clusters.first().map(|c| c.key.clone())).flatten(),
        answered,
        missing: pool - answered,
        agreement,
        margin: share(count(0) - count(1)),
        entropy_nats: entropy(&clusters, answered),
        distinct: clusters.len() as u32,
        outcome,
        clusters,
    }
}

fn cluster(answers: &[Option<String>], notation: Notation) -> Vec<Cluster> {
    let mut by_key: BTreeMap<String, Cluster> = BTreeMap::new();
    for (i, answer) in answers.iter().enumerate() {
        let Some(answer) = answer else { continue };
        let Some(key) = canonical_in(answer, notation) else { continue };
        let key = key.into_string();
        let c =
            by_key.entry(key.clone()).or_insert_with(|| Cluster { key, example: answer.clone(), samples: Vec::new() });
        if (answer.len(), answer.as_str()) < (c.example.len(), c.example.as_str()) {
            c.example.clone_from(answer);
        }
        c.samples.push(i as u32);
    }
    let mut clusters: Vec<Cluster> = by_key.into_values().collect();
    // Stable: equal counts stay in key order.
    clusters.sort_by_key(|c| std::cmp::Reverse(c.samples.len()));
    clusters
}

fn entropy(clusters: &[Cluster], answered: u32) -> f32 {
    let terms = clusters.iter().map(|c| {
        let p = c.samples.len() as f64 / f64::from(answered);
        -p * p.ln()
    });
    (terms.sum::<f64>() as f32).max(0.0)
}
