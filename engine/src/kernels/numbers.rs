//! Weights as f32 or as bf16. Widening is exact, so a kernel gives the same bits for bf16 values as for the same values in f32.

use super::isa::simd;
use quorum_core::digest::round_bf16;

/// Owned weights.
#[derive(Debug, Clone)]
pub enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

/// Borrowed weights.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

impl Default for Numbers {
    fn default() -> Self {
        Self::F32(Vec::new())
    }
}

impl Numbers {
    /// `n` zeros.
    pub fn zeros(n: usize, bf16: bool) -> Self {
        if bf16 { Self::Bf16(vec![0; n]) } else { Self::F32(vec![0.0; n]) }
    }

    pub fn values(&self) -> Values<'_> {
        match self {
            Self::F32(v) => Values::F32(v),
            Self::Bf16(v) => Values::Bf16(v),
        }
    }
}

impl<'a> Values<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
        }
    }

    /// Elements `from..from + n`.
    pub fn part(self, from: usize, n: usize) -> Self {
        match self {
            Self::F32(v) => Self::F32(&v[from..from + n]),
            Self::Bf16(v) => Self::Bf16(&v[from..from + n]),
        }
    }

    /// Everything from element `from`.
    pub fn tail(self, from: usize) -> Self {
        self.part(from, self.len() - from)
    }
}

/// An element of a matrix of weights.
pub trait Element: Copy + Default + Send + Sync + 'static {
    fn widen(self) -> f32;
    /// Nearest, ties to even.
    fn round(x: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round(x: f32) -> Self {
        x
    }
}

impl Element for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }
    #[inline(always)]
    fn round(x: f32) -> Self {
        round_bf16(x)
    }
}

simd! {
    /// out = x rounded to bf16 and widened again.
    pub fn through_bf16(x: &[f32], out: &mut [f32]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = u16::round(x).widen();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        for (x, bits) in [
            (1.0, 0x3f80),
            (1.0 + 1.0 / 256.0, 0x3f80),
            (1.0 + 3.0 / 256.0, 0x3f82),
            (1.0 + 1.001 / 256.0, 0x3f81),
            (-2.5, 0xc020),
            (f32::INFINITY, 0x7f80),
            (f32::MAX, 0x7f80),
            (0.0, 0),
        ] {
            assert_eq!(u16::round(x), bits, "{x}");
        }
        assert!(u16::round(f32::NAN).widen().is_nan());
        assert!((0..=u16::MAX).filter(|b| !b.widen().is_nan()).all(|b| u16::round(b.widen()) == b));
    }
}
