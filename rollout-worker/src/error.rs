//! Why a worker ends. What concerns one prompt alone is reported to the coordinator and is no error here.

use quorum_core::client::ClientError;
use quorum_engine::EngineError;
use quorum_model::ModelError;

/// Ends the process with one line.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the coordinator's model cannot be used: {0}")]
    Model(#[from] ModelError),
    #[error("engine: {0}")]
    Engine(#[from] EngineError),
    #[error("the engine thread ended abnormally; the log above says why")]
    EngineGone,
    #[error("--relay {listen}: {reason}")]
    Relay { listen: String, reason: String },
    #[error("cannot start {what}: {source}")]
    Start { what: &'static str, source: std::io::Error },
}

impl WorkerError {
    /// Whether the run is over because it failed.
    pub fn is_run_failed(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_run_failed())
    }
}
