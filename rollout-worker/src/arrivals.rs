//! Versions that come unasked: by broadcast from the learner, while the worker may still be sampling from the one before.

use crate::options::Options;
use crate::relay::Shelf;
use quorum_core::client::{Fetched, Session};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What may be waited for beyond a round's own deadline.
const GRACE: Duration = Duration::from_secs(10);

/// The newest that came.
#[derive(Debug, Default)]
#[cfg_attr(not(feature = "nccl"), expect(dead_code, reason = "only who follows a fabric makes them"))]
pub(crate) enum Arrival {
    #[default]
    Nothing,
    /// This version is coming; by then it is here or has failed.
    Coming(u64, Instant),
    Here(Fetched),
}

/// Where versions arrive; dropped, nothing arrives any more.
pub struct Arrivals {
    pub(crate) state: Arc<watch::Sender<Arrival>>,
    pub(crate) _follower: Box<dyn Send + Sync>,
}

impl Arrivals {
    /// Over the worker's fabric, if it names one.
    #[cfg(feature = "nccl")]
    pub fn of(session: &Session, options: &Options, elements: usize, shelf: &Shelf) -> Option<Self> {
        let fabric = options.member.fabric.as_deref()?;
        Some(crate::follow::follow(session, fabric, options.first_device(), elements, shelf.clone()))
    }

    /// None: an executable without NCCL refuses `--fabric` at the start.
    #[cfg(not(feature = "nccl"))]
    pub fn of(_: &Session, _: &Options, _: usize, _: &Shelf) -> Option<Self> {
        None
    }

    /// `version`, if it has come. One that is coming is waited for.
    pub async fn take(&self, version: u64) -> Option<Fetched> {
        let mut changes = self.state.subscribe();
        let until = match &*changes.borrow_and_update() {
            Arrival::Coming(coming, until) if *coming == version => Some(*until + GRACE),
            _ => None,
        };
        if let Some(until) = until {
            let arrived = changes.wait_for(|a| !matches!(a, Arrival::Coming(coming, _) if *coming == version));
            if tokio::time::timeout_at(until, arrived).await.is_err() {
                tracing::warn!(version, "the broadcast does not end: the stream of chunks serves");
            }
        }
        let mut taken = None;
        self.state.send_if_modified(|a| {
            if matches!(a, Arrival::Here(fetched) if fetched.weights.version == version) {
                taken = Some(std::mem::take(a));
            }
            false
        });
        match taken {
            Some(Arrival::Here(fetched)) => Some(fetched),
            _ => None,
        }
    }
}
