//! Light augmentations of an image, so that a group can vote across views. Pure: the same (image, view, config, seed) gives the same pixels on every machine, which is why no libm call is made.

use image::RgbImage;
use quorum_core::config::ViewSection;
use quorum_core::seed::Stream;
use serde::{Deserialize, Serialize};

/// What a view k > 0 may change; every value is the largest amount, drawn uniformly in ±amount.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewConfig {
    /// Views an image has; 1 = only the image as it is.
    pub count: u32,
    /// Shift, as a share of the side.
    pub shift: f32,
    /// Rotation around the centre, degrees, at most 45.
    pub rotate_degrees: f32,
    /// Relative change of scale, below 0.9.
    pub scale: f32,
    /// Relative change of contrast around mid-grey, and of brightness by half as much, below 1.
    pub contrast: f32,
    /// Grey levels added to each sample, as a share of 255.
    pub noise: f32,
}

impl Default for ViewConfig {
    fn default() -> Self {
        Self { count: 1, shift: 0.04, rotate_degrees: 8.0, scale: 0.08, contrast: 0.1, noise: 0.0 }
    }
}

impl From<&ViewSection> for ViewConfig {
    fn from(section: &ViewSection) -> Self {
        Self {
            count: section.count,
            shift: section.shift,
            rotate_degrees: section.rotate,
            scale: section.scale,
            contrast: section.contrast,
            noise: 0.0,
        }
    }
}

/// The seed of all views of one prompt: of `run.seed` and the prompt's row.
pub fn seed_of(run_seed: u64, row: u64) -> u64 {
    Stream::named("view seed", &[run_seed, row]).bits(0)
}

/// View `view` of `image`, of the same size. View 0 is the image as it is; the others are an affine change (bilinear, edges repeated), then contrast, brightness and noise.
pub fn apply(image: &RgbImage, view: u32, config: &ViewConfig, seed: u64) -> RgbImage {
    if view == 0 {
        return image.clone();
    }
    let mut stream = Stream::named("view", &[seed, u64::from(view)]);
    let affine = Affine::draw(&mut stream, config, image.width(), image.height());
    let amount = f64::from(config.contrast.clamp(0.0, 0.99));
    let gain = 1.0 + around(&mut stream, 4, amount);
    let lift = 255.0 * around(&mut stream, 5, amount / 2.0);
    let noise = 255.0 * f64::from(config.noise.max(0.0));
    let mut out = RgbImage::new(image.width(), image.height());
    for (x, y, pixel) in out.enumerate_pixels_mut() {
        let (sx, sy) = affine.source(f64::from(x), f64::from(y));
        let sample = bilinear(image, sx, sy);
        let place = (u64::from(y) * u64::from(image.width()) + u64::from(x)) * 3;
        for (channel, value) in sample.into_iter().enumerate() {
            let mut value = (value - 127.5) * gain + 127.5 + lift;
            if noise > 0.0 {
                value += around(&mut stream, 64 + place + channel as u64, noise);
            }
            pixel.0[channel] = value.round().clamp(0.0, 255.0) as u8;
        }
    }
    out
}

/// Uniform in ±limit, at `counter`.
fn around(stream: &mut Stream, counter: u64, limit: f64) -> f64 {
    (2.0 * stream.uniform(counter) - 1.0) * limit
}

/// Maps a target pixel to where it comes from.
struct Affine {
    centre: [f64; 2],
    shift: [f64; 2],
    /// Inverse scale times cosine and sine.
    cos: f64,
    sin: f64,
}

impl Affine {
    fn draw(stream: &mut Stream, config: &ViewConfig, width: u32, height: u32) -> Self {
        let (width, height) = (f64::from(width), f64::from(height));
        let shift = f64::from(config.shift.clamp(0.0, 1.0));
        let shift = [around(stream, 0, shift) * width, around(stream, 1, shift) * height];
        let angle = around(stream, 2, f64::from(config.rotate_degrees.clamp(0.0, 45.0))).to_radians();
        let scale = 1.0 + around(stream, 3, f64::from(config.scale.clamp(0.0, 0.9)));
        let (sin, cos) = sin_cos(angle);
        Self { centre: [(width - 1.0) / 2.0, (height - 1.0) / 2.0], shift, cos: cos / scale, sin: sin / scale }
    }

    fn source(&self, x: f64, y: f64) -> (f64, f64) {
        let (dx, dy) = (x - self.centre[0] - self.shift[0], y - self.centre[1] - self.shift[1]);
        (self.centre[0] + self.cos * dx + self.sin * dy, self.centre[1] - self.sin * dx + self.cos * dy)
    }
}

/// Sine and cosine of |x| ≤ π/4 by their series (error < 1e-15): libm's last bit differs between systems, this does not.
fn sin_cos(x: f64) -> (f64, f64) {
    let square = x * x;
    let series = |first: f64, start: u32| {
        let (mut term, mut sum) = (first, first);
        for k in 0..9 {
            let n = f64::from(start + 2 * k);
            term *= -square / (n * (n + 1.0));
            sum += term;
        }
        sum
    };
    (series(x, 2), series(1.0, 1))
}

/// Interpolated RGB at a place between pixels; outside, the nearest edge pixel.
fn bilinear(image: &RgbImage, x: f64, y: f64) -> [f64; 3] {
    let x = x.clamp(0.0, f64::from(image.width() - 1));
    let y = y.clamp(0.0, f64::from(image.height() - 1));
    let (left, top) = (x.floor() as u32, y.floor() as u32);
    let (right, below) = ((left + 1).min(image.width() - 1), (top + 1).min(image.height() - 1));
    let (fx, fy) = (x - f64::from(left), y - f64::from(top));
    let corners = [(left, top), (right, top), (left, below), (right, below)].map(|(cx, cy)| image.get_pixel(cx, cy).0);
    let weights = [(1.0 - fx) * (1.0 - fy), fx * (1.0 - fy), (1.0 - fx) * fy, fx * fy];
    [0, 1, 2].map(|channel| corners.iter().zip(weights).map(|(c, w)| f64::from(c[channel]) * w).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> RgbImage {
        RgbImage::from_fn(40, 24, |x, y| image::Rgb([(x * 6) as u8, (y * 10) as u8, ((x + y) * 3) as u8]))
    }

    fn still() -> ViewConfig {
        ViewConfig { count: 2, shift: 0.0, rotate_degrees: 0.0, scale: 0.0, contrast: 0.0, noise: 0.0 }
    }

    #[test]
    fn view_zero_and_a_view_that_changes_nothing_are_the_image() {
        assert_eq!(apply(&picture(), 0, &ViewConfig::default(), 9), picture());
        assert_eq!(apply(&picture(), 3, &still(), 9), picture());
    }

    #[test]
    fn a_view_depends_on_its_number_and_seed_alone() {
        let config = ViewConfig { count: 4, noise: 0.02, ..ViewConfig::default() };
        let first = apply(&picture(), 1, &config, seed_of(1, 5));
        assert_eq!(first, apply(&picture(), 1, &config, seed_of(1, 5)));
        assert_ne!(first, picture());
        assert_ne!(first, apply(&picture(), 2, &config, seed_of(1, 5)));
        assert_ne!(first, apply(&picture(), 1, &config, seed_of(1, 6)));
        assert_ne!(first, apply(&picture(), 1, &config, seed_of(2, 5)));
        assert_eq!(first.dimensions(), (40, 24));
    }

    #[test]
    fn views_are_the_same_on_every_machine() {
        let config = ViewConfig { count: 4, noise: 0.02, ..ViewConfig::default() };
        let bytes = apply(&picture(), 1, &config, 77).into_raw();
        assert_eq!(&blake3::hash(&bytes).to_hex()[..16], "1b50571f70b721b4");
    }

    #[test]
    fn sine_and_cosine_are_right() {
        for i in -45..=45 {
            let x = f64::from(i).to_radians();
            let (sin, cos) = sin_cos(x);
            assert!((sin - x.sin()).abs() < 1e-15 && (cos - x.cos()).abs() < 1e-15, "{i}");
        }
    }

    #[test]
    fn shifting_moves_and_edges_repeat() {
        let affine = Affine { centre: [19.5, 11.5], shift: [3.0, 0.0], cos: 1.0, sin: 0.0 };
        let (x, y) = affine.source(10.0, 5.0);
        assert_eq!((x, y), (7.0, 5.0));
        assert_eq!(bilinear(&picture(), -5.0, 30.0), bilinear(&picture(), 0.0, 23.0));
        assert_eq!(bilinear(&picture(), 1.5, 0.0)[0], 9.0);
    }

    #[test]
    fn any_setting_is_survived() {
        let wild = ViewConfig {
            count: 2,
            shift: f32::MAX,
            rotate_degrees: 1e9,
            scale: 5.0,
            contrast: f32::INFINITY,
            noise: 9.0,
        };
        let one = RgbImage::from_pixel(1, 1, image::Rgb([3, 4, 5]));
        assert_eq!(apply(&one, 1, &wild, 1).dimensions(), (1, 1));
        assert_eq!(apply(&picture(), 1, &wild, 1).dimensions(), (40, 24));
    }
}
