//! Fetching blobs and weights as streams of chunks, every byte checked against its digest before use (INV-8). Weights come from relays, too.

use super::locate::{Delivery, Located, Stream, locate, report};
use super::transfer::{Sink, damaged, transfer};
use super::{ClientError, Session};
use crate::config::Precision;
use crate::delta;
use crate::digest::{Sha256, policy_from_le, policy_to_le, weight_size};
use bytes::Bytes;
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

/// A version as it came.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub weights: Arc<Weights>,
    /// The whole, or a difference.
    pub stream: Stream,
    pub delivery: Delivery,
}

impl Fetched {
    /// Tells the coordinator that this process holds the version since `seconds` after it asked.
    pub async fn report(&self, session: &Session, seconds: f64) {
        let delta = matches!(self.stream, Stream::Delta(..));
        report(session, Some(self.weights.version), delta, &self.delivery, seconds).await;
    }
}

/// A policy version whose slab has `elements` values, as a difference from `base` where the coordinator has one. `also` sees the stream's bytes
/// as they arrive.
///
/// # Errors
/// `Missing` if the version is not (or no longer) published, `Damaged` if a chunk or the whole does not have its digest.
pub async fn fetch_weights(
    session: &Session,
    version: u64,
    elements: usize,
    base: Option<&Weights>,
    also: &mut dyn Sink,
) -> Result<Fetched, ClientError> {
    let have: Vec<u64> = base.map(|b| b.version).into_iter().collect();
    let located = locate(session, Some(version), &have, &[], also.passive()).await?;
    let mut assembly = Assembly::new(version, elements, session.config.train.precision);
    let (located, delivery) = transfer(session, located, &have, &mut Both(&mut assembly, also)).await?;
    let stream = located.stream;
    match assembly.finish(&located, base) {
        Ok(weights) => Ok(Fetched { weights: weights.into(), stream, delivery }),
        Err(reason) if matches!(stream, Stream::Delta(..)) => {
            tracing::warn!(version, reason, "the difference does not lead to the version: it is fetched whole");
            crate::metric::WEIGHT_SYNC_FAILURES.with(["checksum"]).increment(1);
            Box::pin(fetch_weights(session, version, elements, None, also)).await
        }
        Err(reason) => Err(damaged(session, stream, reason)),
    }
}

/// The weights that do not learn, handed to `sink` as they arrive. What it was given since its last `begin` counts only if this returns Ok.
///
/// # Errors
/// As for [`fetch_weights`], or what `sink` says.
pub async fn fetch_frozen(session: &Session, sink: &mut dyn Sink) -> Result<Delivery, ClientError> {
    let located = locate(session, None, &[], &[], sink.passive()).await?;
    if located.digest != session.reply.frozen_digest {
        let reason = format!("they have SHA-256 {}, Join said {}", located.digest, session.reply.frozen_digest);
        return Err(damaged(session, Stream::Frozen, reason));
    }
    transfer(session, located, &[], sink).await.map(|(_, delivery)| delivery)
}

/// Tells the coordinator that this process holds the frozen weights and hands them on.
pub async fn report_frozen(session: &Session, delivery: &Delivery, seconds: f64) {
    report(session, None, false, delivery, seconds).await;
}

/// Two sinks for one stream.
pub struct Both<'a>(pub &'a mut dyn Sink, pub &'a mut dyn Sink);

impl Sink for Both<'_> {
    fn begin(&mut self, stream: Stream, total: u64, digest: &str) -> Result<(), String> {
        self.0.begin(stream, total, digest)?;
        self.1.begin(stream, total, digest)
    }

    fn add(&mut self, part: &Bytes) -> Result<(), String> {
        self.0.add(part)?;
        self.1.add(part)
    }

    fn passive(&self) -> bool {
        self.0.passive() && self.1.passive()
    }
}

/// Nobody is interested.
impl Sink for () {
    fn begin(&mut self, _: Stream, _: u64, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn add(&mut self, _: &Bytes) -> Result<(), String> {
        Ok(())
    }
}

/// Puts a version together.
pub(super) struct Assembly {
    version: u64,
    elements: usize,
    precision: Precision,
    slab: Vec<f32>,
    /// Bytes of a weight that is not complete yet.
    rest: Vec<u8>,
    /// Instead of the slab, if that is what comes.
    delta: Option<Vec<u8>>,
}

impl Assembly {
    pub(super) fn new(version: u64, elements: usize, precision: Precision) -> Self {
        Self { version, elements, precision, slab: Vec::new(), rest: Vec::new(), delta: None }
    }

    fn bytes(&self) -> usize {
        self.elements * weight_size(self.precision)
    }

    pub(super) fn finish(mut self, located: &Located, base: Option<&Weights>) -> Result<Weights, String> {
        if let Some(delta) = self.delta.take() {
            let base = base.filter(|b| b.digest == located.base_digest && b.slab.len() == self.elements);
            let base = base.ok_or("it starts from other weights than are held here")?;
            let (precision, size) = (self.precision, weight_size(self.precision));
            let old = |from: usize, len: usize| {
                policy_to_le(base.slab.get(from / size..(from + len) / size).unwrap_or_default(), precision)
            };
            let mut hash = Sha256::new();
            self.slab.reserve_exact(self.elements);
            let slab = &mut self.slab;
            delta::decode(&delta, self.elements * size, precision, old, |bytes| {
                hash.update(bytes);
                policy_from_le(bytes, precision, slab);
            })
            .map_err(|e| e.to_string())?;
            let found = hash.finish_hex();
            if found != located.weights_digest {
                return Err(format!(
                    "the result has SHA-256 {found}, the coordinator states {}",
                    located.weights_digest
                ));
            }
        }
        if self.slab.len() != self.elements || !self.rest.is_empty() {
            return Err(format!("{} of {} values came", self.slab.len(), self.elements));
        }
        Ok(Weights { version: self.version, slab: self.slab, digest: located.weights_digest.clone() })
    }
}

impl Sink for Assembly {
    fn begin(&mut self, stream: Stream, total: u64, _: &str) -> Result<(), String> {
        self.slab.clear();
        self.rest.clear();
        self.delta = None;
        let want = self.bytes();
        match stream {
            Stream::Whole(version) if version == self.version && total == want as u64 => {
                self.slab.reserve_exact(self.elements);
                Ok(())
            }
            // A difference is offered only if it is less than the whole.
            Stream::Delta(_, version) if version == self.version && total <= want as u64 => {
                self.delta = Some(Vec::new());
                Ok(())
            }
            _ => {
                Err(format!("it has {total} bytes but this model has {want}; does the coordinator use the same model?"))
            }
        }
    }

    fn add(&mut self, part: &Bytes) -> Result<(), String> {
        match &mut self.delta {
            Some(delta) => delta.extend_from_slice(part),
            None => self.put(part),
        }
        Ok(())
    }
}

impl Assembly {
    /// The next bytes of the weights.
    pub(super) fn put(&mut self, mut part: &[u8]) {
        let size = weight_size(self.precision);
        if !self.rest.is_empty() {
            let (head, tail) = part.split_at(part.len().min(size - self.rest.len()));
            self.rest.extend_from_slice(head);
            part = tail;
            if self.rest.len() == size {
                policy_from_le(&std::mem::take(&mut self.rest), self.precision, &mut self.slab);
            }
        }
        let (whole, rest) = part.split_at(part.len() - part.len() % size);
        policy_from_le(whole, self.precision, &mut self.slab);
        self.rest.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{f32_to_le, slab_digest};

    fn located(stream: Stream, total: usize, slab: &[f32], base: &[f32]) -> Located {
        Located::of(stream, total as u64, &slab_digest(slab), &slab_digest(base))
    }

    #[test]
    fn parts_of_any_size_make_the_same_weights() {
        let slab: Vec<f32> = (0..21).map(|i| (i as f32).sin()).collect();
        let bytes = f32_to_le(&slab);
        for size in 1..bytes.len() {
            let mut assembly = Assembly::new(3, slab.len(), Precision::F32);
            assembly.begin(Stream::Whole(3), 4, "").unwrap_err();
            assembly.begin(Stream::Whole(4), 84, "").unwrap_err();
            for _ in 0..2 {
                assembly.begin(Stream::Whole(3), 84, "").unwrap();
                bytes.chunks(size).for_each(|part| assembly.add(&Bytes::copy_from_slice(part)).unwrap());
            }
            let weights = assembly.finish(&located(Stream::Whole(3), 84, &slab, &[]), None).unwrap();
            assert_eq!((&weights.slab, weights.digest), (&slab, slab_digest(&slab)));
        }
    }

    #[test]
    fn a_difference_counts_only_from_its_base_to_its_result() {
        let old: Vec<f32> = (0..4000).map(|i| (i as f32).sin()).collect();
        let new: Vec<f32> = old.iter().map(|v| v * 1.0001).collect();
        let (a, b) = (f32_to_le(&old), f32_to_le(&new));
        let piece = |from: usize, len: usize| Some((a[from..from + len].to_vec(), b[from..from + len].to_vec()));
        let bytes = delta::encode(b.len(), Precision::F32, usize::MAX, piece).unwrap().unwrap();
        let stream = Stream::Delta(2, 3);
        let apply = |base: &[f32], located: &Located| {
            let mut assembly = Assembly::new(3, old.len(), Precision::F32);
            assembly.begin(stream, bytes.len() as u64, "").unwrap();
            bytes.chunks(77).for_each(|part| assembly.add(&Bytes::copy_from_slice(part)).unwrap());
            let base = Weights { version: 2, slab: base.to_vec(), digest: slab_digest(base) };
            assembly.finish(located, Some(&base))
        };
        let right = located(stream, bytes.len(), &new, &old);
        assert_eq!(apply(&old, &right).unwrap().slab, new);
        assert!(apply(&new, &right).unwrap_err().contains("other weights"));
        assert!(apply(&old, &located(stream, bytes.len(), &old, &old)).unwrap_err().contains("SHA-256"));
    }
}
