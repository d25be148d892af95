//! Two scans side by side on black, jittered and scaled, as a grey PNG of 4 or 8 bits.

use super::draw::Draw;
use super::mnist::{SIDE, Scan};
use super::params::Params;
use anyhow::{Context, Result, ensure};
use png::{BitDepth, ColorType, DeflateCompression, Encoder, Filter};

/// The composed picture, PNG-encoded.
pub fn compose(pair: &[Scan; 2], params: &Params, draw: &mut Draw) -> Result<Vec<u8>> {
    let side = params.side;
    let mut canvas = vec![0f64; side * side];
    for (slot, scan) in pair.iter().enumerate() {
        let centre_x = side as f64 * (0.25 + 0.5 * slot as f64) + draw.around(params.jitter_x);
        let centre_y = side as f64 * 0.5 + draw.around(params.jitter_y);
        let scale = 1.0 + draw.around(params.jitter_scale);
        paste(&mut canvas, side, scan, centre_x, centre_y, scale);
    }
    encode(&canvas, side, params.bits)
}

/// Draws a scan magnified by `scale` around its centre (bilinear); where digits overlap the brighter one shows.
fn paste(canvas: &mut [f64], side: usize, scan: &Scan, centre_x: f64, centre_y: f64, scale: f64) {
    let half = SIDE as f64 / 2.0;
    for (i, cell) in canvas.iter_mut().enumerate() {
        let x = ((i % side) as f64 + 0.5 - centre_x) / scale + half - 0.5;
        let y = ((i / side) as f64 + 0.5 - centre_y) / scale + half - 0.5;
        *cell = cell.max(bilinear(scan, x, y));
    }
}

fn bilinear(scan: &Scan, x: f64, y: f64) -> f64 {
    let (left, top) = (x.floor(), y.floor());
    let (fx, fy) = (x - left, y - top);
    let at = |dx: i64, dy: i64| -> f64 {
        let (px, py) = (left as i64 + dx, top as i64 + dy);
        let inside = (0..SIDE as i64).contains(&px) && (0..SIDE as i64).contains(&py);
        if inside { f64::from(scan.pixels[py as usize * SIDE + px as usize]) } else { 0.0 }
    };
    let upper = at(0, 0) * (1.0 - fx) + at(1, 0) * fx;
    let lower = at(0, 1) * (1.0 - fx) + at(1, 1) * fx;
    upper * (1.0 - fy) + lower * fy
}

/// The smallest of the PNGs with each row filter that suits so small an image.
fn encode(canvas: &[f64], side: usize, bits: u8) -> Result<Vec<u8>> {
    ensure!(bits == 4 || bits == 8, "bits must be 4 or 8, not {bits}");
    ensure!(side.is_multiple_of(2), "side must be even, not {side}");
    let levels = f64::from((1u32 << bits) - 1);
    let grey: Vec<u8> = canvas.iter().map(|v| (v / 255.0 * levels).round() as u8).collect();
    let data = if bits == 8 { grey } else { grey.chunks_exact(2).map(|p| (p[0] << 4) | p[1]).collect() };
    [Filter::NoFilter, Filter::Up, Filter::Paeth]
        .into_iter()
        .map(|filter| encode_with(&data, side, bits, filter))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .min_by_key(Vec::len)
        .context("no PNG")
}

fn encode_with(data: &[u8], side: usize, bits: u8, filter: Filter) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, side as u32, side as u32);
    encoder.set_color(ColorType::Grayscale);
    encoder.set_depth(if bits == 8 { BitDepth::Eight } else { BitDepth::Four });
    encoder.set_deflate_compression(DeflateCompression::Level(9));
    encoder.set_filter(filter);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(data)?;
    writer.finish()?;
    Ok(out)
}
