//! The newest two policy versions, each fetched whole and verified before it is used (INV-8).

use quorum_core::client::{ClientError, Session, Weights, fetch_weights};
use quorum_core::digest::weight_size;
use quorum_core::metric;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Versions held: the one being sampled from and its successor.
const HELD: usize = 2;
/// Slabs beyond this many elements are held one at a time.
const LARGE: usize = 1 << 26;
/// How long a damaged or interrupted transfer is repeated.
const PATIENCE: Duration = Duration::from_secs(60);

/// Versions of one session; a new session starts empty.
pub struct WeightStore {
    elements: usize,
    held: BTreeMap<u64, Arc<Weights>>,
}

impl WeightStore {
    /// For slabs of `elements` values.
    pub fn new(elements: usize) -> Self {
        Self { elements, held: BTreeMap::new() }
    }

    /// The weights of `version`, fetched if need be.
    ///
    /// # Errors
    /// `Missing` when the coordinator no longer has that version: the lease is stale.
    pub async fn get(&mut self, session: &Session, version: u64) -> Result<Arc<Weights>, ClientError> {
        if let Some(held) = self.held.get(&version) {
            return Ok(held.clone());
        }
        // Room first: two old versions and a new one would be three slabs.
        let held = if self.elements > LARGE { 1 } else { HELD };
        while self.held.len() >= held {
            self.held.pop_first();
        }
        let start = Instant::now();
        let elements = self.elements;
        let fetched = session.retry("FetchWeights", PATIENCE, || fetch_once(session, version, elements)).await?;
        metric::WEIGHT_SYNC_DURATION_SECONDS.with(["grpc"]).record(start.elapsed().as_secs_f64());
        metric::WEIGHT_SYNC_BYTES
            .with(["grpc"])
            .increment((elements * weight_size(session.config.train.precision)) as u64);
        tracing::debug!(version, digest = %fetched.digest, seconds = start.elapsed().as_secs_f64(), "weights fetched");
        let fetched = Arc::new(fetched);
        self.held.insert(version, fetched.clone());
        Ok(fetched)
    }
}

async fn fetch_once(session: &Session, version: u64, elements: usize) -> Result<Weights, ClientError> {
    let result = fetch_weights(session, version, elements).await;
    if let Err(error) = &result {
        let reason = if matches!(error, ClientError::Damaged { .. }) { "checksum" } else { "disconnected" };
        metric::WEIGHT_SYNC_FAILURES.with([reason]).increment(1);
    }
    result
}
