//! Whether this process does its work, for probes: told by the process, asked by its metrics page.

use std::sync::atomic::{AtomicBool, Ordering};

static READY: AtomicBool = AtomicBool::new(false);

/// A worker is ready while it serves the version that is being sampled from; a learner while it belongs to a run.
pub fn set_ready(ready: bool) {
    READY.store(ready, Ordering::Relaxed);
}

/// What was told last; false at first.
pub fn is_ready() -> bool {
    READY.load(Ordering::Relaxed)
}
