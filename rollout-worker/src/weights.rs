//! The newest two policy versions, each fetched whole and verified before it is used (INV-8), and handed on.

use crate::arrivals::Arrivals;
use crate::relay::Shelf;
use quorum_core::client::{ClientError, Fetched, Session, Weights, fetch_weights};
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
    shelf: Shelf,
    arrivals: Option<Arrivals>,
}

impl WeightStore {
    /// For slabs of `elements` values, which others get from `shelf`.
    pub fn new(elements: usize, shelf: Shelf) -> Self {
        Self { elements, held: BTreeMap::new(), shelf, arrivals: None }
    }

    /// Takes what comes by broadcast, too.
    pub fn with(mut self, arrivals: Option<Arrivals>) -> Self {
        self.arrivals = arrivals;
        self
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
        let arrived = match &self.arrivals {
            Some(arrivals) => arrivals.take(version).await,
            None => None,
        };
        if let Some(fetched) = arrived {
            self.held.insert(version, fetched.weights.clone());
            return Ok(fetched.weights);
        }
        let start = Instant::now();
        let base = version.checked_sub(1).and_then(|before| self.held.get(&before));
        let (elements, shelf) = (self.elements, &self.shelf);
        let fetched =
            session.retry("FetchWeights", PATIENCE, || fetch_once(session, version, elements, base, shelf)).await?;
        let seconds = start.elapsed().as_secs_f64();
        let (digest, from) = (&fetched.weights.digest, &fetched.delivery.source);
        tracing::debug!(version, %digest, seconds, from, stream = ?fetched.stream, "weights fetched");
        fetched.report(session, seconds).await;
        self.held.insert(version, fetched.weights.clone());
        Ok(fetched.weights)
    }
}

async fn fetch_once(
    session: &Session,
    version: u64,
    elements: usize,
    base: Option<&Arc<Weights>>,
    shelf: &Shelf,
) -> Result<Fetched, ClientError> {
    let mut tee = shelf.tee(!shelf.listens());
    let fetched = fetch_weights(session, version, elements, base.map(Arc::as_ref), &mut tee).await?;
    tee.finish(Some(&fetched.weights));
    Ok(fetched)
}
