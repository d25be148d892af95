//! Element types of GGUF tensors: their block sizes, and the way back to float32. The formulas are ggml's, term by term.

use super::{kquant, legacy};
use half::{bf16, f16};

/// How a tensor's values are stored: in blocks of `block()` values and `bytes()` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(non_camel_case_types)]
pub enum Quant {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
}

/// Types that exist in GGUF files and are not read.
const UNREAD: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
];

impl Quant {
    /// The type with ggml's number.
    ///
    /// # Errors
    /// Names the type, and those that are read; to be put after "has tensor NAME ".
    pub fn from_id(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            20 => Self::IQ4_NL,
            30 => Self::BF16,
            other => {
                let name = UNREAD.iter().find(|(n, _)| *n == other).map_or("an unknown type", |(_, name)| name);
                return Err(format!(
                    "of type {other} ({name}), which is not read; take a file quantised as Q4_0…Q8_0, Q2_K…Q6_K, F16, BF16 or F32"
                ));
            }
        })
    }

    /// Values of a block.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Fills `out` from whole blocks; `bytes` has `out.len() / block() * bytes()` bytes.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => each(bytes, out, |b, o: &mut [f32; 1]| o[0] = f32::from_le_bytes(*b)),
            Self::F16 => each(bytes, out, |b, o: &mut [f32; 1]| o[0] = f16::from_le_bytes(*b).to_f32()),
            Self::BF16 => each(bytes, out, |b, o: &mut [f32; 1]| o[0] = bf16::from_le_bytes(*b).to_f32()),
            Self::Q4_0 => each(bytes, out, legacy::q4_0),
            Self::Q4_1 => each(bytes, out, legacy::q4_1),
            Self::Q5_0 => each(bytes, out, legacy::q5_0),
            Self::Q5_1 => each(bytes, out, legacy::q5_1),
            Self::Q8_0 => each(bytes, out, legacy::q8_0),
            Self::IQ4_NL => each(bytes, out, legacy::iq4_nl),
            Self::Q2_K => each(bytes, out, kquant::q2_k),
            Self::Q3_K => each(bytes, out, kquant::q3_k),
            Self::Q4_K => each(bytes, out, kquant::q4_k),
            Self::Q5_K => each(bytes, out, kquant::q5_k),
            Self::Q6_K => each(bytes, out, kquant::q6_k),
        }
    }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Block by block.
fn each<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    for (from, to) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        block(from, to);
    }
}
