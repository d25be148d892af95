//! Published policy versions: the newest two, whole and verified, served as chunks. A version enters only after its SHA-256 is right (INV-8).
//! A large one lies in a nameless file of the run directory instead of memory.

use crate::broadcast::Broadcasts;
use crate::delta::Delta;
use crate::fanout::Fanout;
use bytes::Bytes;
use quorum_core::config::Precision;
use quorum_core::digest::Sha256;
use quorum_proto::v1::WeightChunk;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Versions kept: the newest, and the one workers may still be fetching.
const KEPT: usize = 2;
/// Bytes of a chunk that is sent.
const CHUNK: usize = 1 << 20;
/// Versions of more bytes than this are kept in files.
const LARGE: usize = 256 << 20;

/// Where the bytes of a version are.
#[derive(Debug, Clone)]
pub enum Body {
    Memory(Bytes),
    /// A file that no directory names any more, and its length: the disk space goes with the last handle, whatever ends the process.
    File(Arc<File>, usize),
}

impl Body {
    /// Bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::File(_, len) => *len,
        }
    }

    /// A part of the bytes; none if the file cannot be read.
    pub fn part(&self, from: usize, until: usize) -> Option<Bytes> {
        match self {
            Self::Memory(bytes) => Some(bytes.slice(from..until)),
            Self::File(file, _) => {
                let mut part = vec![0; until - from];
                let read = file.read_exact_at(&mut part, from as u64);
                read.map_err(|error| tracing::error!(%error, "a published version cannot be read again")).ok()?;
                Some(part.into())
            }
        }
    }
}

/// A verified version.
#[derive(Debug, Clone)]
pub struct Published {
    pub version: u64,
    /// SHA-256 of `body`.
    pub digest: String,
    /// The trainable slab, little-endian.
    pub body: Body,
}

impl Published {
    /// The chunk that begins at `offset`; `None` at the end.
    pub fn chunk(&self, offset: usize) -> Option<WeightChunk> {
        let end = self.body.size().min(offset.checked_add(CHUNK)?);
        if offset >= end {
            return None;
        }
        let data = self.body.part(offset, end)?;
        Some(WeightChunk {
            version: self.version,
            offset: offset as u64,
            total: self.body.size() as u64,
            chunk_digest: Bytes::copy_from_slice(blake3::hash(&data).as_bytes()),
            data,
            weights_digest: self.digest.clone(),
        })
    }
}

/// A version with the difference from the one before it, once somebody asked for that.
#[derive(Debug)]
struct Held {
    published: Published,
    delta: Arc<OnceCell<Option<Delta>>>,
}

/// The newest versions, and who gets them from whom; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct WeightStore {
    versions: Arc<Mutex<BTreeMap<u64, Held>>>,
    pub fanout: Fanout,
    pub broadcasts: Broadcasts,
}

impl WeightStore {
    /// Keeps a version and drops the oldest.
    pub fn insert(&self, published: Published) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        self.fanout.publish(published.version);
        versions.insert(published.version, Held { published, delta: Arc::default() });
        while versions.len() > KEPT {
            versions.pop_first();
        }
    }

    pub fn get(&self, version: u64) -> Option<Published> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.get(&version).map(|held| held.published.clone())
    }

    /// What leads to `version` from the one before it, made on a thread of its own at the first call; `None` if it is not to be had or does not pay.
    pub async fn delta(&self, version: u64, precision: Precision) -> Option<Delta> {
        let base = self.get(version.checked_sub(1)?)?;
        let (new, cell) = {
            let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
            let held = versions.get(&version)?;
            (held.published.clone(), held.delta.clone())
        };
        let make = || async move {
            let made = tokio::task::spawn_blocking(move || Delta::make(&base, &new, precision)).await;
            made.map_err(|error| tracing::error!(%error, "the thread that makes weight differences ended"))
                .ok()
                .flatten()
        };
        cell.get_or_init(make).await.clone()
    }

    /// Versions held, ascending.
    pub fn held(&self) -> Vec<u64> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

/// Puts an uploaded version together, checking every chunk.
#[derive(Debug)]
pub struct Upload {
    version: u64,
    digest: String,
    total: usize,
    have: usize,
    room: Room,
    hash: Sha256Debug,
}

/// Where an upload is put.
#[derive(Debug)]
enum Room {
    Memory(Vec<u8>),
    File(File),
}

impl Room {
    fn new(total: usize, dir: &Path, version: u64) -> std::io::Result<Self> {
        if total <= LARGE {
            return Ok(Self::Memory(Vec::with_capacity(total)));
        }
        let path = dir.join(format!(".weights-{version}-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self::File(file))
    }

    fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Memory(all) => all.extend_from_slice(bytes),
            Self::File(file) => file.write_all(bytes)?,
        }
        Ok(())
    }
}

/// `Sha256` has no Debug of its own.
#[derive(Default)]
struct Sha256Debug(Sha256);

impl std::fmt::Debug for Sha256Debug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sha256")
    }
}

impl Upload {
    /// Begins with the head of the first chunk; `expected` is the slab's size in bytes, `dir` the run directory.
    ///
    /// # Errors
    /// The announced size is not the model's, or the run directory cannot be written.
    pub fn begin(first: &WeightChunk, expected: u64, dir: &Path) -> Result<Self, String> {
        if first.total != expected {
            return Err(format!("version {} has {} bytes, the model has {expected}", first.version, first.total));
        }
        let total = usize::try_from(expected).map_err(|_| "the slab does not fit this machine's memory".to_owned())?;
        Ok(Self {
            version: first.version,
            digest: first.weights_digest.clone(),
            total,
            have: 0,
            room: Room::new(total, dir, first.version).map_err(|e| format!("{}: {e}", dir.display()))?,
            hash: Sha256Debug::default(),
        })
    }

    /// Adds the next chunk.
    ///
    /// # Errors
    /// The chunk is damaged, out of place, or of another version.
    pub fn add(&mut self, chunk: &WeightChunk) -> Result<(), String> {
        let place = self.have;
        if (chunk.version, chunk.total, chunk.weights_digest.as_str())
            != (self.version, self.total as u64, self.digest.as_str())
        {
            return Err(format!("a chunk of version {} came among those of version {}", chunk.version, self.version));
        }
        if chunk.offset != place as u64 || chunk.data.len() > self.total - place {
            return Err(format!("the chunk at {} was expected at {place} of {}", chunk.offset, self.total));
        }
        if blake3::hash(&chunk.data).as_bytes() != chunk.chunk_digest.as_ref() {
            return Err(format!("the chunk at {place} of version {} is damaged", self.version));
        }
        self.hash.0.update(&chunk.data);
        self.room
            .add(&chunk.data)
            .map_err(|e| format!("version {} cannot be kept in the run directory: {e}", self.version))?;
        self.have += chunk.data.len();
        Ok(())
    }

    /// The version, if all of it arrived and its digest is right.
    ///
    /// # Errors
    /// Bytes are missing or the digest differs.
    pub fn finish(self) -> Result<Published, String> {
        if self.have != self.total {
            return Err(format!("version {} ended after {} of {} bytes", self.version, self.have, self.total));
        }
        let found = self.hash.0.finish_hex();
        if found != self.digest {
            return Err(format!("version {} has digest {found}, {} was announced", self.version, self.digest));
        }
        let body = match self.room {
            Room::Memory(bytes) => Body::Memory(bytes.into()),
            Room::File(file) => Body::File(Arc::new(file), self.total),
        };
        Ok(Published { version: self.version, digest: found, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(version: u64, bytes: Vec<u8>) -> Published {
        Published { version, digest: quorum_core::digest::sha256_hex(&bytes), body: Body::Memory(bytes.into()) }
    }

    fn chunks(p: &Published) -> Vec<WeightChunk> {
        (0..).step_by(CHUNK).map_while(|o| p.chunk(o)).collect()
    }

    fn upload(chunks: &[WeightChunk], expected: u64) -> Result<Published, String> {
        let mut u = Upload::begin(&chunks[0], expected, Path::new("."))?;
        chunks.iter().try_for_each(|c| u.add(c))?;
        u.finish()
    }

    #[test]
    fn a_version_arrives_whole_or_not_at_all() {
        let bytes: Vec<u8> = (0..2 * CHUNK + 77).map(|i| (i % 251) as u8).collect();
        let sent = published(3, bytes.clone());
        let good = chunks(&sent);
        assert_eq!(good.len(), 3);
        let back = upload(&good, bytes.len() as u64).unwrap();
        assert_eq!((back.version, &back.digest, chunks(&back)), (3, &sent.digest, good.clone()));

        assert!(upload(&good[..2], bytes.len() as u64).unwrap_err().contains("ended after"));
        assert!(upload(&good, 5).unwrap_err().contains("the model has 5"));
        let mut flipped = good.clone();
        let mut data = flipped[1].data.to_vec();
        data[9] ^= 1;
        flipped[1].data = data.into();
        assert!(upload(&flipped, bytes.len() as u64).unwrap_err().contains("damaged"));
        // A chunk digest that fits damaged data does not help.
        flipped[1].chunk_digest = Bytes::copy_from_slice(blake3::hash(&flipped[1].data).as_bytes());
        assert!(upload(&flipped, bytes.len() as u64).unwrap_err().contains("was announced"));
        let mut swapped = good.clone();
        swapped.swap(0, 1);
        assert!(upload(&swapped, bytes.len() as u64).unwrap_err().contains("expected at"));
        let mut mixed = good;
        mixed[2].version = 4;
        assert!(upload(&mixed, bytes.len() as u64).unwrap_err().contains("came among"));
    }

    #[test]
    fn a_file_serves_what_memory_would_and_leaves_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3 * CHUNK + 5).map(|i| (i % 253) as u8).collect();
        let mut room = Room::new(LARGE + 1, dir.path(), 7).unwrap();
        bytes.chunks(1000).for_each(|part| room.add(part).unwrap());
        let Room::File(file) = room else { panic!("a large version is kept in a file") };
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let wanted = published(7, bytes);
        let body = Body::File(Arc::new(file), wanted.body.size());
        assert_eq!(chunks(&Published { body, ..wanted.clone() }), chunks(&wanted));
    }

    #[test]
    fn the_newest_two_stay() {
        let store = WeightStore::default();
        for v in 0..5 {
            store.insert(published(v, vec![0; 4]));
        }
        assert_eq!(store.held(), [3, 4]);
        assert!(store.get(2).is_none());
    }
}
