//! A version that comes by broadcast: put together as one from a stream is, and of use only with the digest that the coordinator states (INV-8).

use super::fetch::{Assembly, Fetched};
use super::locate::{Delivery, Located, Stream};
use super::transfer::Sink;
use crate::config::Precision;
use crate::digest::Sha256;
use quorum_proto::v1;

/// The version of a round, as far as it has come.
pub struct Incoming {
    assembly: Assembly,
    hash: Sha256,
    stated: Located,
    learner: String,
}

impl Incoming {
    /// For a model of `elements` trainable weights that are published in `precision`.
    ///
    /// # Errors
    /// The round brings another number of bytes.
    pub fn new(round: &v1::BroadcastReply, elements: usize, precision: Precision) -> Result<Self, String> {
        let stated = Located {
            stream: Stream::Whole(round.version),
            total: round.weights_bytes,
            digest: round.weights_digest.clone(),
            weights_digest: round.weights_digest.clone(),
            base_digest: String::new(),
            relay: None,
        };
        let mut assembly = Assembly::new(round.version, elements, precision);
        assembly.begin(stated.stream, stated.total, &stated.digest)?;
        Ok(Self { assembly, hash: Sha256::new(), stated, learner: round.members.first().cloned().unwrap_or_default() })
    }

    /// Bytes of the whole.
    pub fn total(&self) -> u64 {
        self.stated.total
    }

    /// The next bytes, whatever they are.
    pub fn add(&mut self, part: &[u8]) {
        self.hash.update(part);
        self.assembly.put(part);
    }

    /// The version, if these are its bytes.
    ///
    /// # Errors
    /// They have another digest than the coordinator states, or some are missing.
    pub fn finish(self) -> Result<Fetched, String> {
        let (found, total) = (self.hash.finish_hex(), self.stated.total);
        if found != self.stated.digest {
            return Err(format!("what came has SHA-256 {found}, the coordinator states {}", self.stated.digest));
        }
        let weights = self.assembly.finish(&self.stated, None)?.into();
        let delivery = Delivery { source: self.learner, relayed: total, broadcast: true, ..Delivery::default() };
        Ok(Fetched { weights, stream: self.stated.stream, delivery })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{policy_digest, policy_to_le};

    #[test]
    fn only_the_bytes_of_the_version_make_it() {
        for precision in [Precision::F32, Precision::Bf16] {
            let slab: Vec<f32> = (0..1001).map(|i| i as f32).collect();
            let bytes = policy_to_le(&slab, precision);
            let round = v1::BroadcastReply {
                members: vec!["learner".into(), "w".into()],
                version: 4,
                weights_digest: policy_digest(&slab, precision),
                weights_bytes: bytes.len() as u64,
                ..Default::default()
            };
            let take = |bytes: &[u8]| {
                let mut incoming = Incoming::new(&round, slab.len(), precision).unwrap();
                bytes.chunks(333).for_each(|part| incoming.add(part));
                incoming.finish()
            };
            let fetched = take(&bytes).unwrap();
            assert_eq!((fetched.weights.version, fetched.delivery.source.as_str()), (4, "learner"));
            assert_eq!(policy_to_le(&fetched.weights.slab, precision), bytes);
            let mut wrong = bytes.clone();
            wrong[500] ^= 1;
            assert!(take(&wrong).unwrap_err().contains("SHA-256"));
            assert!(take(&bytes[..bytes.len() - 1]).unwrap_err().contains("SHA-256"));
            let other = Incoming::new(&round, slab.len() + 1, precision).err().unwrap();
            assert!(other.contains("same model"), "{other}");
        }
    }
}
