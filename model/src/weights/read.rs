//! Reads safetensors (single or sharded; f32, f16, bf16). Headers are untrusted: every claim is checked before anything is allocated for it.

use super::files::{damage, reject_duplicate_keys, weight_files};
use super::names::{Meaning, meaning};
use super::{RawTensor, SaveDtype};
use crate::error::ModelError;
use crate::layout::{Entry, Layout};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Elements one thread widens at a time.
const PIECE: usize = 1 << 20;
/// Threads that widen at most; more do not read memory faster.
const MAX_THREADS: usize = 8;

/// Loads the weights of a checkpoint directory: `model.safetensors`, or the shards `model.safetensors.index.json` names.
///
/// `tied` allows (and ignores) an `lm_head.weight` that the layout does not have.
///
/// # Errors
/// One error that names the file and the tensors: missing, unexpected, duplicate, of another shape or type, not finite; or a damaged file.
pub fn load_model(dir: &Path, layout: &Layout, tied: bool) -> Result<Vec<f32>, ModelError> {
    StoredWeights::open(dir, layout, tied)?.slab("", layout)
}

/// Loads a file written by [`super::save_safetensors`]: exactly the tensors of `layout` under their own names.
///
/// # Errors
/// As for [`load_model`].
pub fn load_safetensors(path: &Path, layout: &Layout) -> Result<Vec<f32>, ModelError> {
    StoredWeights::own(path, layout, &[""])?.slab("", layout)
}

/// Loads a file written by [`super::save_slabs`] with the same prefixes; one slab a prefix.
///
/// # Errors
/// As for [`load_model`].
pub fn load_slabs(path: &Path, layout: &Layout, prefixes: &[&str]) -> Result<Vec<Vec<f32>>, ModelError> {
    let stored = StoredWeights::own(path, layout, prefixes)?;
    prefixes.iter().map(|prefix| stored.slab(prefix, layout)).collect()
}

/// Weights as they lie in mapped files; every header is checked, no value is read yet.
pub struct StoredWeights {
    place: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    found: HashMap<String, Found>,
}

/// Where a tensor lies.
struct Found {
    file: usize,
    bytes: Range<usize>,
    dtype: SaveDtype,
}

impl StoredWeights {
    /// Maps the files of a checkpoint directory and checks that they hold exactly the tensors of `layout`, under the hub's names or
    /// another tool's. `tied` allows (and ignores) an `lm_head.weight` that the layout does not have.
    ///
    /// # Errors
    /// As for [`load_model`], but for values that are not finite.
    pub fn open(dir: &Path, layout: &Layout, tied: bool) -> Result<Self, ModelError> {
        let shape = |names: &[String]| {
            names.iter().find_map(|n| layout.get(n)).map(|entry| (entry.name.clone(), entry.shape.as_slice()))
        };
        let ignored = |names: &[String]| tied && names.iter().any(|n| n == "lm_head.weight");
        let mut reader = Reader::new(dir);
        for file in weight_files(dir)? {
            reader.read(&file, meaning, &shape, &ignored)?;
        }
        reader.finish(layout.entries().iter().map(|e| e.name.clone()))
    }

    /// Maps a file of our own writing: exactly the tensors of `layout` under their names after each prefix.
    fn own(path: &Path, layout: &Layout, prefixes: &[&str]) -> Result<Self, ModelError> {
        let shape = |names: &[String]| {
            let name = names.first()?;
            let entry = prefixes.iter().find_map(|p| layout.get(name.strip_prefix(p)?))?;
            Some((name.clone(), entry.shape.as_slice()))
        };
        let mut reader = Reader::new(path);
        reader.read(path, |name| Meaning::Weight(vec![name.to_owned()]), &shape, &|_| false)?;
        let entries = layout.entries();
        reader.finish(prefixes.iter().flat_map(|p| entries.iter().map(move |e| format!("{p}{}", e.name))))
    }

    /// The stored values of an entry of the layout it was opened with. They may not be finite.
    pub fn raw(&self, entry: &Entry) -> Option<RawTensor<'_>> {
        self.tensor(&entry.name)
    }

    /// A slab of `layout`, which may be a part of the one it was opened with; widened by several threads.
    ///
    /// # Errors
    /// Values that are not finite, or a slab that does not fit in memory.
    pub fn load(&self, layout: &Layout) -> Result<Vec<f32>, ModelError> {
        self.slab("", layout)
    }

    /// Reads every byte of the files once, in order, hands it to `sink`, and keeps none. Values of `layout` must be finite.
    ///
    /// # Errors
    /// Names the first tensor, in the order of `layout`, with values that are not finite.
    pub fn check(&self, layout: &Layout, mut sink: impl FnMut(&Path, &[u8])) -> Result<(), ModelError> {
        let mut bad: Option<&Entry> = None;
        for (at, (path, map)) in self.files.iter().enumerate() {
            let found = |entry: &Entry| self.found.get(&entry.name).filter(|f| f.file == at);
            let mut inside: Vec<(&Found, &Entry)> =
                layout.entries().iter().filter_map(|e| Some((found(e)?, e))).collect();
            inside.sort_by_key(|(found, _)| found.bytes.start);
            let mut done = 0;
            for (found, entry) in inside {
                sink(path, map.get(done..found.bytes.start).unwrap_or_default());
                let mut finite = true;
                self.pieces(entry, |piece| {
                    sink(path, piece.bytes());
                    finite &= piece.is_finite();
                });
                if !finite && bad.is_none_or(|b| entry.range.start < b.range.start) {
                    bad = Some(entry);
                }
                done = found.bytes.end;
            }
            sink(path, map.get(done..).unwrap_or_default());
        }
        bad.map_or(Ok(()), |entry| Err(self.not_finite("", entry)))
    }

    fn not_finite(&self, prefix: &str, entry: &Entry) -> ModelError {
        let name = format!("{prefix}{}", entry.name);
        ModelError::weights(
            self.found.get(&name).map_or(&self.place, |f| &self.files[f.file].0),
            format!("tensor {name} holds values that are not finite; the checkpoint is broken, use an earlier one"),
        )
    }

    /// Hands an entry's stored values over piece by piece and lets the memory of each go again.
    pub fn pieces(&self, entry: &Entry, mut sink: impl FnMut(RawTensor<'_>)) {
        let Some(raw) = self.raw(entry) else { return };
        let size = raw.dtype().size();
        for (i, part) in raw.bytes().chunks(PIECE * size).enumerate() {
            sink(RawTensor::new(raw.dtype(), part));
            self.release(entry, i * PIECE..i * PIECE + part.len() / size);
        }
    }

    /// Lets the memory of some elements of an entry go; they are read from the file again when asked for.
    pub fn release(&self, entry: &Entry, elements: Range<usize>) {
        let Some(found) = self.found.get(&entry.name) else { return };
        let bytes = elements.start * found.dtype.size()..elements.end * found.dtype.size();
        if bytes.start > bytes.end || bytes.end > found.bytes.len() {
            return;
        }
        let Some((_, map)) = self.files.get(found.file) else { return };
        // SAFETY: the map is of a file and read-only, so that dropped pages come back with the same contents.
        // A failure only means that the pages stay.
        let _ = unsafe {
            map.unchecked_advise_range(UncheckedAdvice::DontNeed, found.bytes.start + bytes.start, bytes.len())
        };
    }

    fn tensor(&self, name: &str) -> Option<RawTensor<'_>> {
        let found = self.found.get(name)?;
        Some(RawTensor::new(found.dtype, self.files.get(found.file)?.1.get(found.bytes.clone())?))
    }

    /// A slab of `layout`, all of whose tensors (after `prefix`) are here; widened by several threads.
    fn slab(&self, prefix: &str, layout: &Layout) -> Result<Vec<f32>, ModelError> {
        // The sizes are those of the files, so a slab that cannot be had is a matter of memory.
        let bytes = layout.total().saturating_mul(size_of::<f32>());
        if Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
            return Err(ModelError::weights(&self.place, format!("its {bytes} bytes in f32 do not fit in memory")));
        }
        let mut slab = vec![0.0; layout.total()];
        let mut pieces = Vec::new();
        let mut rest = slab.as_mut_slice();
        for (at, entry) in layout.entries().iter().enumerate() {
            let Some(raw) = self.tensor(&format!("{prefix}{}", entry.name)) else { continue };
            let (mine, others) = rest.split_at_mut(entry.range.len());
            rest = others;
            pieces.extend(mine.chunks_mut(PIECE).enumerate().map(|(k, out)| Piece { at, raw, from: k * PIECE, out }));
        }
        match widen(pieces).and_then(|at| layout.entries().get(at)) {
            None => Ok(slab),
            Some(entry) => Err(self.not_finite(prefix, entry)),
        }
    }
}

/// Part of a tensor and where it goes.
struct Piece<'a> {
    /// Entry of the layout.
    at: usize,
    raw: RawTensor<'a>,
    from: usize,
    out: &'a mut [f32],
}

/// Widens all pieces; returns the first entry with values that are not finite.
fn widen(pieces: Vec<Piece>) -> Option<usize> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(pieces.len());
    let queue = Mutex::new(pieces.into_iter());
    let work = || {
        let mut bad: Option<usize> = None;
        loop {
            let next = queue.lock().ok().and_then(|mut q| q.next());
            let Some(piece) = next else { return bad };
            piece.raw.read(piece.from, piece.out);
            // Counted, not searched: a branch an element would be many times slower.
            let wrong: u32 = piece.out.iter().map(|x| u32::from(!x.is_finite())).sum();
            if wrong > 0 {
                bad = Some(bad.map_or(piece.at, |b| b.min(piece.at)));
            }
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        others.into_iter().filter_map(|t| t.join().ok().flatten()).chain(mine).min()
    })
}

/// The layout's name and shape for a tensor with one of these names.
type Wanted<'f, 'l> = dyn Fn(&[String]) -> Option<(String, &'l [usize])> + 'f;

/// Files being mapped, with what was seen so far.
struct Reader {
    stored: StoredWeights,
    unexpected: Vec<String>,
}

impl Reader {
    fn new(place: &Path) -> Self {
        let stored = StoredWeights { place: place.to_path_buf(), files: Vec::new(), found: HashMap::new() };
        Self { stored, unexpected: Vec::new() }
    }

    fn read<'l>(
        &mut self,
        path: &Path,
        meaning: impl Fn(&str) -> Meaning,
        shape: &Wanted<'_, 'l>,
        ignored: &dyn Fn(&[String]) -> bool,
    ) -> Result<(), ModelError> {
        let file = File::open(path).map_err(|e| ModelError::io(path, "open", e))?;
        // SAFETY: the mapping is read-only. A writer that truncates the file meanwhile would end the process with SIGBUS;
        // our own writers replace files by rename and never change one in place.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, "map", e))?;
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|e| ModelError::weights(path, damage(&e, bytes.len())))?;
        reject_duplicate_keys(&bytes).map_err(|problem| ModelError::weights(path, problem))?;
        // In the order of names, so that the same damage always gives the same error.
        let mut tensors: Vec<(&str, TensorView)> = tensors.iter().collect();
        tensors.sort_by_key(|(name, _)| *name);
        for (name, view) in tensors {
            let Meaning::Weight(names) = meaning(name) else { continue };
            match shape(&names) {
                Some((hub, wanted)) => self.take(path, hub, wanted, &view, &bytes)?,
                None if ignored(&names) => {}
                None => self.unexpected.push(name.to_owned()),
            }
        }
        self.stored.files.push((path.to_path_buf(), bytes));
        Ok(())
    }

    fn take(
        &mut self,
        path: &Path,
        name: String,
        wanted: &[usize],
        view: &TensorView,
        file: &[u8],
    ) -> Result<(), ModelError> {
        let error = |problem: String| Err(ModelError::weights(path, format!("tensor {name} {problem}")));
        if view.shape() != wanted {
            return error(format!(
                "has shape {:?} but config.json gives {wanted:?}; weights and config.json belong to different models",
                view.shape()
            ));
        }
        let dtype = match view.dtype() {
            Dtype::F32 => SaveDtype::F32,
            Dtype::F16 => SaveDtype::F16,
            Dtype::BF16 => SaveDtype::Bf16,
            other => return error(format!("has type {other:?}; only F32, F16 and BF16 are read")),
        };
        if self.stored.found.contains_key(&name) {
            return error("appears twice; keep one copy".to_owned());
        }
        let start = view.data().as_ptr() as usize - file.as_ptr() as usize;
        let bytes = start..start + view.data().len();
        self.stored.found.insert(name, Found { file: self.stored.files.len(), bytes, dtype });
        Ok(())
    }

    fn finish(self, wanted: impl Iterator<Item = String>) -> Result<StoredWeights, ModelError> {
        let mut missing: Vec<String> = wanted.filter(|n| !self.stored.found.contains_key(n)).collect();
        let mut unexpected = self.unexpected;
        if missing.is_empty() && unexpected.is_empty() {
            return Ok(self.stored);
        }
        let mut parts = Vec::new();
        for (what, names) in [("missing", &mut missing), ("unexpected", &mut unexpected)] {
            names.sort_unstable();
            if !names.is_empty() {
                let more = if names.len() > 3 { ", …" } else { "" };
                parts.push(format!(
                    "{} {what} ({}{more})",
                    names.len(),
                    names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ")
                ));
            }
        }
        Err(ModelError::weights(
            &self.stored.place,
            format!("tensors {}; weights and config.json belong to different models", parts.join(" and ")),
        ))
    }
}
