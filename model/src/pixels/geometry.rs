//! Target size of an image. Pure integer and f64 arithmetic, equal to the reference's `smart_resize`.

use crate::error::ModelError;

/// Longest side over shortest side beyond which the reference refuses an image.
const MAX_ASPECT: f64 = 200.0;

/// The (height, width) an image is resized to: multiples of `factor` (patch × merge), area within the two bounds in pixels, aspect nearly kept.
///
/// # Errors
/// An empty image, or one whose sides differ by more than 200 times.
pub fn smart_resize(
    height: usize,
    width: usize,
    factor: usize,
    min_pixels: usize,
    max_pixels: usize,
) -> Result<(usize, usize), ModelError> {
    let (h, w, f) = (height as f64, width as f64, factor as f64);
    if height == 0 || width == 0 {
        return Err(ModelError::Image(format!("is empty ({width}×{height} pixels)")));
    }
    if h.max(w) / h.min(w) > MAX_ASPECT {
        return Err(ModelError::Image(format!(
            "{width}×{height} pixels: one side is more than {MAX_ASPECT} times the other; crop or pad it"
        )));
    }
    // Half to even, and a side may become 0 here: the min_pixels branch mends that.
    let round = |side: f64| (side / f).round_ties_even() * f;
    let (mut out_h, mut out_w) = (round(h), round(w));
    if out_h * out_w > max_pixels as f64 {
        let beta = (h * w / max_pixels as f64).sqrt();
        out_h = f.max((h / beta / f).floor() * f);
        out_w = f.max((w / beta / f).floor() * f);
    } else if out_h * out_w < min_pixels as f64 {
        let beta = (min_pixels as f64 / (h * w)).sqrt();
        out_h = (h * beta / f).ceil() * f;
        out_w = (w * beta / f).ceil() * f;
    }
    Ok((out_h as usize, out_w as usize))
}
