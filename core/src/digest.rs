//! SHA-256 of bytes and of weight slabs, and the little-endian form in which slabs travel and are stored. Prompt blobs are named by BLAKE3 instead.

use crate::config::Precision;
use sha2::Digest as _;

/// A running SHA-256.
#[derive(Clone, Default)]
pub struct Sha256(sha2::Sha256);

impl Sha256 {
    /// Starts empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// 64 lower-case hex digits.
    pub fn finish_hex(self) -> String {
        use std::fmt::Write as _;
        self.0.finalize().iter().fold(String::with_capacity(64), |mut out, byte| {
            // Writing to a String cannot fail.
            let _ = write!(out, "{byte:02x}");
            out
        })
    }
}

/// SHA-256 of `bytes`, 64 lower-case hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytes);
    hash.finish_hex()
}

/// Digest of a slab: SHA-256 of its f32 little-endian bytes.
pub fn slab_digest(slab: &[f32]) -> String {
    policy_digest(slab, Precision::F32)
}

/// Digest of a policy as it is published: SHA-256 of its little-endian bytes in the precision it computes in.
pub fn policy_digest(slab: &[f32], precision: Precision) -> String {
    let mut hash = Sha256::new();
    for part in slab.chunks(1 << 14) {
        hash.update(&policy_to_le(part, precision));
    }
    hash.finish_hex()
}

/// Bytes of a weight on the wire.
pub fn weight_size(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}

/// Weights as they are published.
pub fn policy_to_le(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::F32 => f32_to_le(values),
        Precision::Bf16 => {
            let mut bytes = vec![0; values.len() * 2];
            let (pairs, _) = bytes.as_chunks_mut::<2>();
            pairs.iter_mut().zip(values).for_each(|(b, &v)| *b = round_bf16(v).to_le_bytes());
            bytes
        }
    }
}

/// Appends published weights; a rest that is no whole weight is left out.
pub fn policy_from_le(bytes: &[u8], precision: Precision, out: &mut Vec<f32>) {
    match precision {
        Precision::F32 => f32_from_le(bytes, out),
        Precision::Bf16 => {
            let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            out.extend(bytes.as_chunks::<2>().0.iter().map(widen));
        }
    }
}

/// The nearest bf16, ties to even. A NaN stays one.
#[inline(always)]
pub fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Little-endian bytes of `values`.
pub fn f32_to_le(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * 4];
    let (quads, _) = bytes.as_chunks_mut::<4>();
    quads.iter_mut().zip(values).for_each(|(b, v)| *b = v.to_le_bytes());
    bytes
}

/// Appends the values whose little-endian bytes are `bytes`; a rest of less than 4 bytes is left out.
pub fn f32_from_le(bytes: &[u8], out: &mut Vec<f32>) {
    out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_sha256() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let slab: Vec<f32> = (0..40_000).map(|i| i as f32 * 0.5).collect();
        assert_eq!(slab_digest(&slab), sha256_hex(&f32_to_le(&slab)));
    }

    #[test]
    fn bytes_and_values_round_trip_bit_for_bit() {
        let values = [0.0f32, -0.0, 1.5, f32::NAN, f32::MIN_POSITIVE / 4.0];
        let mut back = Vec::new();
        f32_from_le(&f32_to_le(&values), &mut back);
        assert!(values.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn published_bf16_is_half_the_bytes_and_stays_what_it_is() {
        let slab: Vec<f32> = (0..300).map(|i| (i as f32).sin()).collect();
        let bytes = policy_to_le(&slab, Precision::Bf16);
        let mut back = Vec::new();
        policy_from_le(&bytes, Precision::Bf16, &mut back);
        assert_eq!((bytes.len(), back.len()), (600, 300));
        assert!(slab.iter().zip(&back).all(|(a, b)| (a - b).abs() <= a.abs() / 256.0));
        assert_eq!(policy_to_le(&back, Precision::Bf16), bytes);
        assert_eq!(policy_digest(&back, Precision::Bf16), policy_digest(&slab, Precision::Bf16));
        assert_eq!((round_bf16(1.0 + 1.0 / 256.0), round_bf16(1.0 + 3.0 / 256.0)), (0x3f80, 0x3f82));
    }
}
