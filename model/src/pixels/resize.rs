//! Bicubic resize with antialiasing, bit for bit as Pillow ≤ 12 does it for 8-bit images: horizontal pass, rounding to u8, vertical pass.

use image::RgbImage;

/// Fraction bits of the fixed-point weights: 32 bits less 8 for the pixel and 2 for overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// The cubic kernel reaches this many source pixels at scale 1.
const SUPPORT: f64 = 2.0;
const CHANNELS: usize = 3;

/// Resizes to `width` × `height` (both > 0).
pub fn resize_bicubic(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let (in_w, in_h) = (image.width() as usize, image.height() as usize);
    if in_w == 0 || in_h == 0 || width == 0 || height == 0 {
        return RgbImage::new(width as u32, height as u32);
    }
    let source = image.as_raw();
    let wide = if width == in_w { source.clone() } else { horizontal(source, in_w, in_h, width) };
    let out = if height == in_h { wide } else { vertical(&wide, width, in_h, height) };
    RgbImage::from_raw(width as u32, height as u32, out).unwrap_or_default()
}

/// Weights of one output pixel over source pixels `first..first + weights.len()`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Keys' kernel with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = SUPPORT * stretch;
    let one = f64::from(1u32 << PRECISION_BITS);
    (0..to)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            // `as usize` truncates towards zero and clamps negatives, which is what the reference's casts and checks do.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let raw: Vec<f64> = (first..end).map(|x| cubic((x as f64 - center + 0.5) * (1.0 / stretch))).collect();
            let sum: f64 = raw.iter().sum();
            let fixed = |w: &f64| (w / sum * one + if w / sum < 0.0 { -0.5 } else { 0.5 }) as i32;
            Taps { first, weights: raw.iter().map(fixed).collect() }
        })
        .collect()
}

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn horizontal(source: &[u8], in_w: usize, rows: usize, out_w: usize) -> Vec<u8> {
    let taps = taps(in_w, out_w);
    let mut out = Vec::with_capacity(rows * out_w * CHANNELS);
    for row in source.chunks_exact(in_w * CHANNELS) {
        for t in &taps {
            let mut sums = [1i32 << (PRECISION_BITS - 1); CHANNELS];
            for (pixel, &w) in row[t.first * CHANNELS..].chunks_exact(CHANNELS).zip(&t.weights) {
                sums.iter_mut().zip(pixel).for_each(|(s, &p)| *s += i32::from(p) * w);
            }
            out.extend(sums.map(to_u8));
        }
    }
    out
}

fn vertical(source: &[u8], width: usize, in_h: usize, out_h: usize) -> Vec<u8> {
    let stride = width * CHANNELS;
    let mut out = Vec::with_capacity(out_h * stride);
    let mut sums = vec![0i32; stride];
    for t in taps(in_h, out_h) {
        sums.fill(1 << (PRECISION_BITS - 1));
        for (row, &w) in source[t.first * stride..].chunks_exact(stride).zip(&t.weights) {
            sums.iter_mut().zip(row).for_each(|(s, &p)| *s += i32::from(p) * w);
        }
        out.extend(sums.iter().map(|&s| to_u8(s)));
    }
    out
}
