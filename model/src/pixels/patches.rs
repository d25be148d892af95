//! RGB image → normalised, flattened patches in the order the vision tower expects, by `preprocessor_config.json`.

use super::{resize_bicubic, smart_resize};
use crate::config::VisionConfig;
use crate::error::ModelError;
use crate::json::{Object, parse_object};
use image::RgbImage;

/// Bounds on untrusted settings: small images are enlarged to `min_pixels`, so that one decides how much memory an image takes.
const MAX_PIXELS: usize = 1 << 40;
const MAX_MIN_PIXELS: usize = 1 << 24;

/// One image as the vision tower takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedImage {
    /// Patches along time, height and width, before merging.
    pub grid: [usize; 3],
    /// `[t·h·w, channels·temporal·patch·patch]` row-major; rows are ordered by merge window (window row, window column, row, column inside).
    pub patches: Vec<f32>,
}

/// Settings of the reference image processor.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    pub min_pixels: usize,
    pub max_pixels: usize,
    pub patch_size: usize,
    pub temporal_patch_size: usize,
    pub merge_size: usize,
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json`, or `processor_config.json` of transformers 5, which nests the same under `image_processor`.
    ///
    /// # Errors
    /// Names the key: an operation we do not do, inconsistent bounds, or sizes that differ from the vision tower's.
    pub fn from_json(file: &str, bytes: &[u8], vision: &VisionConfig) -> Result<Self, ModelError> {
        let map = parse_object(file, bytes)?;
        let root = Object::new(file, "", &map);
        let c = root.object("image_processor", "image_processor.")?.unwrap_or(root);
        for key in ["do_resize", "do_rescale", "do_normalize"] {
            if c.boolean(key)? == Some(false) {
                return Err(c.error(key, "is false, which is not supported; set it to true"));
            }
        }
        if c.number("resample")?.is_some_and(|x| x != 3.0) {
            return Err(c.error("resample", "must be 3 (bicubic)"));
        }
        if c.number("rescale_factor")?.is_some_and(|x| (x - 1.0 / 255.0).abs() > 1e-9) {
            return Err(c.error("rescale_factor", "must be 1/255"));
        }
        let size = c.object("size", "size.")?;
        // min_pixels and max_pixels win where both are given; both names occur inside `size`.
        let bound = |old: &str, new: &str, default: usize| -> Result<usize, ModelError> {
            if let Some(n) = c.size_opt(old, MAX_PIXELS)? {
                return Ok(n);
            }
            let Some(s) = &size else { return Ok(default) };
            Ok(s.size_opt(new, MAX_PIXELS)?.or(s.size_opt(old, MAX_PIXELS)?).unwrap_or(default))
        };
        let this = Self {
            min_pixels: bound("min_pixels", "shortest_edge", 56 * 56)?,
            max_pixels: bound("max_pixels", "longest_edge", 28 * 28 * 1280)?,
            patch_size: c.size_opt("patch_size", 1 << 10)?.unwrap_or(14),
            temporal_patch_size: c.size_opt("temporal_patch_size", 64)?.unwrap_or(2),
            merge_size: c.size_opt("merge_size", 64)?.unwrap_or(2),
            mean: triple(&c, "image_mean", [0.481_454_66, 0.457_827_5, 0.408_210_73])?,
            std: triple(&c, "image_std", [0.268_629_54, 0.261_302_6, 0.275_777_1])?,
        };
        this.check(&c, vision)?;
        Ok(this)
    }

    fn check(&self, c: &Object, v: &VisionConfig) -> Result<(), ModelError> {
        for (key, ours, theirs) in [
            ("patch_size", self.patch_size, v.patch_size),
            ("temporal_patch_size", self.temporal_patch_size, v.temporal_patch_size),
            ("merge_size", self.merge_size, v.spatial_merge_size),
        ] {
            if ours != theirs {
                return Err(c.error(
                    key,
                    format!(
                        "is {ours}, but vision_config of config.json has {theirs}; the files belong to different models"
                    ),
                ));
            }
        }
        if self.min_pixels > MAX_MIN_PIXELS {
            let problem = format!("is {}; images would be enlarged to more than any model takes", self.min_pixels);
            return Err(c.error("min_pixels", problem));
        }
        if self.min_pixels > self.max_pixels {
            return Err(c.error("min_pixels", format!("is {}, above max_pixels {}", self.min_pixels, self.max_pixels)));
        }
        if self.std.iter().any(|&s| s <= 0.0) {
            return Err(c.error("image_std", "must be positive"));
        }
        Ok(())
    }

    /// The (height, width) in pixels an image of that size is resized to.
    ///
    /// # Errors
    /// As for [`smart_resize`].
    pub fn target_size(&self, height: usize, width: usize) -> Result<(usize, usize), ModelError> {
        smart_resize(height, width, self.patch_size * self.merge_size, self.min_pixels, self.max_pixels)
    }

    /// Image-pad tokens an image of that grid takes in the text.
    pub fn tokens(&self, grid: [usize; 3]) -> usize {
        grid.iter().product::<usize>() / (self.merge_size * self.merge_size)
    }

    /// Resizes, normalises and cuts into patches.
    ///
    /// # Errors
    /// As for [`smart_resize`].
    pub fn encode(&self, image: &RgbImage) -> Result<EncodedImage, ModelError> {
        let (height, width) = self.target_size(image.height() as usize, image.width() as usize)?;
        Ok(self.cut(&resize_bicubic(image, width, height)))
    }

    /// Normalises and cuts an image whose sides are already multiples of patch × merge.
    fn cut(&self, image: &RgbImage) -> EncodedImage {
        let (p, m) = (self.patch_size, self.merge_size);
        let (gh, gw) = (image.height() as usize / p, image.width() as usize / p);
        let tables = self.tables();
        let stride = image.width() as usize * 3;
        let raw = image.as_raw();
        let mut patches = Vec::with_capacity(gh * gw * 3 * self.temporal_patch_size * p * p);
        for window in 0..gh * gw / (m * m) {
            let (wr, wc) = (window / (gw / m), window % (gw / m));
            for cell in 0..m * m {
                let (top, left) = ((wr * m + cell / m) * p, (wc * m + cell % m) * p);
                for (channel, table) in tables.iter().enumerate() {
                    // A still image is repeated along time.
                    for _ in 0..self.temporal_patch_size {
                        for y in top..top + p {
                            let row = &raw[y * stride + left * 3..y * stride + (left + p) * 3];
                            patches.extend(row.iter().skip(channel).step_by(3).map(|&value| table[value as usize]));
                        }
                    }
                }
            }
        }
        EncodedImage { grid: [1, gh, gw], patches }
    }

    /// Normalised value of every grey level per channel, in the reference's order of roundings.
    fn tables(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|c| {
            std::array::from_fn(|level| (((level as f64) * (1.0 / 255.0)) as f32 - self.mean[c]) / self.std[c])
        })
    }
}

fn triple(c: &Object, key: &str, default: [f32; 3]) -> Result<[f32; 3], ModelError> {
    let Some(value) = c.get(key) else { return Ok(default) };
    let numbers: Option<Vec<f32>> = value
        .as_array()
        .and_then(|a| a.iter().map(|v| v.as_f64().map(|x| x as f32).filter(|x| x.is_finite())).collect());
    numbers
        .and_then(|n| n.try_into().ok())
        .ok_or_else(|| c.error(key, "must be a list of three numbers, one a channel"))
}
