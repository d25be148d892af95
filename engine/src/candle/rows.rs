//! Geometry of a ragged batch on the device: rotary tables, and which rows attend to which, as index tensors.

use crate::error::EngineError;
use crate::kernels::packs::{PackRows, Run};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, EngineError>;

/// Attention scores held at once, in elements.
const SCORES: usize = 1 << 27;

/// Added to a score that must not count.
pub const NEVER: f32 = -1e30;

/// Rows a block runs on.
pub struct Rows {
    /// Rotary tables `[n, head_dim / 2]`, f32.
    pub cos: Tensor,
    pub sin: Tensor,
    pub index: PackIndex,
}

impl Rows {
    /// Tables and index of a batch; `heads` bounds the memory of its scores.
    pub fn new(
        packs: &[PackRows],
        cos: &[f32],
        sin: &[f32],
        n: usize,
        heads: usize,
        causal: bool,
        device: &Device,
    ) -> Result<Self> {
        let table = |x: &[f32]| Tensor::from_slice(x, (n, x.len() / n.max(1)), device);
        Ok(Self { cos: table(cos)?, sin: table(sin)?, index: PackIndex::new(packs, n, heads, causal, device)? })
    }
}

/// Who attends to whom: rows gathered into rectangles, and where each row lies in them.
pub struct PackIndex {
    /// The same for kernels that need no rectangles, `fused::spans`; only on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) spans: Option<Tensor>,
    pub(super) runs: Vec<Rectangle>,
    pub(super) branches: Vec<Branches>,
    /// Row → place among all rectangles, one below the other (runs, then branches).
    pub(super) place: Tensor,
}

/// Runs of about the same length that attend to themselves.
pub struct Rectangle {
    pub count: usize,
    pub len: usize,
    /// Rows `[count · len]`; the row behind the last stands for "none".
    pub rows: Tensor,
    /// 0 or never `[len, len]`; none where all is seen.
    pub mask: Option<Tensor>,
}

/// Branches of one pack: they see its prefix and themselves.
pub struct Branches {
    pub prefix: Run,
    pub own: Rectangle,
}

impl PackIndex {
    fn new(packs: &[PackRows], n: usize, heads: usize, causal: bool, device: &Device) -> Result<Self> {
        let mut lengths: BTreeMap<usize, Vec<Run>> = BTreeMap::new();
        for run in packs.iter().filter_map(|p| p.prefix).filter(|r| r.len > 0) {
            // Without causality a padded key would be seen, so only equal lengths go together.
            lengths.entry(if causal { run.len.next_power_of_two() } else { run.len }).or_default().push(run);
        }
        let mut map = Map { n, device, place: vec![0; n], filled: 0 };
        let (mut runs, mut branches) = (Vec::new(), Vec::new());
        for group in lengths.into_values() {
            let len = longest(&group);
            for part in group.chunks((SCORES / (heads * len * len)).max(1)) {
                runs.push(map.rectangle(part, causal)?);
            }
        }
        for pack in packs {
            let (Some(prefix), false) = (pack.prefix, pack.branches.is_empty()) else { continue };
            let len = longest(&pack.branches);
            for part in pack.branches.chunks((SCORES / (heads * len * (len + prefix.len))).max(1)) {
                branches.push(Branches { prefix, own: map.rectangle(part, causal)? });
            }
        }
        let place = Tensor::from_vec(map.place, n, device)?;
        #[cfg(feature = "cuda")]
        let spans = if device.is_cuda() { Some(super::fused::spans(packs, n, causal, device)?) } else { None };
        Ok(Self {
            #[cfg(feature = "cuda")]
            spans,
            runs,
            branches,
            place,
        })
    }
}

fn longest(runs: &[Run]) -> usize {
    runs.iter().map(|r| r.len).max().unwrap_or(0)
}

/// Rectangles in the making.
struct Map<'a> {
    n: usize,
    device: &'a Device,
    place: Vec<u32>,
    filled: u32,
}

impl Map<'_> {
    fn rectangle(&mut self, runs: &[Run], causal: bool) -> Result<Rectangle> {
        let len = longest(runs);
        let mut rows = vec![self.n as u32; runs.len() * len];
        for (i, run) in runs.iter().enumerate() {
            for j in 0..run.len {
                rows[i * len + j] = (run.start + j) as u32;
                self.place[run.start + j] = self.filled + (i * len + j) as u32;
            }
        }
        self.filled += rows.len() as u32;
        let rows = Tensor::from_vec(rows, runs.len() * len, self.device)?;
        let mask = if causal { Some(causal_mask(len, self.device)?) } else { None };
        Ok(Rectangle { count: runs.len(), len, rows, mask })
    }
}

/// `[len, len]`: 0 up to the diagonal, never above it.
fn causal_mask(len: usize, device: &Device) -> Result<Tensor> {
    let at = Tensor::arange(0u32, len as u32, device)?;
    let (key, query) = (at.unsqueeze(0)?.broadcast_as((len, len))?, at.unsqueeze(1)?.broadcast_as((len, len))?);
    Ok((key.gt(&query)?.to_dtype(DType::F32)? * f64::from(NEVER))?)
}
