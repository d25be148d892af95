//! The frozen slab as one stream of bytes, the same wherever it is made: tensors in layout order, matrices in bf16 or f32, vectors in f32,
//! little-endian. It is read from the model's own files piece by piece and never held whole.

use crate::error::ModelError;
use crate::layout::{Entry, Layout};
use crate::partition::Partition;
use crate::weights::{RawTensor, SaveDtype, StoredWeights};
use half::bf16;
use quorum_core::config::Precision;
use quorum_core::digest::Sha256;
use std::sync::Arc;

/// Elements turned into bytes at once.
const PIECE: usize = 1 << 16;

/// The type in which a frozen tensor is held and sent.
fn held(entry: &Entry, bf16: bool) -> SaveDtype {
    if bf16 && entry.shape.len() > 1 { SaveDtype::Bf16 } else { SaveDtype::F32 }
}

/// Bytes of the whole stream.
fn total(layout: &Layout, bf16: bool) -> u64 {
    layout.entries().iter().map(|e| (e.range.len() * held(e, bf16).size()) as u64).sum()
}

/// The frozen slab in the files of a model.
pub struct FrozenSource {
    stored: StoredWeights,
    layout: Arc<Layout>,
    bf16: bool,
    /// First byte of every tensor.
    starts: Vec<u64>,
    total: u64,
}

impl FrozenSource {
    /// Matrices are held as bf16 where all of them are stored so (nothing is lost), or where the policy computes in bf16.
    pub fn new(stored: StoredWeights, partition: &Partition) -> Self {
        let layout = partition.frozen.clone();
        let matrices = layout.entries().iter().filter(|e| e.shape.len() > 1);
        let lossless = matrices.into_iter().all(|e| stored.raw(e).is_some_and(|t| t.dtype() == SaveDtype::Bf16));
        let bf16 = lossless || partition.precision == Precision::Bf16;
        let mut starts = Vec::with_capacity(layout.entries().len());
        let mut at = 0;
        for e in layout.entries() {
            starts.push(at);
            at += (e.range.len() * held(e, bf16).size()) as u64;
        }
        Self { stored, layout, bf16, starts, total: at }
    }

    /// Whether matrices are held as bf16.
    pub fn bf16(&self) -> bool {
        self.bf16
    }

    /// Bytes of the stream; 0 = nothing is frozen.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The model's files.
    pub fn stored(&self) -> &StoredWeights {
        &self.stored
    }

    /// Hands every frozen tensor as it is stored to `sink`, in layout order, and lets its pages go again.
    ///
    /// # Errors
    /// Values that are not finite, or what `sink` says.
    pub fn visit<E: From<ModelError>>(
        &self,
        mut sink: impl FnMut(&Entry, RawTensor<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for e in self.layout.entries() {
            let raw = self.raw(e)?;
            if !raw.is_finite() {
                let problem = "holds values that are not finite; the checkpoint is broken, use an earlier one";
                return Err(ModelError::key("weights", &e.name, problem).into());
            }
            sink(e, raw)?;
            self.stored.release(e, 0..e.range.len());
        }
        Ok(())
    }

    fn raw(&self, entry: &Entry) -> Result<RawTensor<'_>, ModelError> {
        let missing = || ModelError::key("weights", &entry.name, "is not in the model's files");
        self.stored.raw(entry).ok_or_else(missing)
    }

    /// SHA-256 hex of the stream.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut bytes = Vec::new();
        for e in self.layout.entries() {
            self.stored.pieces(e, |raw| {
                for from in (0..raw.len()).step_by(PIECE) {
                    bytes.clear();
                    encode(raw, held(e, self.bf16), from, PIECE.min(raw.len() - from), &mut bytes);
                    hash.update(&bytes);
                }
            });
        }
        hash.finish_hex()
    }

    /// Up to `len` bytes of the stream from `offset` on, both multiples of 4; they end with a tensor. Empty at the end.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let i = self.starts.partition_point(|s| *s <= offset);
        let Some((e, start)) = i.checked_sub(1).and_then(|i| self.layout.entries().get(i).zip(self.starts.get(i)))
        else {
            return out;
        };
        let dtype = held(e, self.bf16);
        let from = usize::try_from(offset - start).unwrap_or(usize::MAX) / dtype.size();
        if let (Some(raw), Some(left)) = (self.stored.raw(e), e.range.len().checked_sub(from)) {
            let n = left.min(len / dtype.size());
            encode(raw, dtype, from, n, &mut out);
            self.stored.release(e, from..from + n);
        }
        out
    }
}

/// Appends elements `from..from + n` as `dtype`.
fn encode(raw: RawTensor, dtype: SaveDtype, from: usize, n: usize, out: &mut Vec<u8>) {
    if raw.dtype() == dtype {
        let size = dtype.size();
        out.extend_from_slice(raw.bytes().get(from * size..(from + n) * size).unwrap_or_default());
        return;
    }
    let mut wide = vec![0.0; n];
    raw.read(from, &mut wide);
    match dtype {
        SaveDtype::Bf16 => out.extend(wide.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        _ => out.extend(wide.iter().flat_map(|x| x.to_le_bytes())),
    }
}

/// Cuts an arriving stream into tensors.
pub struct FrozenSink {
    layout: Arc<Layout>,
    bf16: bool,
    next: usize,
    part: Vec<u8>,
    total: u64,
}

impl FrozenSink {
    /// For the frozen tensors of `partition`, matrices as bf16 or f32.
    pub fn new(partition: &Partition, bf16: bool) -> Self {
        let layout = partition.frozen.clone();
        Self { total: total(&layout, bf16), layout, bf16, next: 0, part: Vec::new() }
    }

    /// Bytes the stream has.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Takes the next bytes; every tensor that is complete goes to `put` with its name.
    ///
    /// # Errors
    /// Bytes beyond the end, or what `put` says.
    pub fn add(
        &mut self,
        mut bytes: &[u8],
        mut put: impl FnMut(&str, RawTensor<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            let e = self.layout.entries().get(self.next).ok_or("more bytes came than the frozen weights have")?;
            let dtype = held(e, self.bf16);
            let size = e.range.len() * dtype.size();
            let (mine, rest) = bytes.split_at(bytes.len().min(size - self.part.len()));
            bytes = rest;
            self.part.extend_from_slice(mine);
            if self.part.len() == size {
                put(&e.name, RawTensor::new(dtype, &self.part))?;
                self.part.clear();
                self.next += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::save_safetensors;

    #[test]
    fn the_stream_arrives_as_the_tensors_it_was_made_of() {
        let dir = tempfile::tempdir().unwrap();
        let shapes = [("a.weight", vec![5, 40]), ("a.bias", vec![5]), ("b.weight", vec![64, 64]), ("c", vec![1])];
        let layout = Arc::new(Layout::new(shapes.map(|(n, s)| (n.to_owned(), s))));
        let slab: Vec<f32> = (0..layout.total()).map(|i| i as f32 * 0.37 - 50.0).collect();
        save_safetensors(&dir.path().join("model.safetensors"), &layout, &slab).unwrap();
        for precision in [Precision::F32, Precision::Bf16] {
            let partition =
                Partition { frozen: layout.clone(), trainable: Arc::new(Layout::new([])), lora: None, precision };
            let stored = StoredWeights::open(dir.path(), &layout, false).unwrap();
            let source = FrozenSource::new(stored, &partition);
            assert_eq!(source.bf16(), precision == Precision::Bf16);
            let mut sink = FrozenSink::new(&partition, source.bf16());
            assert_eq!(sink.total(), source.total());
            let (mut offset, mut hash, mut back) = (0, Sha256::new(), vec![0.0; slab.len()]);
            loop {
                let bytes = source.read(offset, 100);
                if bytes.is_empty() {
                    break;
                }
                offset += bytes.len() as u64;
                hash.update(&bytes);
                sink.add(&bytes, |name, raw| {
                    raw.read(0, &mut back[layout.get(name).unwrap().range.clone()]);
                    Ok(())
                })
                .unwrap();
            }
            assert_eq!((offset, hash.finish_hex()), (source.total(), source.digest()));
            for e in layout.entries() {
                let narrow = precision == Precision::Bf16 && e.shape.len() > 1;
                let want: Vec<f32> = slab[e.range.clone()]
                    .iter()
                    .map(|&x| if narrow { bf16::from_f32(x).to_f32() } else { x })
                    .collect();
                assert_eq!(back[e.range.clone()], want, "{}", e.name);
            }
            assert!(sink.add(&[0], |_, _| Ok(())).is_err());
        }
    }
}
