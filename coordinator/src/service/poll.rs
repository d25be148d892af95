//! Long polls: ask, wait for a change, ask again, for a bounded time.

use crate::run::Handle;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

/// Longest a call is held.
const LONGEST: f64 = 20.0;

/// How long a caller that asks for `seconds` is let wait.
pub(super) fn patience(seconds: f64) -> Duration {
    Duration::from_secs_f64(if seconds.is_finite() { seconds.clamp(0.0, LONGEST) } else { 0.0 })
}

/// The waiting part of a long poll.
pub(super) struct Wait {
    changes: watch::Receiver<u64>,
    deadline: Instant,
}

impl Wait {
    /// For `seconds`, at most 20. Changes after this call wake it.
    pub(super) fn new(run: &Handle, seconds: f64) -> Self {
        let mut changes = run.changes();
        changes.borrow_and_update();
        Self { changes, deadline: Instant::now() + patience(seconds) }
    }

    /// Waits for a change: true = ask again, false = the time is over.
    ///
    /// # Errors
    /// The coordinator is shutting down.
    pub(super) async fn again(&mut self) -> Result<bool, Status> {
        match tokio::time::timeout_at(self.deadline, self.changes.changed()).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(_)) => Err(Status::unavailable("the coordinator is shutting down")),
            Err(_) => Ok(false),
        }
    }
}
