//! What a run tells whoever shows it: progress bars, plain lines, tests.

use crate::evaluate::Figures;
use crate::state::{Phase, Work};
use std::collections::HashMap;

/// Something worth showing.
#[derive(Debug, Clone)]
pub enum Event {
    Phase(Phase),
    /// A task of the phase is durable: (done, all), and the tokens it brought.
    Progress {
        done: usize,
        all: usize,
        tokens: u64,
    },
    /// A step is committed; its line of metrics.jsonl.
    Step {
        step: u64,
        steps: u64,
        metrics: serde_json::Value,
        seconds: f64,
        tokens_per_second: f64,
        /// What the steps that are left will take, by the newest ones.
        seconds_left: f64,
        /// What the learner took for its parts of it, `<part>_seconds`.
        timings: HashMap<String, f64>,
    },
    /// A task was handed to a worker; only for observers that trace. `row`: its record in the data.
    Leased {
        lease: u64,
        work: Work,
        row: Option<u64>,
        worker: String,
    },
    /// A lease is over: accepted, failed, expired, …; only for observers that trace.
    LeaseEnded {
        lease: u64,
        outcome: &'static str,
        /// As its worker says.
        generate_seconds: Option<f64>,
    },
    /// The learner has uploaded a version.
    Published {
        version: u64,
    },
    /// A checkpoint is named in the ledger.
    Checkpoint(crate::ledger::CheckpointRow),
    /// An evaluation is complete.
    Evaluated {
        version: u64,
        figures: Figures,
    },
    /// A member has not been heard of for too long; `pid` 0 = not told.
    Lost {
        id: String,
        pid: u32,
        seconds: f64,
    },
    /// Anything else, as a sentence.
    Note(String),
}

/// Called by the actor; must not block.
pub trait Observer: Send + Sync {
    fn event(&self, event: &Event);

    /// Whether it wants to hear of every lease.
    fn traces(&self) -> bool {
        false
    }
}

/// Shows nothing.
impl Observer for () {
    fn event(&self, _: &Event) {}
}
