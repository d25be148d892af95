//! The difference of two weight slabs, without loss: bit patterns of neighbouring versions subtracted as integers, the bytes sorted by
//! significance, zstd. Small steps leave the high bytes nearly constant; in bf16 most weights do not change at all.

use crate::config::Precision;
use crate::digest::weight_size;

/// First bytes of a difference; the last one is the layout's version.
const MAGIC: [u8; 4] = *b"QWD\x01";
/// Weights of one block; both sides work block by block, so that memory stays bounded.
const BLOCK: usize = 1 << 18;
/// Fast: the low bytes are noise that no level compresses.
const LEVEL: i32 = 1;

/// Why a difference cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("weight difference: {0}")]
pub struct DeltaError(String);

fn bad<T>(what: impl Into<String>) -> Result<T, DeltaError> {
    Err(DeltaError(what.into()))
}

/// What turns `old` into `new`: published bytes of the same length in `precision`, given piecewise as (offset, length) → bytes.
/// `None` as soon as it takes more than `limit` bytes.
///
/// # Errors
/// A piece cannot be read, or the compressor refuses.
pub fn encode(
    total: usize,
    precision: Precision,
    limit: usize,
    mut piece: impl FnMut(usize, usize) -> Option<(Vec<u8>, Vec<u8>)>,
) -> Result<Option<Vec<u8>>, DeltaError> {
    let size = weight_size(precision);
    if !total.is_multiple_of(size) {
        return bad(format!("{total} bytes are no whole weights"));
    }
    let mut out = MAGIC.to_vec();
    for from in (0..total).step_by(BLOCK * size) {
        let len = (BLOCK * size).min(total - from);
        let Some((old, new)) = piece(from, len).filter(|(a, b)| a.len() == len && b.len() == len) else {
            return bad(format!("the weights at {from} cannot be read"));
        };
        let planes = split(&old, &new, size);
        let packed = zstd::bulk::compress(&planes, LEVEL).map_err(|e| DeltaError(e.to_string()))?;
        let Ok(packed_len) = u32::try_from(packed.len()) else { return bad("a block is too large") };
        out.extend_from_slice(&packed_len.to_le_bytes());
        out.extend_from_slice(&packed);
        if out.len() > limit {
            return Ok(None);
        }
    }
    Ok(Some(out))
}

/// Rebuilds the new weights from `delta`: `old(from, len)` gives published bytes of the base, `sink` takes those of the result in order.
///
/// # Errors
/// `delta` is cut off, of another layout, or not for `total` bytes. What `sink` was given counts only if this returns Ok.
pub fn decode(
    delta: &[u8],
    total: usize,
    precision: Precision,
    mut old: impl FnMut(usize, usize) -> Vec<u8>,
    mut sink: impl FnMut(&[u8]),
) -> Result<(), DeltaError> {
    let size = weight_size(precision);
    let Some(mut rest) = delta.strip_prefix(&MAGIC) else { return bad("it has another layout") };
    for from in (0..total).step_by(BLOCK * size) {
        let len = (BLOCK * size).min(total - from);
        let Some((head, tail)) = rest.split_first_chunk::<4>() else { return bad("it is cut off") };
        let packed_len = u32::from_le_bytes(*head) as usize;
        let Some((packed, after)) = tail.split_at_checked(packed_len) else { return bad("it is cut off") };
        rest = after;
        let planes = zstd::bulk::decompress(packed, len).map_err(|e| DeltaError(e.to_string()))?;
        let base = old(from, len);
        if planes.len() != len || base.len() != len {
            return bad(format!("the block at {from} has {} bytes instead of {len}", planes.len()));
        }
        sink(&join(&base, &planes, size));
    }
    if rest.is_empty() { Ok(()) } else { bad("bytes follow its end") }
}

/// Differences of the bit patterns, byte plane by byte plane, the least significant first.
fn split(old: &[u8], new: &[u8], size: usize) -> Vec<u8> {
    let n = new.len() / size;
    let mut planes = vec![0; new.len()];
    for (i, (a, b)) in old.chunks_exact(size).zip(new.chunks_exact(size)).enumerate() {
        let difference = zigzag(pattern(b).wrapping_sub(pattern(a)), size).to_le_bytes();
        for (plane, byte) in difference.iter().take(size).enumerate() {
            planes[plane * n + i] = *byte;
        }
    }
    planes
}

/// The inverse of `split`.
fn join(old: &[u8], planes: &[u8], size: usize) -> Vec<u8> {
    let n = old.len() / size;
    let mut out = Vec::with_capacity(old.len());
    for (i, a) in old.chunks_exact(size).enumerate() {
        let mut bytes = [0u8; 4];
        for (plane, byte) in bytes.iter_mut().take(size).enumerate() {
            *byte = planes[plane * n + i];
        }
        let value = pattern(a).wrapping_add(unzigzag(u32::from_le_bytes(bytes), size));
        out.extend_from_slice(&value.to_le_bytes()[..size]);
    }
    out
}

/// The bits of one weight of 2 or 4 bytes.
fn pattern(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |all, byte| (all << 8) | u32::from(*byte))
}

/// Small differences of either sign become small numbers.
fn zigzag(difference: u32, size: usize) -> u32 {
    match size {
        2 => {
            let d = difference as u16 as i16;
            u32::from(((d << 1) ^ (d >> 15)) as u16)
        }
        _ => {
            let d = difference as i32;
            ((d << 1) ^ (d >> 31)) as u32
        }
    }
}

fn unzigzag(value: u32, size: usize) -> u32 {
    let back = (value >> 1) ^ (value & 1).wrapping_neg();
    if size == 2 { back & 0xffff } else { back }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::policy_to_le;
    use proptest::prelude::*;

    fn delta(old: &[u8], new: &[u8], precision: Precision) -> Vec<u8> {
        let piece = |from: usize, len: usize| Some((old[from..from + len].to_vec(), new[from..from + len].to_vec()));
        encode(new.len(), precision, usize::MAX, piece).unwrap().unwrap()
    }

    fn back(old: &[u8], delta: &[u8], precision: Precision) -> Result<Vec<u8>, DeltaError> {
        let mut out = Vec::new();
        decode(delta, old.len(), precision, |from, len| old[from..from + len].to_vec(), |b| out.extend_from_slice(b))?;
        Ok(out)
    }

    proptest! {
        #[test]
        fn any_bits_come_back(pairs in prop::collection::vec(any::<(u32, u32)>(), 0..600)) {
            let bytes = |f: fn(&(u32, u32)) -> u32| pairs.iter().flat_map(|p| f(p).to_le_bytes()).collect::<Vec<u8>>();
            let (old, new) = (bytes(|p| p.0), bytes(|p| p.1));
            for precision in [Precision::F32, Precision::Bf16] {
                prop_assert_eq!(&back(&old, &delta(&old, &new, precision), precision).unwrap(), &new);
            }
        }
    }

    #[test]
    fn several_blocks_and_small_steps_take_less_room() {
        let old: Vec<f32> = (0..BLOCK * 2 + 77).map(|i| (i as f32).sin() * 0.02).collect();
        let new: Vec<f32> = old.iter().enumerate().map(|(i, v)| v + 1e-6 * (i as f32).cos()).collect();
        for (precision, most) in [(Precision::F32, 0.75), (Precision::Bf16, 0.3)] {
            let (a, b) = (policy_to_le(&old, precision), policy_to_le(&new, precision));
            let d = delta(&a, &b, precision);
            assert!((d.len() as f64) < most * b.len() as f64, "{} of {}", d.len(), b.len());
            assert_eq!(back(&a, &d, precision).unwrap(), b);
        }
        let bytes = policy_to_le(&old, Precision::F32);
        let none = encode(bytes.len(), Precision::F32, 100, |f, l| Some((vec![0; l], bytes[f..f + l].to_vec())));
        assert_eq!(none, Ok(None), "what does not pay is given up");
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let (old, new) = (vec![1u8; 4000], vec![2u8; 4000]);
        let good = delta(&old, &new, Precision::F32);
        for cut in 0..good.len() {
            assert!(back(&old, &good[..cut], Precision::F32).is_err(), "cut at {cut}");
            let mut flipped = good.clone();
            flipped[cut] ^= 0x41;
            let _ = back(&old, &flipped, Precision::F32);
        }
        assert!(back(&old[..3996], &good, Precision::F32).is_err());
        let mut longer = good;
        longer.push(0);
        assert!(back(&old, &longer, Precision::F32).is_err());
    }
}
