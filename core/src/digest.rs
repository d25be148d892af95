//! SHA-256 of bytes and of weight slabs, and the little-endian form in which slabs travel and are stored. Prompt blobs are named by BLAKE3 instead.

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
    let mut hash = Sha256::new();
    for part in slab.chunks(1 << 14) {
        hash.update(&f32_to_le(part));
    }
    hash.finish_hex()
}

/// Little-endian bytes of `values`.
pub fn f32_to_le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Appends the values whose little-endian bytes are `bytes`; a rest of less than 4 bytes is left out.
pub fn f32_from_le(bytes: &[u8], out: &mut Vec<f32>) {
    out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
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
}
