//! The difference between a version and the one before it, made once, when the first worker that can use it asks.

use crate::weights::{Body, Published};
use quorum_core::config::Precision;
use quorum_core::{delta, digest};

/// Versions of more bytes go whole: two versions and the difference are in memory while it is made.
const LARGEST: usize = 256 << 20;
/// A difference beyond this share of the whole is not worth the processors' time.
const WORTH: f64 = 0.9;

/// A difference ready to be sent.
#[derive(Debug, Clone)]
pub struct Delta {
    pub base_version: u64,
    pub base_digest: String,
    /// Its own bytes and digest, under the version it leads to.
    pub published: Published,
}

impl Delta {
    /// What turns `base` into `new`; `None` if it does not pay or is too large to make. Takes processor time: about a second for each
    /// 300 MB.
    pub fn make(base: &Published, new: &Published, precision: Precision) -> Option<Self> {
        let total = new.body.size();
        if total != base.body.size() || total > LARGEST {
            return None;
        }
        let limit = (total as f64 * WORTH) as usize;
        let piece = |from: usize, len: usize| {
            let until = from.checked_add(len)?;
            Some((base.body.part(from, until)?.to_vec(), new.body.part(from, until)?.to_vec()))
        };
        let made = delta::encode(total, precision, limit, piece)
            .map_err(|error| tracing::warn!(%error, version = new.version, "the version goes whole"));
        let bytes = made.ok()??;
        tracing::debug!(version = new.version, bytes = bytes.len(), of = total, "weight difference made");
        let published =
            Published { version: new.version, digest: digest::sha256_hex(&bytes), body: Body::Memory(bytes.into()) };
        Some(Self { base_version: base.version, base_digest: base.digest.clone(), published })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(version: u64, slab: &[f32]) -> Published {
        let bytes = digest::f32_to_le(slab);
        Published { version, digest: digest::sha256_hex(&bytes), body: Body::Memory(bytes.into()) }
    }

    #[test]
    fn a_difference_that_does_not_pay_is_not_offered() {
        let slab: Vec<f32> = (0..10_000).map(|i| (i as f32).sin()).collect();
        let near: Vec<f32> = slab.iter().map(|v| v * 1.0001).collect();
        let noise: Vec<f32> = (0..10_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
        let (a, b) = (published(1, &slab), published(2, &near));
        let delta = Delta::make(&a, &b, Precision::F32).expect("small steps pay");
        assert_eq!((delta.base_version, &delta.base_digest, delta.published.version), (1, &a.digest, 2));
        assert!(delta.published.body.size() * 10 < b.body.size() * 9);
        assert!(Delta::make(&a, &published(2, &noise), Precision::F32).is_none());
        assert!(Delta::make(&a, &published(2, &slab[1..]), Precision::F32).is_none());
    }
}
