//! What leases of this coordinator are for, so that a submission need not ask the actor before its group is checked. A lease never changes its
//! work, so nothing here can be wrong; whether the lease still counts is the state's business.

use crate::state::{Grant, Work};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Leases remembered before all are forgotten and the actor is asked again.
const MOST: usize = 1 << 16;

/// Work by lease; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Works(Arc<Mutex<HashMap<u64, Work>>>);

impl Works {
    /// Notes what was granted.
    pub(super) fn remember(&self, grants: &[Grant]) {
        if grants.is_empty() {
            return;
        }
        let mut works = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if works.len() + grants.len() > MOST {
            works.clear();
        }
        works.extend(grants.iter().map(|g| (g.lease, g.work)));
    }

    /// The work of a lease that was granted lately.
    pub(super) fn of(&self, lease: u64) -> Option<Work> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&lease).copied()
    }
}
