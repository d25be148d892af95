//! Rows of the vision tower for a list of images: their order, who attends to whom, 2-D rotary tables, taps of learned positions.
//! No learned numbers. The order and the taps come from the families.

use crate::error::EngineError;
use crate::families;
use crate::kernels::packs::{PackRows, Run};
use crate::kernels::rope::{cos_sin, inverse_frequencies};
use quorum_model::{EncodedImage, VisionConfig};

/// Rows of all images of a batch; the patches of a merge unit lie together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VisionRows {
    /// Patches.
    pub n: usize,
    /// Row → patch in input order (images one after another).
    pub source: Vec<usize>,
    /// Merge unit in the order of the rows → merge unit in raster order.
    pub unit: Vec<usize>,
    /// Runs of windowed blocks and of full-attention blocks.
    pub windows: Vec<PackRows>,
    pub full: Vec<PackRows>,
    /// Rotary tables \[n, head_dim / 2\]: height frequencies, then width frequencies.
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    /// (row of the learned table, weight) whose sum is a patch's position; empty without a table.
    pub taps: Vec<[(usize, f32); 4]>,
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
        let (uh, uw, per_unit) = (h / merge, w / merge, merge * merge);
        let (first_row, first_unit) = (self.n, self.unit.len());
        let windows = families::windows(config, uh, uw);
        let table = RopeAxis::new(config, h.max(w));
        for frame in 0..t {
            let frame_start = self.n;
            for window in &windows {
                let start = self.n;
                for &(i, j) in window {
                    let unit = frame * uh * uw + i * uw + j;
                    self.unit.push(first_unit + unit);
                    for p in 0..per_unit {
                        let (row, column) = (i * merge + p / merge, j * merge + p % merge);
                        self.source.push(first_row + unit * per_unit + p);
                        table.extend([row, column], &mut self.cos, &mut self.sin);
                        self.taps.extend(families::position_taps(config, [row, column], [h, w]));
                    }
                    self.n += per_unit;
                }
                self.windows.push(run(start, self.n));
            }
            self.full.push(run(frame_start, self.n));
        }
        Ok(())
    }
}

/// cos and sin of one axis by position.
struct RopeAxis(Vec<Vec<(f32, f32)>>);

impl RopeAxis {
    fn new(config: &VisionConfig, positions: usize) -> Self {
        let hd = config.hidden_size / config.num_heads;
        let frequencies = inverse_frequencies(hd / 2, config.rope_theta);
        Self((0..positions).map(|p| frequencies.iter().map(|&f| cos_sin(p as i32, f)).collect()).collect())
    }

    fn extend(&self, place: [usize; 2], cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        for p in place {
            cos.extend(self.0[p].iter().map(|x| x.0));
            sin.extend(self.0[p].iter().map(|x| x.1));
        }
    }
}

fn run(start: usize, end: usize) -> PackRows {
    PackRows { prefix: Some(Run { start, len: end - start }), branches: Vec::new() }
}
