//! Why the learner ends.

use crate::checkpoint::CheckpointError;
use crate::collective::CollectiveError;
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
    #[error("this learner is one of {asked} ranks but the run has learner.ranks = {ranks}; start {ranks}")]
    World { asked: u32, ranks: u32 },
    #[error(
        "rank {rank} is not below the number of ranks, {world}; give both --rank and --world, or start with mpirun or srun"
    )]
    Place { rank: u32, world: u32 },
    #[error(
        "this build of the learner has no transport between ranks; build it with `cargo build --release -p quorum-learner --features {feature}`"
    )]
    NoTransport { feature: &'static str },
    #[error("learner group, {what}: {source}")]
    Group { what: &'static str, source: CollectiveError },
    #[error("waited {seconds:.0} s for the other learner ranks; missing: {missing}")]
    Missing { seconds: f64, missing: String },
    #[error("learner group, {what}: rank {rank} failed: {reason}")]
    Peer { rank: usize, what: &'static str, reason: String },
    #[error(
        "learner group, {what}: rank {own} has {mine}, rank {rank} has {other}; are all ranks the same build on the same machine type?"
    )]
    Apart { what: &'static str, own: usize, mine: String, rank: usize, other: String },
    #[error("cannot start {what}: {source}")]
    Start { what: &'static str, source: std::io::Error },
}

impl LearnerError {
    /// Whether joining again may help: this rank was fenced, or its group lost another.
    pub fn may_pass(&self) -> bool {
        self.is_fenced() || matches!(self, Self::Group { .. } | Self::Peer { .. })
    }

    /// Whether every rank hears of this end by itself: a stop, or the failure of the run.
    pub fn ends_all(&self) -> bool {
        matches!(self, Self::Stopped(_)) || self.is_run_failed()
    }

    /// Whether the run is over because it failed.
    pub fn is_run_failed(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_run_failed())
    }

    /// Whether the coordinator no longer counts on this process.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_fenced())
    }
}
