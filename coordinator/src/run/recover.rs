//! From what the ledger says to the state a coordinator starts with.

use crate::evaluate::{Evaluation, Outcome, purpose_of};
use crate::ledger::{CheckpointRow, History};
use crate::state::{Recovered, Work};
use quorum_core::config::{ObjectiveKind, RunConfig};
use quorum_core::types::Purpose;
use std::collections::{BTreeMap, BTreeSet};

/// Everything the actor takes over from earlier epochs.
#[derive(Debug, Default)]
pub struct Recovery {
    pub recovered: Recovered,
    pub evaluations: BTreeMap<u64, Evaluation>,
    /// Newest first.
    pub checkpoints: Vec<CheckpointRow>,
    pub seconds: f64,
    pub samples: u64,
    pub quarantined: u64,
    /// Training rows that were given up: they are not asked for again.
    pub bad_rows: BTreeSet<u64>,
}

/// Samples of a step that the ledger does not count because they come from the data: all of a supervised run.
pub fn supervised_per_step(config: &RunConfig) -> Option<u32> {
    (config.objective.kind == ObjectiveKind::Sft).then_some(config.rollout.prompts_per_step)
}

/// Reads the history.
///
/// # Errors
/// Rows that contradict each other, by name.
pub fn recover(history: &History, supervised_per_step: Option<u32>) -> Result<Recovery, String> {
    let mut recovered = Recovered { committed: history.committed(), epoch: history.epoch, ..Recovered::default() };
    if let Some(start) = history.meta.get("start_weights") {
        recovered.digests.insert(0, start.clone());
    }
    for (i, row) in history.steps.iter().enumerate() {
        if row.step != i as u64 || row.version != row.step + 1 {
            return Err(format!(
                "the ledger is damaged: step {i} is followed by step {} with version {}",
                row.step, row.version
            ));
        }
        recovered.digests.insert(row.version, row.digest.clone());
    }
    for &(step, slot) in &history.open_groups {
        if step != recovered.committed {
            return Err(format!(
                "the ledger is damaged: it holds a group of step {step}, but step {} is open",
                recovered.committed
            ));
        }
        recovered.done.insert(Work { purpose: Purpose::Train, step, slot });
    }
    let mut evaluations: BTreeMap<u64, Evaluation> = BTreeMap::new();
    for row in &history.evals {
        let damaged = |what: String| {
            format!("the ledger is damaged: evaluation of version {}, row {}: {what}", row.version, row.row)
        };
        let purpose = purpose_of(&row.purpose).ok_or_else(|| damaged(format!("unknown purpose {}", row.purpose)))?;
        let outcome: Outcome = serde_json::from_str(&row.outcome).map_err(|e| damaged(e.to_string()))?;
        evaluations.entry(row.version).or_default().add(row.slot, row.row, purpose, outcome);
        recovered.done.insert(Work { purpose, step: row.version, slot: row.slot });
    }
    let supervised = supervised_per_step.map_or(0, |n| u64::from(n) * recovered.committed);
    Ok(Recovery {
        evaluations,
        checkpoints: history.checkpoints(),
        seconds: history.seconds,
        samples: history.samples + supervised,
        quarantined: history.quarantine.len() as u64,
        bad_rows: history
            .quarantine
            .iter()
            .filter(|q| purpose_of(&q.purpose) == Some(Purpose::Train))
            .map(|q| q.row)
            .collect(),
        recovered,
    })
}
