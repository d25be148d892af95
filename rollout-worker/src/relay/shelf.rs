//! What this process can hand on: at most the newest versions, their differences and the frozen weights of one session.

use super::stash::{IN_MEMORY, Stash};
use bytes::Bytes;
use quorum_core::client::{Session, Sink, Stream, Weights};
use quorum_core::config::Precision;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Streams kept: two versions, their differences, the frozen weights.
const KEPT: usize = 5;

#[derive(Default)]
struct Inside {
    run_id: String,
    fanout: usize,
    patience: Duration,
    precision: Precision,
    stashes: BTreeMap<Stream, Arc<Stash>>,
}

/// The streams at hand; cheap to clone.
#[derive(Clone, Default)]
pub struct Shelf {
    /// Where large streams are kept while they arrive.
    dir: Option<PathBuf>,
    /// A relay that nobody can reach keeps nothing.
    open: bool,
    inside: Arc<Mutex<Inside>>,
    changed: Arc<watch::Sender<()>>,
}

impl Shelf {
    /// For a relay that listens; large streams are kept in `dir` while they arrive, if it is given.
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, open: true, ..Self::default() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new session: what was held belongs to the one before.
    pub fn serve(&self, session: &Session) {
        let old = std::mem::replace(
            &mut *self.inside(),
            Inside {
                run_id: session.reply.run_id.clone(),
                fanout: session.config.cluster.relay_fanout as usize,
                patience: session.relay_patience(),
                precision: session.config.train.precision,
                stashes: BTreeMap::new(),
            },
        );
        old.stashes.values().for_each(|stash| stash.fail());
    }

    pub fn run_id(&self) -> String {
        self.inside().run_id.clone()
    }

    /// Whether anybody can be served from here.
    pub fn listens(&self) -> bool {
        self.open
    }

    /// Streams that are served at once.
    pub fn fanout(&self) -> usize {
        self.inside().fanout
    }

    /// How long a child waits for a sign of life.
    pub fn patience(&self) -> Duration {
        self.inside().patience
    }

    pub fn get(&self, stream: Stream) -> Option<Arc<Stash>> {
        self.inside().stashes.get(&stream).cloned()
    }

    /// Wakes when a stream is put here.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether others can be served a stream of `total` bytes; versions always can, from their weights.
    pub fn keeps(&self, stream: Stream, total: u64) -> bool {
        let large = total > IN_MEMORY && self.dir.is_none();
        self.open && self.inside().fanout > 0 && !(large && stream == Stream::Frozen)
    }

    fn put(&self, stash: Stash) -> Arc<Stash> {
        let stash = Arc::new(stash);
        let mut inside = self.inside();
        if let Some(old) = inside.stashes.insert(stash.stream, stash.clone()) {
            old.fail();
        }
        // The frozen weights sort first and stay.
        while inside.stashes.len() > KEPT {
            let Some(oldest) =
                inside.stashes.keys().filter(|s| **s != Stream::Frozen).min_by_key(|s| newest(**s)).copied()
            else {
                break;
            };
            inside.stashes.remove(&oldest);
        }
        drop(inside);
        self.changed.send_replace(());
        stash
    }

    /// Others can have these weights from now on, if any can be served from here.
    pub fn hold(&self, weights: &Arc<Weights>) {
        let precision = self.inside().precision;
        let stash = Stash::of(weights.clone(), precision);
        if self.keeps(stash.stream, stash.total) {
            self.put(stash);
        }
    }

    /// A sink that keeps for others what a transfer brings.
    pub fn tee(&self, passive: bool) -> Tee {
        Tee { shelf: self.clone(), passive, stash: None }
    }
}

fn newest(stream: Stream) -> u64 {
    match stream {
        Stream::Frozen => u64::MAX,
        Stream::Whole(version) | Stream::Delta(_, version) => version,
    }
}

/// Keeps what passes. Dropped before its transfer is finished, it sends its readers elsewhere.
pub struct Tee {
    shelf: Shelf,
    passive: bool,
    stash: Option<Arc<Stash>>,
}

impl Tee {
    /// The transfer is complete and verified; `weights` are what it brought, unless it was the frozen ones.
    pub fn finish(mut self, weights: Option<&Arc<Weights>>) {
        let Some(stash) = self.stash.take() else { return };
        let precision = self.shelf.inside().precision;
        match (stash.stream, weights) {
            (Stream::Whole(_), Some(weights)) => stash.complete(Some((weights.clone(), precision))),
            (Stream::Delta(..), Some(weights)) => {
                stash.complete(None);
                self.shelf.put(Stash::of(weights.clone(), precision));
            }
            _ => stash.complete(None),
        }
    }
}

impl Sink for Tee {
    fn begin(&mut self, stream: Stream, total: u64, digest: &str) -> Result<(), String> {
        if let Some(old) = self.stash.take() {
            old.fail();
        }
        if self.passive || !self.shelf.keeps(stream, total) {
            return Ok(());
        }
        match Stash::arriving(stream, total, digest, self.shelf.dir.as_deref()) {
            Ok(stash) => self.stash = Some(self.shelf.put(stash)),
            Err(error) => tracing::warn!(%error, dir = ?self.shelf.dir, "nothing is handed on: no file for it"),
        }
        Ok(())
    }

    fn add(&mut self, part: &Bytes) -> Result<(), String> {
        if let Some(stash) = &self.stash {
            stash.add(part);
        }
        Ok(())
    }

    fn passive(&self) -> bool {
        self.passive
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        if let Some(stash) = &self.stash {
            stash.fail();
        }
    }
}
