//! Geometry of the vision tower for a list of images: window order, attention runs, 2-D rotary tables. No learned numbers.

use crate::error::EngineError;
use crate::kernels::packs::{PackRows, Run};
use crate::kernels::rope::{cos_sin, inverse_frequencies};
use quorum_model::{EncodedImage, VisionConfig};

/// Rows of all images of a batch, in window order: merge units (2×2 patches) of one window lie together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VisionRows {
    /// Patches.
    pub n: usize,
    /// Row → patch in input order (images one after another).
    pub source: Vec<usize>,
    /// Merge unit in window order → merge unit in raster order.
    pub unit: Vec<usize>,
    /// Runs of windowed blocks and of full-attention blocks.
    pub windows: Vec<PackRows>,
    pub full: Vec<PackRows>,
    /// Rotary tables \[n, head_dim / 2\]: height frequencies, then width frequencies.
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl VisionRows {
    /// Lays out `images`; a grid that is empty, not divisible by the merge size or not as long as its patches is an error.
    pub fn new(config: &VisionConfig, images: &[&EncodedImage]) -> Result<Self, EngineError> {
        let mut rows = Self::default();
        for image in images {
            rows.add(config, image)?;
        }
        Ok(rows)
    }

    /// Merged tokens that come out.
    pub fn units(&self) -> usize {
        self.unit.len()
    }

    fn add(&mut self, config: &VisionConfig, image: &EncodedImage) -> Result<(), EngineError> {
        let [t, h, w] = image.grid;
        let merge = config.spatial_merge_size;
        let patches = t.checked_mul(h).and_then(|x| x.checked_mul(w)).and_then(|x| x.checked_mul(config.patch_dim()));
        if t == 0 || h == 0 || w == 0 || h % merge != 0 || w % merge != 0 || patches != Some(image.patches.len()) {
            return Err(EngineError::Request(format!(
                "image grid {t}×{h}×{w} does not fit {} patch values; encode the image with this model's processor",
                image.patches.len()
            )));
        }
        let window = config.window_size / merge / config.patch_size;
        let (uh, uw, per_unit) = (h / merge, w / merge, merge * merge);
        let (first_row, first_unit) = (self.n, self.unit.len());
        let hd = config.hidden_size / config.num_heads;
        let frequencies = inverse_frequencies(hd / 2, config.rope_theta);
        let table: Vec<Vec<(f32, f32)>> =
            (0..h.max(w)).map(|p| frequencies.iter().map(|&f| cos_sin(p as i32, f)).collect()).collect();
        for frame in 0..t {
            let frame_start = self.n;
            for (wi, wj) in grid(uh.div_ceil(window), uw.div_ceil(window)) {
                let start = self.n;
                for i in wi * window..uh.min((wi + 1) * window) {
                    for j in wj * window..uw.min((wj + 1) * window) {
                        let unit = frame * uh * uw + i * uw + j;
                        self.unit.push(first_unit + unit);
                        for (a, b) in grid(merge, merge) {
                            self.source.push(first_row + unit * per_unit + a * merge + b);
                            for p in [i * merge + a, j * merge + b] {
                                self.cos.extend(table[p].iter().map(|x| x.0));
                                self.sin.extend(table[p].iter().map(|x| x.1));
                            }
                        }
                        self.n += per_unit;
                    }
                }
                self.windows.push(run(start, self.n));
            }
            self.full.push(run(frame_start, self.n));
        }
        Ok(())
    }
}

fn grid(h: usize, w: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..h).flat_map(move |i| (0..w).map(move |j| (i, j)))
}

fn run(start: usize, end: usize) -> PackRows {
    PackRows { prefix: Some(Run { start, len: end - start }), branches: Vec::new() }
}
