//! The ledger: one SQLite file that says what happened. A step is committed when its row is in here, and not before.
//!
//! One thread owns the connection. Requests that are waiting together share one transaction (group commit); every reply comes after the commit.

mod browse;
mod read;
mod schema;
#[cfg(test)]
mod tests;
mod thread;
mod write;

pub use browse::{Browser, GroupRow};
pub use read::{CheckpointRow, EvalRow, History, QuarantineRow, StepRow};
pub use thread::{Ledger, Note};
pub use write::Write;

use std::path::PathBuf;

/// What can be wrong with a ledger.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    #[error("ledger {path}: not a ledger of Quorum ({reason}); is this the right run directory?")]
    Foreign { path: PathBuf, reason: String },
    #[error("ledger {path} is damaged ({reason}); restore it from a copy of the run directory, or start a new run")]
    Damaged { path: PathBuf, reason: String },
    #[error("ledger {path} has schema {found}, this build reads {expected}; use the Quorum version that wrote it")]
    Version { path: PathBuf, found: i64, expected: i64 },
    #[error("ledger {path}: {reason}")]
    Sql { path: PathBuf, reason: String },
    #[error(
        "ledger {path}: epoch {newest} has begun, this coordinator is of epoch {epoch}: another one has taken the run over"
    )]
    Fenced { path: PathBuf, epoch: u64, newest: u64 },
    #[error("the ledger's writer has stopped: {0}")]
    Stopped(String),
}
