//! Reads MNIST's idx files (big-endian header, then bytes).

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// Side of a scan, pixels.
pub const SIDE: usize = 28;

/// One handwritten digit: 28 × 28 grey levels (0 = paper), row by row, and what it shows.
#[derive(Clone)]
pub struct Scan {
    pub pixels: Vec<u8>,
    pub digit: u8,
}

/// All scans of one pair of files.
pub struct Scans {
    images: Vec<u8>,
    labels: Vec<u8>,
}

impl Scans {
    /// Opens `<name>-images-idx3-ubyte` and `<name>-labels-idx1-ubyte` in `dir`.
    pub fn open(dir: &Path, name: &str) -> Result<Self> {
        let images = body(&dir.join(format!("{name}-images-idx3-ubyte")), 0x0803, 16)?;
        let labels = body(&dir.join(format!("{name}-labels-idx1-ubyte")), 0x0801, 8)?;
        ensure!(
            images.len() == labels.len() * SIDE * SIDE,
            "{name}: {} image bytes do not fit {} labels; are the files complete?",
            images.len(),
            labels.len()
        );
        ensure!(labels.iter().all(|d| *d < 10), "{name}: a label is not a digit");
        Ok(Self { images, labels })
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn get(&self, i: usize) -> Result<Scan> {
        let pixels = self.images.get(i * SIDE * SIDE..(i + 1) * SIDE * SIDE).context("scan out of range")?;
        let digit = *self.labels.get(i).context("label out of range")?;
        Ok(Scan { pixels: pixels.to_vec(), digit })
    }
}

fn body(path: &Path, magic: u32, header: usize) -> Result<Vec<u8>> {
    let all = fs::read(path).with_context(|| {
        format!("cannot read {}; docs/data.md says where the MNIST files come from", path.display())
    })?;
    let found = all.first_chunk::<4>().map(|b| u32::from_be_bytes(*b));
    ensure!(
        found == Some(magic) && all.len() > header,
        "{} is not an idx file of kind {magic:#06x}; is it still compressed?",
        path.display()
    );
    Ok(all[header..].to_vec())
}
