//! What the ledger's thread tells the actor: which answers are durable. One transaction holds many, and the actor is woken once for all of them.

use crate::ledger::{LedgerError, Note};
use crate::state::Work;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// An answer that is durable, or cannot be made so.
pub(super) struct Recorded {
    pub(super) work: Work,
    pub(super) tokens: u64,
    pub(super) result: Result<(), LedgerError>,
}

/// Answers that became durable and were not looked at yet; no more than are waited for.
#[derive(Clone, Default)]
pub(super) struct Durable {
    recorded: Arc<Mutex<Vec<Recorded>>>,
    arrived: Arc<Notify>,
}

impl Durable {
    /// For the ledger to call.
    pub(super) fn note(&self, work: Work, tokens: u64) -> Note {
        let this = self.clone();
        Box::new(move |result| {
            this.recorded.lock().unwrap_or_else(PoisonError::into_inner).push(Recorded { work, tokens, result });
            this.arrived.notify_one();
        })
    }

    /// Waits until there is something to take.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// All of it.
    pub(super) fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut *self.recorded.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
