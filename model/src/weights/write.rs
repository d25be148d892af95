//! Writes slabs as safetensors: exact f32 for checkpoints, f32/f16/bf16 (sharded when large) for model directories.

use crate::durable::{WriteError, write_file};
use crate::error::ModelError;
use crate::layout::{Entry, Layout};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// Element type of a saved model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveDtype {
    F32,
    F16,
    Bf16,
}

impl SaveDtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name config.json has for it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    fn stored(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Little-endian bytes, rounded to nearest, ties to even. A value that is not finite afterwards is an error.
    fn encode(self, name: &str, values: &[f32], out: &mut Vec<u8>) -> Result<(), String> {
        out.clear();
        let mut finite = true;
        for &x in values {
            match self {
                Self::F32 => {
                    finite &= x.is_finite();
                    out.extend_from_slice(&x.to_le_bytes());
                }
                Self::F16 => {
                    let y = f16::from_f32(x);
                    finite &= y.is_finite();
                    out.extend_from_slice(&y.to_le_bytes());
                }
                Self::Bf16 => {
                    let y = bf16::from_f32(x);
                    finite &= y.is_finite();
                    out.extend_from_slice(&y.to_le_bytes());
                }
            }
        }
        match finite {
            true => Ok(()),
            false => Err(format!(
                "tensor {name} holds values that are not finite or do not fit {}; nothing was written",
                self.torch_name()
            )),
        }
    }
}

/// Bytes of tensor data after which a model directory starts another file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShardLimit(pub usize);

impl Default for ShardLimit {
    fn default() -> Self {
        Self(5_000_000_000)
    }
}

/// Writes one slab as exact f32 under the layout's names; durable when it returns.
///
/// # Errors
/// The slab has another length than the layout, a value is not finite, or the file cannot be written. An existing file stays whole.
pub fn save_safetensors(path: &Path, layout: &Layout, slab: &[f32]) -> Result<(), ModelError> {
    save_slabs(path, layout, &[("", slab)])
}

/// Writes several slabs of one layout into one file; the tensors of each carry its prefix, e.g. `("m.", m)`, `("v.", v)`.
///
/// # Errors
/// As for [`save_safetensors`].
pub fn save_slabs(path: &Path, layout: &Layout, slabs: &[(&str, &[f32])]) -> Result<(), ModelError> {
    let mut tensors = Vec::new();
    for (prefix, slab) in slabs {
        check_length(path, layout, slab)?;
        tensors.extend(layout.entries().iter().map(|e| tensor(prefix, e, slab)));
    }
    write_tensors(path, &tensors, SaveDtype::F32)
}

/// Writes `model.safetensors` into `dir`, or shards and their index when the data exceeds `limit`.
pub(crate) fn write_model(
    dir: &Path,
    layout: &Layout,
    slab: &[f32],
    dtype: SaveDtype,
    limit: ShardLimit,
) -> Result<(), ModelError> {
    check_length(dir, layout, slab)?;
    let tensors: Vec<Tensor> = layout.entries().iter().map(|e| tensor("", e, slab)).collect();
    write_sharded(dir, &tensors, dtype, limit)
}

/// As [`write_model`], from tensors whose values may be made while they are written.
pub(crate) fn write_sharded(
    dir: &Path,
    tensors: &[Tensor],
    dtype: SaveDtype,
    limit: ShardLimit,
) -> Result<(), ModelError> {
    let shards = split(tensors, dtype, limit);
    if shards.len() <= 1 {
        return write_tensors(&dir.join("model.safetensors"), tensors, dtype);
    }
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_tensors(&dir.join(&name), shard, dtype)?;
        weight_map.extend(shard.iter().map(|t| (t.name.clone(), Value::from(name.clone()))));
    }
    let total: usize = tensors.iter().map(|t| t.bytes(dtype)).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_file(&dir.join("model.safetensors.index.json"), |out| Ok(writeln!(out, "{index:#}")?))
}

/// A tensor to write.
pub(crate) struct Tensor<'a> {
    pub name: String,
    pub shape: &'a [usize],
    pub values: Box<dyn Values + 'a>,
}

impl Tensor<'_> {
    fn bytes(&self, dtype: SaveDtype) -> usize {
        self.shape.iter().product::<usize>() * dtype.size()
    }
}

/// The values of a tensor, handed over piece by piece: all of them, in row-major order.
pub(crate) trait Values {
    fn visit(&self, sink: &mut dyn FnMut(&[f32]) -> Result<(), WriteError>) -> Result<(), WriteError>;
}

impl Values for &[f32] {
    fn visit(&self, sink: &mut dyn FnMut(&[f32]) -> Result<(), WriteError>) -> Result<(), WriteError> {
        // Pieces, because the encoded copy of a large embedding would be hundreds of MB.
        self.chunks(1 << 18).try_for_each(sink)
    }
}

fn tensor<'a>(prefix: &str, entry: &'a Entry, slab: &'a [f32]) -> Tensor<'a> {
    let values = Box::new(&slab[entry.range.clone()]);
    Tensor { name: format!("{prefix}{}", entry.name), shape: &entry.shape, values }
}

fn check_length(path: &Path, layout: &Layout, slab: &[f32]) -> Result<(), ModelError> {
    if slab.len() == layout.total() {
        return Ok(());
    }
    Err(ModelError::weights(
        path,
        format!(
            "the slab has {} values but the layout has {}; it belongs to another model",
            slab.len(),
            layout.total()
        ),
    ))
}

/// Consecutive runs of tensors whose data stays within the limit (a larger tensor stands alone).
fn split<'t, 'a>(tensors: &'t [Tensor<'a>], dtype: SaveDtype, limit: ShardLimit) -> Vec<&'t [Tensor<'a>]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, t) in tensors.iter().enumerate() {
        let size = t.bytes(dtype);
        if i > start && bytes + size > limit.0 {
            shards.push(&tensors[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    shards.push(&tensors[start..]);
    shards
}

fn write_tensors(path: &Path, tensors: &[Tensor], dtype: SaveDtype) -> Result<(), ModelError> {
    let header = header(tensors, dtype).map_err(|problem| ModelError::weights(path, problem))?;
    write_file(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut bytes = Vec::new();
        for t in tensors {
            t.values.visit(&mut |piece| {
                dtype.encode(&t.name, piece, &mut bytes).map_err(WriteError::Content)?;
                Ok(out.write_all(&bytes)?)
            })?;
        }
        Ok(())
    })
}

/// The JSON header, padded with spaces so that the data starts at a multiple of 8.
fn header(tensors: &[Tensor], dtype: SaveDtype) -> Result<Vec<u8>, String> {
    let mut offset = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for t in tensors {
        let end = offset + t.bytes(dtype);
        infos.push((
            t.name.clone(),
            TensorInfo { dtype: dtype.stored(), shape: t.shape.to_vec(), data_offsets: (offset, end) },
        ));
        offset = end;
    }
    // transformers refuses a file whose metadata does not name a format.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).map_err(|e| e.to_string())?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::load_model;

    fn layout() -> Layout {
        Layout::new([("a".to_owned(), vec![2, 3]), ("b".to_owned(), vec![4]), ("c".to_owned(), vec![1])])
    }

    #[test]
    fn a_model_beyond_the_limit_is_sharded_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let slab: Vec<f32> = (0..11).map(|i| i as f32 * 0.3).collect();
        write_model(dir.path(), &layout(), &slab, SaveDtype::F32, ShardLimit(24)).unwrap();
        assert!(dir.path().join("model-00002-of-00002.safetensors").is_file());
        assert!(!dir.path().join("model.safetensors").exists());
        assert_eq!(load_model(dir.path(), &layout(), false).unwrap(), slab);
        let mut seen: std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> = Default::default();
        let stored = crate::weights::StoredWeights::open(dir.path(), &layout(), false).unwrap();
        stored.check(&layout(), |path, part| seen.entry(path.into()).or_default().extend(part)).unwrap();
        assert_eq!(seen.len(), 2);
        assert!(seen.iter().all(|(path, bytes)| std::fs::read(path).unwrap() == *bytes), "every byte once, in order");
        std::fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
        let error = load_model(dir.path(), &layout(), false).unwrap_err().to_string();
        assert!(error.contains("model-00002-of-00002.safetensors") && error.contains("copy all shards"), "{error}");
    }

    #[test]
    fn rounding_is_to_nearest_even_and_overflow_is_refused() {
        let mut out = Vec::new();
        // 1 + 2^-8 lies halfway between two bf16 values; the even one is 1. 1 + 3·2^-8 rounds up to 1 + 2^-6.
        SaveDtype::Bf16.encode("x", &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut out).unwrap();
        assert_eq!(out, [0x80, 0x3f, 0x82, 0x3f]);
        assert!(SaveDtype::F16.encode("x", &[70_000.0], &mut out).unwrap_err().contains("do not fit float16"));
        assert!(SaveDtype::F32.encode("x", &[f32::NAN], &mut out).is_err());
    }
}
