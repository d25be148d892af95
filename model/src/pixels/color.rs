//! Any decoded image to RGB, with transparency handled as one of the two reference generations does.

use image::{DynamicImage, Rgb, RgbImage};

/// What becomes of transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AlphaMode {
    /// Composite on white, as transformers 5.x does.
    #[default]
    White,
    /// Drop the alpha channel, as transformers ≤ 4.57 and EasyR1 do.
    Drop,
}

/// RGB as PIL gives it: grey and palette images are expanded, transparency goes by `mode`.
pub fn to_rgb(image: &DynamicImage, mode: AlphaMode) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let rgba = image.to_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        Rgb(match mode {
            AlphaMode::Drop => [r, g, b],
            AlphaMode::White => [r, g, b].map(|c| over_white(c, a)),
        })
    })
}

/// PIL's `alpha_composite` on an opaque white background: 7 extra bits, rounded division by 255.
fn over_white(color: u8, alpha: u8) -> u8 {
    let source = u32::from(alpha) << 7;
    let white = (255 << 7) - source;
    let sum = u32::from(color) * source + 255 * white + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparency_follows_the_mode() {
        let clear = DynamicImage::ImageRgba8(image::RgbaImage::from_pixel(1, 1, image::Rgba([10, 20, 30, 0])));
        assert_eq!(to_rgb(&clear, AlphaMode::White).get_pixel(0, 0).0, [255; 3]);
        assert_eq!(to_rgb(&clear, AlphaMode::Drop).get_pixel(0, 0).0, [10, 20, 30]);
        for color in 0..=255 {
            assert_eq!(over_white(color, 255), color);
            assert_eq!(over_white(color, 0), 255);
        }
    }
}
