//! Fetching blobs and weights as streams of chunks, every byte checked against its digest before use (INV-8).

use super::{ClientError, Session};
use crate::config::Precision;
use crate::digest::{Sha256, policy_from_le, weight_size};
use quorum_proto::v1;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the next chunk.
const CHUNK: Duration = Duration::from_secs(30);
/// Side files and images beyond this are refused.
const LARGEST_BLOB: u64 = 1 << 30;

/// One published policy version, complete and verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    pub version: u64,
    /// The trainable weights.
    pub slab: Vec<f32>,
    /// SHA-256 hex of their little-endian bytes in the precision they are published in.
    pub digest: String,
}

/// A side file or image by its BLAKE3 hash.
///
/// # Errors
/// `Missing` if the coordinator has no such blob, `Damaged` if the bytes do not have that hash.
pub async fn fetch_blob(session: &Session, hash: &str) -> Result<Arc<[u8]>, ClientError> {
    let link = &session.link;
    let damaged =
        |reason: String| ClientError::Damaged { url: link.url().into(), what: format!("blob {hash}"), reason };
    let request = v1::FetchBlobRequest { caller: Some(session.caller("")), hash: hash.to_owned() };
    let mut stream = link.call("FetchBlob", CHUNK, link.cluster().fetch_blob(request)).await?;
    let mut bytes = Vec::new();
    let mut total = None;
    while let Some(chunk) = link.next("FetchBlob", CHUNK, &mut stream).await? {
        let expected = *total.get_or_insert(chunk.total);
        if expected > LARGEST_BLOB {
            return Err(damaged(format!("{expected} bytes are more than the {LARGEST_BLOB} allowed")));
        }
        if chunk.total != expected
            || chunk.offset != bytes.len() as u64
            || chunk.offset + chunk.data.len() as u64 > expected
        {
            return Err(damaged(format!(
                "a chunk at {} of {} does not follow {}",
                chunk.offset,
                chunk.total,
                bytes.len()
            )));
        }
        bytes.extend_from_slice(&chunk.data);
    }
    if total.unwrap_or(0) != bytes.len() as u64 {
        return Err(damaged(format!("it ended after {} of {} bytes", bytes.len(), total.unwrap_or(0))));
    }
    if blake3::hash(&bytes).to_hex().as_str() != hash {
        return Err(damaged("its content has another hash".into()));
    }
    Ok(bytes.into())
}

/// A policy version whose slab has `elements` values.
///
/// # Errors
/// `Missing` if the version is not (or no longer) published, `Damaged` if a chunk or the whole does not have its digest.
pub async fn fetch_weights(session: &Session, version: u64, elements: usize) -> Result<Weights, ClientError> {
    let link = &session.link;
    let request = v1::FetchWeightsRequest { caller: Some(session.caller("")), version };
    let mut stream = link.call("FetchWeights", CHUNK, link.cluster().fetch_weights(request)).await?;
    let mut assembly = Assembly::new(version, elements, session.config.train.precision);
    let damaged = |reason: String| ClientError::Damaged {
        url: link.url().into(),
        what: format!("weights version {version}"),
        reason,
    };
    while let Some(chunk) = link.next("FetchWeights", CHUNK, &mut stream).await? {
        assembly.add(&chunk).map_err(damaged)?;
    }
    assembly.finish().map_err(damaged)
}

/// The weights that do not learn, `total` bytes, handed to `sink` in order as they arrive. What it was given counts only if this returns Ok.
///
/// # Errors
/// As for [`fetch_weights`], or what `sink` says.
pub async fn fetch_frozen(
    session: &Session,
    total: u64,
    mut sink: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), ClientError> {
    let link = &session.link;
    let request = v1::FetchFrozenRequest { caller: Some(session.caller("")) };
    let mut stream = link.call("FetchFrozen", CHUNK, link.cluster().fetch_frozen(request)).await?;
    let damaged =
        |reason: String| ClientError::Damaged { url: link.url().into(), what: "the frozen weights".to_owned(), reason };
    let (mut have, mut hash) = (0, Sha256::new());
    while let Some(chunk) = link.next("FetchFrozen", CHUNK, &mut stream).await? {
        if (chunk.offset, chunk.total) != (have, total) || chunk.data.len() as u64 > total - have {
            let (at, of) = (chunk.offset, chunk.total);
            return Err(damaged(format!("a chunk at {at} of {of} does not follow {have} of {total}")));
        }
        if blake3::hash(&chunk.data).as_bytes().as_slice() != &chunk.chunk_digest[..] {
            return Err(damaged(format!("the chunk at {have} has another digest than promised")));
        }
        hash.update(&chunk.data);
        have += chunk.data.len() as u64;
        sink(&chunk.data).map_err(damaged)?;
    }
    let (found, promised) = (hash.finish_hex(), &session.reply.frozen_digest);
    if have != total || found != *promised {
        return Err(damaged(format!("{have} of {total} bytes came with SHA-256 {found}, promised was {promised}")));
    }
    Ok(())
}

/// Puts chunks together; refuses gaps, foreign versions and wrong digests.
struct Assembly {
    version: u64,
    elements: usize,
    precision: Precision,
    slab: Vec<f32>,
    digest: Option<String>,
    hash: Sha256,
}

impl Assembly {
    fn new(version: u64, elements: usize, precision: Precision) -> Self {
        Self { version, elements, precision, slab: Vec::with_capacity(elements), digest: None, hash: Sha256::new() }
    }

    fn add(&mut self, chunk: &v1::WeightChunk) -> Result<(), String> {
        let size = weight_size(self.precision);
        let (have, want) = ((self.slab.len() * size) as u64, (self.elements * size) as u64);
        if chunk.version != self.version {
            return Err(format!("a chunk belongs to version {}", chunk.version));
        }
        if chunk.total != want {
            return Err(format!(
                "it has {} bytes but this model has {want}; does the coordinator use the same model?",
                chunk.total
            ));
        }
        if chunk.offset != have || have + chunk.data.len() as u64 > want || !chunk.data.len().is_multiple_of(size) {
            return Err(format!("a chunk of {} bytes at {} does not follow {have}", chunk.data.len(), chunk.offset));
        }
        if blake3::hash(&chunk.data).as_bytes().as_slice() != &chunk.chunk_digest[..] {
            return Err(format!("the chunk at {} has another digest than promised", chunk.offset));
        }
        if self.digest.get_or_insert_with(|| chunk.weights_digest.clone()) != &chunk.weights_digest {
            return Err("its chunks belong to different weights".into());
        }
        self.hash.update(&chunk.data);
        policy_from_le(&chunk.data, self.precision, &mut self.slab);
        Ok(())
    }

    fn finish(self) -> Result<Weights, String> {
        if self.slab.len() != self.elements {
            return Err(format!("it ended after {} of {} values", self.slab.len(), self.elements));
        }
        let (found, promised) = (self.hash.finish_hex(), self.digest.unwrap_or_default());
        if found != promised {
            return Err(format!("its SHA-256 is {found}, promised was {promised}"));
        }
        Ok(Weights { version: self.version, slab: self.slab, digest: found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{f32_to_le, slab_digest};

    fn chunks(slab: &[f32], version: u64) -> Vec<v1::WeightChunk> {
        let bytes = f32_to_le(slab);
        let digest = slab_digest(slab);
        let cut = |(i, part): (usize, &[u8])| v1::WeightChunk {
            version,
            offset: i as u64 * 16,
            total: bytes.len() as u64,
            data: part.to_vec().into(),
            chunk_digest: blake3::hash(part).as_bytes().to_vec().into(),
            weights_digest: digest.clone(),
        };
        bytes.chunks(16).enumerate().map(cut).collect()
    }

    fn assemble(chunks: &[v1::WeightChunk], elements: usize) -> Result<Weights, String> {
        let mut assembly = Assembly::new(3, elements, Precision::F32);
        chunks.iter().try_for_each(|c| assembly.add(c))?;
        assembly.finish()
    }

    #[test]
    fn whole_weights_arrive_bit_for_bit() {
        let slab: Vec<f32> = (0..21).map(|i| (i as f32).sin()).collect();
        let weights = assemble(&chunks(&slab, 3), 21).unwrap();
        assert_eq!((weights.slab, weights.digest), (slab.clone(), slab_digest(&slab)));
    }

    #[test]
    fn a_mixed_short_or_flipped_version_is_refused() {
        let slab: Vec<f32> = (0..21).map(|i| (i as f32).sin()).collect();
        let good = chunks(&slab, 3);
        assert!(assemble(&good[..5], 21).unwrap_err().contains("ended after 20"));
        assert!(assemble(&good[1..], 21).unwrap_err().contains("does not follow"));
        assert!(assemble(&chunks(&slab, 4), 21).unwrap_err().contains("version 4"));
        assert!(assemble(&good, 22).unwrap_err().contains("same model"));
        let mut flipped = good.clone();
        let mut data = flipped[2].data.to_vec();
        data[5] ^= 1;
        flipped[2].data = data.into();
        assert!(assemble(&flipped, 21).unwrap_err().contains("another digest"));
        let other: Vec<f32> = slab.iter().map(|v| v + 1.0).collect();
        let mut mixed = good.clone();
        mixed[4] = chunks(&other, 3)[4].clone();
        assert!(assemble(&mixed, 21).unwrap_err().contains("different weights"));
        // A forger who adapts every per-chunk field still fails at the whole digest.
        mixed[4].weights_digest = good[4].weights_digest.clone();
        assert!(assemble(&mixed, 21).unwrap_err().contains("SHA-256"));
    }
}
