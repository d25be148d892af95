//! The bytes of one stream while they arrive and after, for others to read along. The last chunk is held back until the whole has the right digest:
//! nobody ever gets a complete stream of wrong bytes from an honest relay.

use bytes::Bytes;
use quorum_core::client::{Stream, Weights};
use quorum_core::config::Precision;
use quorum_core::digest::{policy_to_le, weight_size};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Bytes of a chunk that is sent.
pub const CHUNK: u64 = 1 << 20;
/// Streams of at most this many bytes are kept in memory while they arrive; larger ones in a file, if there is a directory for it.
pub const IN_MEMORY: u64 = 64 << 20;

enum Store {
    /// (offset, bytes), as they came.
    Chunks(Vec<(u64, Bytes)>),
    /// A file that no directory names.
    File(File),
    /// Nowhere: readers wait for the finished weights.
    Nowhere,
    Slab(Arc<Weights>, Precision),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Arriving,
    Whole,
    Failed,
}

struct Inside {
    store: Store,
    have: u64,
    state: State,
}

/// What a reader finds.
#[derive(Debug, PartialEq)]
pub enum Read {
    Data(Bytes),
    /// Nothing yet; this many bytes have arrived.
    Wait(u64),
    /// It will never be complete.
    Gone,
}

/// One stream; shared between the transfer that fills it and those that read along.
pub struct Stash {
    pub stream: Stream,
    pub total: u64,
    /// SHA-256 as the coordinator states it.
    pub digest: String,
    inside: Mutex<Inside>,
    changed: watch::Sender<()>,
}

impl Stash {
    /// For a stream that begins to arrive.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn arriving(stream: Stream, total: u64, digest: &str, dir: Option<&Path>) -> std::io::Result<Self> {
        let store = match dir {
            _ if total <= IN_MEMORY => Store::Chunks(Vec::new()),
            Some(dir) => Store::File(nameless(dir)?),
            None => Store::Nowhere,
        };
        Ok(Self::new(stream, total, digest, Inside { store, have: 0, state: State::Arriving }))
    }

    /// For weights that are here, however they came.
    pub fn of(weights: Arc<Weights>, precision: Precision) -> Self {
        let total = (weights.slab.len() * weight_size(precision)) as u64;
        let (stream, digest) = (Stream::Whole(weights.version), weights.digest.clone());
        let inside = Inside { store: Store::Slab(weights, precision), have: total, state: State::Whole };
        Self::new(stream, total, &digest, inside)
    }

    fn new(stream: Stream, total: u64, digest: &str, inside: Inside) -> Self {
        let (inside, changed) = (Mutex::new(inside), watch::Sender::new(()));
        Self { stream, total, digest: digest.to_owned(), inside, changed }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes at every change from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The next bytes arrived. A full disk ends the stash, not the transfer.
    pub fn add(&self, part: &Bytes) {
        let mut inside = self.inside();
        let at = inside.have;
        let kept = match &mut inside.store {
            Store::Chunks(chunks) => {
                chunks.push((at, part.clone()));
                Ok(())
            }
            Store::File(file) => file.write_all_at(part, at),
            Store::Nowhere | Store::Slab(..) => Ok(()),
        };
        inside.have += part.len() as u64;
        if let Err(error) = kept {
            tracing::warn!(%error, "what arrives cannot be kept for others");
            inside.state = State::Failed;
        }
        drop(inside);
        self.changed.send_replace(());
    }

    /// The digest is right: from now on all of it is handed out, a version from its weights.
    pub fn complete(&self, weights: Option<(Arc<Weights>, Precision)>) {
        let mut inside = self.inside();
        if let Some((weights, precision)) = weights {
            inside.store = Store::Slab(weights, precision);
            (inside.have, inside.state) = (self.total, State::Whole);
        } else if inside.state == State::Arriving {
            let kept = !matches!(inside.store, Store::Nowhere);
            inside.state = if kept { State::Whole } else { State::Failed };
        }
        drop(inside);
        self.changed.send_replace(());
    }

    /// The transfer failed: readers are sent elsewhere.
    pub fn fail(&self) {
        let mut inside = self.inside();
        if inside.state == State::Arriving {
            inside.state = State::Failed;
        }
        drop(inside);
        self.changed.send_replace(());
    }

    /// At most a chunk from `offset` on.
    pub fn read(&self, offset: u64) -> Read {
        let inside = self.inside();
        let free = match (inside.state, &inside.store) {
            (State::Failed, _) => return Read::Gone,
            (State::Arriving, Store::Nowhere) => 0,
            (State::Arriving, _) => inside.have.min(self.total.saturating_sub(CHUNK)),
            (State::Whole, _) => self.total,
        };
        if offset >= free {
            return Read::Wait(inside.have);
        }
        let until = free.min(offset + CHUNK);
        read(&inside.store, offset, until).map_or(Read::Gone, Read::Data)
    }
}

/// The bytes from `from` to at most `until`; none if they cannot be read.
fn read(store: &Store, from: u64, until: u64) -> Option<Bytes> {
    match store {
        Store::Chunks(chunks) => {
            let i = chunks.partition_point(|(at, _)| *at <= from).checked_sub(1)?;
            let (at, chunk) = chunks.get(i)?;
            let (start, end) = (usize::try_from(from - at).ok()?, usize::try_from(until - at).ok()?);
            (start < chunk.len()).then(|| chunk.slice(start..end.min(chunk.len())))
        }
        Store::File(file) => {
            let mut part = vec![0; usize::try_from(until - from).ok()?];
            file.read_exact_at(&mut part, from).ok()?;
            Some(part.into())
        }
        Store::Nowhere => None,
        Store::Slab(weights, precision) => {
            let size = weight_size(*precision) as u64;
            let values = usize::try_from(from / size).ok()?..usize::try_from(until.div_ceil(size)).ok()?;
            let bytes = Bytes::from(policy_to_le(weights.slab.get(values)?, *precision));
            let skip = usize::try_from(from % size).ok()?;
            Some(bytes.slice(skip..skip + usize::try_from(until - from).ok()?))
        }
    }
}

/// A file that goes with its last handle.
fn nameless(dir: &Path) -> std::io::Result<File> {
    let path = dir.join(format!(".quorum-relay-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_core::digest::{f32_to_le, slab_digest};

    fn all(stash: &Stash) -> Vec<u8> {
        let mut out = Vec::new();
        while let Read::Data(part) = stash.read(out.len() as u64) {
            out.extend_from_slice(&part);
        }
        out
    }

    #[test]
    fn the_end_is_held_back_until_the_whole_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3 * CHUNK + 5).map(|i| (i % 251) as u8).collect();
        let chunks = |n: usize| bytes.chunks(n).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        let file = |total| {
            let inside = Inside { store: Store::File(nameless(dir.path()).unwrap()), have: 0, state: State::Arriving };
            Stash::new(Stream::Frozen, total, "", inside)
        };
        for n in [1000, 1 << 20, 5 << 20] {
            let total = bytes.len() as u64;
            for stash in [Stash::arriving(Stream::Frozen, total, "", None).unwrap(), file(total)] {
                assert_eq!(stash.read(0), Read::Wait(0));
                chunks(n).iter().for_each(|part| stash.add(part));
                assert!(all(&stash) == bytes[..bytes.len() - CHUNK as usize], "chunks of {n}");
                stash.complete(None);
                assert!(all(&stash) == bytes);
                stash.fail();
                assert!(all(&stash) == bytes, "what is whole stays so");
            }
            let failed = Stash::arriving(Stream::Frozen, total, "", None).unwrap();
            failed.fail();
            assert_eq!(failed.read(0), Read::Gone);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file has a name");
    }

    #[test]
    fn large_versions_without_a_directory_wait_for_their_weights() {
        let slab: Vec<f32> = (0..700_001).map(|i| i as f32).collect();
        let weights = Arc::new(Weights { version: 2, digest: slab_digest(&slab), slab });
        let total = weights.slab.len() as u64 * 4;
        let inside = Inside { store: Store::Nowhere, have: 0, state: State::Arriving };
        let stash = Stash::new(Stream::Whole(2), total, "", inside);
        stash.add(&Bytes::from(vec![0; 2 << 20]));
        assert_eq!(stash.read(0), Read::Wait(2 << 20));
        stash.complete(Some((weights.clone(), Precision::F32)));
        assert!(all(&stash) == f32_to_le(&weights.slab));
        let Read::Data(odd) = Stash::of(weights.clone(), Precision::F32).read(3) else { panic!("it is whole") };
        assert!(odd == f32_to_le(&weights.slab)[3..3 + CHUNK as usize]);
    }
}
