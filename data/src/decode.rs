//! Encoded bytes to RGB, under limits that are checked before anything is allocated; they bound the work too, and no clock decides, so that every machine refuses the same images.
//! The result follows PIL: high byte of 16-bit samples, alpha composited on white, EXIF orientation applied.

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use std::io::Cursor;

/// What an image may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Width × height.
    pub max_pixels: u64,
    /// Encoded bytes.
    pub max_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 64 << 20, max_bytes: 32 << 20 }
    }
}

/// Why an image cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the image has {bytes} bytes, more than data.max_image_bytes = {max}")]
    TooManyBytes { bytes: u64, max: u64 },
    #[error("the image has {width} × {height} pixels, more than data.max_image_pixels = {max}")]
    TooManyPixels { width: u32, height: u32, max: u64 },
    #[error(
        "the image has {width} × {height} pixels in {scans} scans: more work than {MAX_SCANS} scans of data.max_image_pixels = {max}"
    )]
    TooMuchWork { width: u32, height: u32, scans: u64, max: u64 },
    #[error("not a readable PNG, JPEG, WebP, GIF or BMP image ({0})")]
    Unreadable(String),
}

/// Scans of the largest allowed image that a JPEG may take; smaller ones may take more. Progressive files have about ten.
const MAX_SCANS: u64 = 16;

/// Decodes a PNG, JPEG, WebP, GIF or BMP file; of an animation the first frame.
///
/// # Errors
/// Says which limit was passed, or what the decoder did not like; never panics on damaged bytes.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, DecodeError> {
    guarded(|| {
        let mut decoder = open(bytes, limits)?;
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut picture = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
        picture.apply_orientation(orientation);
        Ok(to_rgb(picture))
    })
}

/// Checks size and header alone.
///
/// # Errors
/// As [`decode`], as far as the header shows.
pub fn check_header(bytes: &[u8], limits: &Limits) -> Result<(), DecodeError> {
    guarded(|| open(bytes, limits).map(|_| ()))
}

/// Width and height in pixels as [`decode`] would give them, turned by EXIF. Reads the header alone.
///
/// # Errors
/// As [`check_header`].
pub fn dimensions(bytes: &[u8], limits: &Limits) -> Result<(u32, u32), DecodeError> {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    guarded(|| {
        let mut decoder = open(bytes, limits)?;
        let (width, height) = decoder.dimensions();
        match decoder.orientation().unwrap_or(Orientation::NoTransforms) {
            Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => Ok((height, width)),
            _ => Ok((width, height)),
        }
    })
}

/// A decoder that panics has met a damaged image.
fn guarded<T>(work: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    let failed = |_| Err(DecodeError::Unreadable("the decoder failed".to_string()));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(failed)
}

fn unreadable(error: image::ImageError) -> DecodeError {
    DecodeError::Unreadable(error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
}

fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Box<dyn ImageDecoder + 'a>, DecodeError> {
    if bytes.len() as u64 > limits.max_bytes {
        return Err(DecodeError::TooManyBytes { bytes: bytes.len() as u64, max: limits.max_bytes });
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| DecodeError::Unreadable(e.to_string()))?;
    let format = reader.format();
    // The widest pixel is RGBA with 16 bits; the pixel limit itself is checked on the header below.
    let mut allowed = image::Limits::default();
    allowed.max_alloc = Some(limits.max_pixels.saturating_mul(8).saturating_add(1 << 20));
    reader.limits(allowed);
    let decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    let (pixels, max) = (u64::from(width) * u64::from(height), limits.max_pixels);
    if pixels > max {
        return Err(DecodeError::TooManyPixels { width, height, max });
    }
    if pixels == 0 {
        return Err(DecodeError::Unreadable(format!("{width} × {height} pixels")));
    }
    if format == Some(ImageFormat::Jpeg) {
        let scans = jpeg_scans(bytes)?;
        if scans.saturating_mul(pixels) > max.saturating_mul(MAX_SCANS) {
            return Err(DecodeError::TooMuchWork { width, height, scans, max });
        }
    }
    Ok(Box::new(decoder))
}

/// The number of scans of a whole JPEG file. A file without its end marker is cut off, which the decoder would fill with grey.
fn jpeg_scans(bytes: &[u8]) -> Result<u64, DecodeError> {
    const START_OF_SCAN: u8 = 0xda;
    const END: u8 = 0xd9;
    let mut scans = 0;
    let mut at = 2;
    while let Some(found) =
        bytes.get(at..).and_then(|rest| rest.windows(2).position(|w| w[0] == 0xff && is_marker(w[1])))
    {
        let Some(&marker) = bytes.get(at + found + 1) else { break };
        at += found + 2;
        if marker == END {
            return Ok(scans);
        }
        scans += u64::from(marker == START_OF_SCAN);
        let Some(length) = bytes.get(at..at + 2) else { break };
        at += usize::from(length[0]) << 8 | usize::from(length[1]);
    }
    Err(DecodeError::Unreadable("the JPEG file is cut off: it has no end marker".to_string()))
}

/// Not a byte of image data, padding or a restart.
fn is_marker(byte: u8) -> bool {
    !matches!(byte, 0x00 | 0x01 | 0xff | 0xd0..=0xd8)
}

/// Any pixel type to RGB with 8 bits.
fn to_rgb(picture: DynamicImage) -> RgbImage {
    let (width, height) = (picture.width(), picture.height());
    let pixels: Vec<u8> = match &picture {
        DynamicImage::ImageRgb8(p) => return p.clone(),
        DynamicImage::ImageLuma8(p) => p.as_raw().iter().flat_map(|v| [*v; 3]).collect(),
        DynamicImage::ImageLumaA8(p) => p.as_raw().chunks_exact(2).flat_map(|c| [on_white(c[0], c[1]); 3]).collect(),
        DynamicImage::ImageRgba8(p) => {
            p.as_raw().chunks_exact(4).flat_map(|c| [0, 1, 2].map(|i| on_white(c[i], c[3]))).collect()
        }
        DynamicImage::ImageLuma16(p) => p.as_raw().iter().flat_map(|v| [high(*v); 3]).collect(),
        DynamicImage::ImageLumaA16(p) => {
            p.as_raw().chunks_exact(2).flat_map(|c| [on_white(high(c[0]), high(c[1])); 3]).collect()
        }
        DynamicImage::ImageRgb16(p) => p.as_raw().iter().map(|v| high(*v)).collect(),
        DynamicImage::ImageRgba16(p) => {
            p.as_raw().chunks_exact(4).flat_map(|c| [0, 1, 2].map(|i| on_white(high(c[i]), high(c[3])))).collect()
        }
        other => other.to_rgb8().into_raw(),
    };
    RgbImage::from_raw(width, height, pixels).unwrap_or_else(|| picture.to_rgb8())
}

/// PIL reads 16-bit samples by their high byte.
fn high(sample: u16) -> u8 {
    (sample >> 8) as u8
}

/// `value` over white with coverage `alpha`, with the rounding of PIL's `paste`.
fn on_white(value: u8, alpha: u8) -> u8 {
    let sum = u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 128;
    (((sum >> 8) + sum) >> 8) as u8
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
