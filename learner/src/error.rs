//! Why the learner ends.

use crate::checkpoint::CheckpointError;
use quorum_core::client::ClientError;
use quorum_core::wire::WireError;
use quorum_engine::EngineError;
use quorum_model::ModelError;

/// Ends the process with one line, except `Stopped` (a normal end) and a fenced `Client` error (join again).
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    #[error("stopped: {0}")]
    Stopped(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("engine, step {step}: {source}")]
    Engine { step: u64, source: EngineError },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("batch of step {step}: {reason}")]
    Batch { step: u64, reason: String },
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(
        "step {step} ended with weights {found} but the ledger says {expected}; the replay must not differ: is this the same machine type, build and model?"
    )]
    Replay { step: u64, expected: String, found: String },
    #[error(
        "step {step} ended with weights that are not finite; it was not committed: lower optim.learning_rate in a new run"
    )]
    NotFinite { step: u64 },
    #[error("the coordinator did not accept {what}: {reason}")]
    NotAccepted { what: String, reason: String },
    #[error("the model in {dir} is not the one this run began with ({what}); restore it, or start a new run")]
    AnotherModel { dir: String, what: String },
    #[error("--world {0} is not supported: this build trains on one rank; start one learner with --rank 0 --world 1")]
    World(u32),
    #[error("cannot start {what}: {source}")]
    Start { what: &'static str, source: std::io::Error },
}

impl LearnerError {
    /// Whether joining again may help.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_fenced())
    }
}
