//! Reading f32 and i64 tensors of a safetensors file.

use super::Result;
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

/// A safetensors file in memory.
pub struct Tensors(Vec<u8>);

impl Tensors {
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        SafeTensors::deserialize(&bytes)?;
        Ok(Self(bytes))
    }

    fn get(&self, name: &str, dtype: Dtype) -> Option<(Vec<usize>, Vec<u8>)> {
        let file = SafeTensors::deserialize(&self.0).ok()?;
        let t = file.tensor(name).ok()?;
        (t.dtype() == dtype).then(|| (t.shape().to_vec(), t.data().to_vec()))
    }

    /// Shape and values of an f32 tensor.
    pub fn f32(&self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (shape, bytes) = self.get(name, Dtype::F32)?;
        Some((shape, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
    }

    /// Shape and values of an i64 tensor.
    pub fn i64(&self, name: &str) -> Option<(Vec<usize>, Vec<i64>)> {
        let (shape, bytes) = self.get(name, Dtype::I64)?;
        let value = |b: &[u8]| b.iter().rev().fold(0u64, |x, &b| (x << 8) | u64::from(b)) as i64;
        Some((shape, bytes.chunks_exact(8).map(value).collect()))
    }
}
