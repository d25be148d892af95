//! One tensor as it lies in a file or came over the wire: little-endian bytes of a known type, widened piece by piece where it is needed.

use super::SaveDtype;
use half::f16;

/// Borrowed bytes of a tensor, row-major.
#[derive(Debug, Clone, Copy)]
pub struct RawTensor<'a> {
    dtype: SaveDtype,
    bytes: &'a [u8],
}

impl<'a> RawTensor<'a> {
    /// Over whole elements; a rest that is no element is left out.
    pub fn new(dtype: SaveDtype, bytes: &'a [u8]) -> Self {
        Self { dtype, bytes }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn dtype(&self) -> SaveDtype {
        self.dtype
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Widens `out.len()` elements from element `from` on; every conversion is exact. Elements past the end are left alone.
    pub fn read(&self, from: usize, out: &mut [f32]) {
        let bytes = self.bytes.get(from * self.dtype.size()..).unwrap_or_default();
        match self.dtype {
            SaveDtype::F32 => {
                out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(o, b)| *o = f32::from_le_bytes(*b));
            }
            SaveDtype::F16 => {
                out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(o, b)| *o = f16::from_le_bytes(*b).to_f32());
            }
            SaveDtype::Bf16 => {
                let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(o, b)| *o = widen(b));
            }
        }
    }

    /// Whether no value is infinite or NaN.
    pub fn is_finite(&self) -> bool {
        let masked = |b: &[u8; 2], exponent: u16| u16::from_le_bytes(*b) & exponent != exponent;
        match self.dtype {
            SaveDtype::F32 => {
                // Counted, not searched: a branch an element would be many times slower.
                let bad = |b: &[u8; 4]| u32::from(!f32::from_le_bytes(*b).is_finite());
                self.bytes.as_chunks::<4>().0.chunks(1 << 12).all(|part| part.iter().map(bad).sum::<u32>() == 0)
            }
            SaveDtype::F16 => self.halves(|b| masked(b, 0x7c00)),
            SaveDtype::Bf16 => self.halves(|b| masked(b, 0x7f80)),
        }
    }

    fn halves(&self, good: impl Fn(&[u8; 2]) -> bool) -> bool {
        let bad = |b: &[u8; 2]| u32::from(!good(b));
        self.bytes.as_chunks::<2>().0.chunks(1 << 12).all(|part| part.iter().map(bad).sum::<u32>() == 0)
    }
}
