//! Super-blocks of 256 values, in sub-blocks of 16 or 32 with quantised scales of their own: `Q2_K` … `Q6_K`.

use super::legacy::half;

/// 16 bytes of scale and minimum, 64 bytes of 2-bit values, scale and minimum of the whole.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (scale, minimum) = (half(block, 80), half(block, 82));
    for (i, x) in out.iter_mut().enumerate() {
        let sub = scales[i / 16];
        let q = two_bits(quants, i);
        *x = scale * f32::from(sub & 15) * f32::from(q) - minimum * f32::from(sub >> 4);
    }
}

/// 32 bytes of third bits, 64 bytes of 2-bit values, 12 bytes of 6-bit scales, the scale of the whole.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, quants, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half(block, 108);
    for (i, x) in out.iter_mut().enumerate() {
        let s = i / 16;
        let low_bits = packed[s % 8] >> (4 * (s / 8)) & 15;
        let high_bits = packed[8 + s % 4] >> (2 * (s / 4)) & 3;
        let sub = i32::from(low_bits | high_bits << 4) - 32;
        let third = high[i % 32] >> (i / 32) & 1;
        let q = i32::from(two_bits(quants, i) | third << 2) - 4;
        *x = scale * sub as f32 * q as f32;
    }
}

/// Scale and minimum of the whole, 12 bytes of 6-bit scales and minima, 128 bytes of 4-bit values.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let (packed, quants) = (&block[4..16], &block[16..]);
    for (s, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sub, sub_minimum) = scale_and_minimum(packed, s);
        let (d, m) = (scale * f32::from(sub), minimum * f32::from(sub_minimum));
        for (l, x) in values.iter_mut().enumerate() {
            *x = d * f32::from(quants[s / 2 * 32 + l] >> (4 * (s % 2)) & 15) - m;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the values.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, minimum) = (half(block, 0), half(block, 2));
    let (packed, high, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (s, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sub, sub_minimum) = scale_and_minimum(packed, s);
        let (d, m) = (scale * f32::from(sub), minimum * f32::from(sub_minimum));
        for (l, x) in values.iter_mut().enumerate() {
            let q = quants[s / 2 * 32 + l] >> (4 * (s % 2)) & 15 | (high[l] >> s & 1) << 4;
            *x = d * f32::from(q) - m;
        }
    }
}

/// 128 bytes of low 4 bits, 64 bytes of high 2 bits, 16 signed scales, the scale of the whole.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(block, 208);
    for (i, x) in out.iter_mut().enumerate() {
        let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[part * 64 + quarter % 2 * 32 + l] >> (4 * (quarter / 2)) & 15;
        let q = i32::from(nibble | two_bits(high, i) << 4) - 32;
        *x = scale * f32::from(scales[i / 16].cast_signed()) * q as f32;
    }
}

/// 2-bit value `i` of 256: each half of 128 has 32 bytes, whose bits 0–1 hold the first 32 values, bits 2–3 the next, …
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3
}

/// 6-bit scale and minimum `s` of 8 in 12 bytes: the first four whole, the others' upper bits in the tops of the first.
fn scale_and_minimum(packed: &[u8], s: usize) -> (u8, u8) {
    if s < 4 {
        return (packed[s] & 63, packed[s + 4] & 63);
    }
    let low = packed[s + 4];
    (low & 15 | packed[s - 4] >> 6 << 4, low >> 4 | packed[s] >> 6 << 4)
}
