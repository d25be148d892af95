//! What the run is doing, and what comes next: a function of the committed steps and the finished evaluations.

use super::board::Work;
use quorum_core::Purpose;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What the state machine must know of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub steps: u64,
    /// Ranks of the learner; at least 1.
    pub ranks: u32,
    /// Slots of a step; 0 when batches come from the data itself (SFT) and nothing is leased.
    pub leased_slots: u32,
    /// Questions of an evaluation; 0 = no evaluation.
    pub questions: u32,
    /// Evaluate also every this many steps; 0 = never.
    pub eval_every: u64,
    pub lease_seconds: f64,
    pub heartbeat_seconds: f64,
    pub join_seconds: f64,
    pub step_seconds: f64,
}

/// Reports of failure after which a prompt is quarantined; they come from different workers if there are several.
pub const FAILURES_TO_QUARANTINE: usize = 2;
/// Missed heartbeats after which a member is lost.
pub const MISSED_HEARTBEATS: f64 = 5.0;

impl Plan {
    /// Whether the policy of `version` is evaluated.
    pub fn evaluates(&self, version: u64) -> bool {
        let inner = self.eval_every > 0 && version.is_multiple_of(self.eval_every);
        self.questions > 0 && (version == 0 || version == self.steps || inner)
    }

    /// What follows when `committed` steps are done, and `evaluated` versions have a complete evaluation.
    pub fn phase(&self, committed: u64, evaluated: &BTreeSet<u64>) -> Phase {
        if self.evaluates(committed) && !evaluated.contains(&committed) {
            Phase::Evaluate { version: committed }
        } else if committed < self.steps {
            Phase::Sample { step: committed }
        } else {
            Phase::Complete
        }
    }

    /// The tasks of a phase in canonical order.
    pub fn tasks(&self, phase: Phase) -> Vec<Work> {
        match phase {
            Phase::Sample { step } => {
                (0..self.leased_slots).map(|slot| Work { purpose: Purpose::Train, step, slot }).collect()
            }
            Phase::Evaluate { version } => [Purpose::EvalGreedy, Purpose::EvalSampled, Purpose::EvalCool]
                .into_iter()
                .flat_map(|purpose| (0..self.questions).map(move |slot| Work { purpose, step: version, slot }))
                .collect(),
            Phase::Train { .. } | Phase::Complete => Vec::new(),
        }
    }
}

/// What the run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Workers answer held-out questions with this version.
    Evaluate { version: u64 },
    /// Workers sample the groups of this step.
    Sample { step: u64 },
    /// The batch of this step is complete; the learner works on it.
    Train { step: u64 },
    /// All steps are committed and all evaluations done.
    Complete,
}

impl Phase {
    /// Policy version that leases of this phase are sampled from.
    pub fn version(self) -> Option<u64> {
        match self {
            Phase::Evaluate { version } => Some(version),
            Phase::Sample { step } => Some(step),
            Phase::Train { .. } | Phase::Complete => None,
        }
    }

    /// For messages and `/status`.
    pub fn describe(self) -> String {
        match self {
            Phase::Evaluate { version } => format!("evaluating version {version}"),
            Phase::Sample { step } => format!("sampling step {step}"),
            Phase::Train { step } => format!("training step {step}"),
            Phase::Complete => "complete".into(),
        }
    }
}

/// What the ledger knows when a coordinator starts.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// Digest of every version known, 0 included once it was published.
    pub digests: BTreeMap<u64, String>,
    /// Steps committed.
    pub committed: u64,
    /// Groups, evaluation answers and quarantined slots that are durable.
    pub done: HashSet<Work>,
    /// Fencing epoch of this coordinator.
    pub epoch: u64,
}
