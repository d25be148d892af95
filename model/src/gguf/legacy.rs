//! Blocks of 32 values with one scale (and one minimum): `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`, `IQ4_NL`.

use half::f16;

/// The float16 at byte `at`.
pub(super) fn half<const B: usize>(block: &[u8; B], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale, 16 bytes of two values each: the low halves come first.
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (i, x) in out.iter_mut().enumerate() {
        *x = (i32::from(nibble(&block[2..], i)) - 8) as f32 * scale;
    }
}

/// Scale, minimum, 16 bytes of two values each.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (i, x) in out.iter_mut().enumerate() {
        *x = f32::from(nibble(&block[4..], i)) * scale + minimum;
    }
}

/// Scale, 32 fifth bits, 16 bytes of two values each.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (i, x) in out.iter_mut().enumerate() {
        let q = nibble(&block[6..], i) | bit(&block[2..], i) << 4;
        *x = (i32::from(q) - 16) as f32 * scale;
    }
}

/// Scale, minimum, 32 fifth bits, 16 bytes of two values each.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    for (i, x) in out.iter_mut().enumerate() {
        let q = nibble(&block[8..], i) | bit(&block[4..], i) << 4;
        *x = f32::from(q) * scale + minimum;
    }
}

/// Scale, 32 signed bytes.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half(block, 0);
    for (x, &q) in out.iter_mut().zip(&block[2..]) {
        *x = f32::from(q.cast_signed()) * scale;
    }
}

/// Scale, 16 bytes of two indices into a fixed table each. K-quantised models have it where rows are no multiple of 256.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let scale = half(block, 0);
    for (i, x) in out.iter_mut().enumerate() {
        *x = scale * f32::from(TABLE[usize::from(nibble(&block[2..], i))]);
    }
}

/// Value `i` of 32: values 0…15 are the low halves of the bytes, 16…31 the high ones.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (4 * (i / 16)) & 15
}

/// Bit `i` of a little-endian word.
fn bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 8] >> (i % 8) & 1
}
