//! Reads safetensors (single or sharded; f32, f16, bf16) into a slab. Headers are untrusted: every claim is checked before use.

use super::names::{Meaning, meaning};
use crate::error::ModelError;
use crate::json::parse_object;
use crate::layout::{Entry, Layout};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Loads the weights of a checkpoint directory: `model.safetensors`, or the shards `model.safetensors.index.json` names.
///
/// `tied` allows (and ignores) an `lm_head.weight` that the layout does not have.
///
/// # Errors
/// One error that names the file and the tensors: missing, unexpected, duplicate, of another shape or type, not finite; or a damaged file.
pub fn load_model(dir: &Path, layout: &Layout, tied: bool) -> Result<Vec<f32>, ModelError> {
    let mut target = Target::new(layout, &[""], tied);
    for file in weight_files(dir)? {
        target.read_file(&file, meaning)?;
    }
    target.finish(dir).map(one)
}

/// Loads a file written by [`super::save_safetensors`]: exactly the tensors of `layout` under their own names.
///
/// # Errors
/// As for [`load_model`].
pub fn load_safetensors(path: &Path, layout: &Layout) -> Result<Vec<f32>, ModelError> {
    let mut target = Target::new(layout, &[""], false);
    target.read_file(path, |name| Meaning::Weight(name.to_owned()))?;
    target.finish(path).map(one)
}

/// Loads a file written by [`super::save_slabs`] with the same prefixes; one slab a prefix.
///
/// # Errors
/// As for [`load_model`].
pub fn load_slabs(path: &Path, layout: &Layout, prefixes: &[&str]) -> Result<Vec<Vec<f32>>, ModelError> {
    let mut target = Target::new(layout, prefixes, false);
    target.read_file(path, |name| Meaning::Weight(name.to_owned()))?;
    target.finish(path)
}

fn one(mut slabs: Vec<Vec<f32>>) -> Vec<f32> {
    slabs.pop().unwrap_or_default()
}

/// The safetensors files of a checkpoint directory, each once, in name order.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = dir.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join(INDEX);
    if !index.is_file() {
        let remedy = if dir.join("pytorch_model.bin").exists() || dir.join("pytorch_model.bin.index.json").exists() {
            "only safetensors are read, so convert pytorch_model.bin first (save_pretrained with safe_serialization=True)"
        } else {
            "give a directory with model.safetensors, or with model.safetensors.index.json and its shards"
        };
        return Err(ModelError::MissingFile {
            place: dir.display().to_string(),
            file: SINGLE.to_owned(),
            remedy: remedy.to_owned(),
        });
    }
    let bytes = std::fs::read(&index).map_err(|e| ModelError::io(&index, "read", e))?;
    let label = index.display().to_string();
    let map = parse_object(&label, &bytes)?;
    let shards = map.get("weight_map").and_then(|m| m.as_object());
    let shards = shards
        .ok_or_else(|| ModelError::key(&label, "weight_map", "is missing or not an object; copy the index again"))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in shards {
        let name = file.as_str().filter(|f| is_plain_file_name(f));
        let name = name.ok_or_else(|| {
            ModelError::key(
                &label,
                format!("weight_map.{tensor}"),
                "must be the name of a .safetensors file in the same directory",
            )
        })?;
        files.insert(name);
    }
    let shard = |name: &str| {
        let path = dir.join(name);
        let remedy = format!("{INDEX} names it, so copy all shards");
        if path.is_file() {
            Ok(path)
        } else {
            Err(ModelError::MissingFile { place: dir.display().to_string(), file: name.to_owned(), remedy })
        }
    };
    files.into_iter().map(shard).collect()
}

fn is_plain_file_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains(['/', '\\', '\0'])
}

/// Slabs being filled, one a prefix, with what was seen so far.
struct Target<'a> {
    layout: &'a Layout,
    prefixes: &'a [&'a str],
    tied: bool,
    slabs: Vec<Vec<f32>>,
    seen: HashSet<String>,
    unexpected: Vec<String>,
}

impl<'a> Target<'a> {
    fn new(layout: &'a Layout, prefixes: &'a [&'a str], tied: bool) -> Self {
        let slabs = vec![vec![0.0; layout.total()]; prefixes.len()];
        Self { layout, prefixes, tied, slabs, seen: HashSet::new(), unexpected: Vec::new() }
    }

    fn find(&self, name: &str) -> Option<(usize, &'a Entry)> {
        let layout: &'a Layout = self.layout;
        self.prefixes.iter().enumerate().find_map(|(i, prefix)| Some((i, layout.get(name.strip_prefix(prefix)?)?)))
    }

    fn read_file(&mut self, path: &Path, meaning: impl Fn(&str) -> Meaning) -> Result<(), ModelError> {
        let file = File::open(path).map_err(|e| ModelError::io(path, "open", e))?;
        // SAFETY: the mapping is read-only and private to this call. A writer that truncates the file meanwhile would end the process
        // with SIGBUS; our own writers replace files by rename and never change one in place.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, "map", e))?;
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|e| ModelError::weights(path, damage(&e, bytes.len())))?;
        reject_duplicate_keys(&bytes).map_err(|problem| ModelError::weights(path, problem))?;
        for (name, view) in tensors.iter() {
            let Meaning::Weight(name) = meaning(name) else { continue };
            match self.find(&name) {
                Some((slab, entry)) => self.copy(path, slab, entry, name, &view)?,
                None if self.tied && name == "lm_head.weight" => {}
                None => self.unexpected.push(name),
            }
        }
        Ok(())
    }

    fn copy(
        &mut self,
        path: &Path,
        slab: usize,
        entry: &Entry,
        name: String,
        view: &TensorView,
    ) -> Result<(), ModelError> {
        if view.shape() != entry.shape {
            let problem = format!(
                "tensor {name} has shape {:?} but config.json gives {:?}; weights and config.json belong to different models",
                view.shape(),
                entry.shape
            );
            return Err(ModelError::weights(path, problem));
        }
        let values = &mut self.slabs[slab][entry.range.clone()];
        decode(view, values).map_err(|problem| ModelError::weights(path, format!("tensor {name} {problem}")))?;
        if !values.iter().all(|x| x.is_finite()) {
            return Err(ModelError::weights(
                path,
                format!("tensor {name} holds values that are not finite; the checkpoint is broken, use an earlier one"),
            ));
        }
        match self.seen.insert(name.clone()) {
            true => Ok(()),
            false => Err(ModelError::weights(path, format!("tensor {name} appears twice; keep one copy"))),
        }
    }

    fn finish(self, place: &Path) -> Result<Vec<Vec<f32>>, ModelError> {
        let wanted =
            self.prefixes.iter().flat_map(|p| self.layout.entries().iter().map(move |e| format!("{p}{}", e.name)));
        let mut missing: Vec<String> = wanted.filter(|n| !self.seen.contains(n)).collect();
        let mut unexpected = self.unexpected;
        if missing.is_empty() && unexpected.is_empty() {
            return Ok(self.slabs);
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
            place,
            format!("tensors {}; weights and config.json belong to different models", parts.join(" and ")),
        ))
    }
}

/// Widens little-endian values; every conversion is exact.
fn decode(view: &TensorView, out: &mut [f32]) -> Result<(), String> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(o, b)| *o = f32::from_le_bytes(*b)),
        Dtype::F16 => {
            out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(o, b)| *o = f16::from_le_bytes(*b).to_f32())
        }
        Dtype::BF16 => {
            out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(o, b)| *o = bf16::from_le_bytes(*b).to_f32())
        }
        other => return Err(format!("has type {other:?}; only F32, F16 and BF16 are read")),
    }
    Ok(())
}

/// What a failed header check means, and what to do.
fn damage(error: &SafeTensorError, len: usize) -> String {
    let cause = match error {
        SafeTensorError::HeaderTooSmall => format!("is truncated: {len} bytes"),
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            format!("declares a header longer than its {len} bytes or than 100 MB")
        }
        SafeTensorError::InvalidHeader(_) | SafeTensorError::InvalidHeaderDeserialization(_) => {
            "has a header that is not safetensors JSON".to_owned()
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("is truncated or too long: its {len} bytes differ from what the header declares")
        }
        SafeTensorError::InvalidOffset(name) => format!("has overlapping or disordered data offsets at tensor {name}"),
        SafeTensorError::TensorInvalidInfo => "declares a data length that differs from shape × type".to_owned(),
        SafeTensorError::ValidationOverflow => "declares a shape too large to exist".to_owned(),
        other => format!("is damaged ({other})"),
    };
    format!("{cause}; copy the file again")
}

/// The safetensors reader keeps the last of two equal keys; we refuse both.
fn reject_duplicate_keys(bytes: &[u8]) -> Result<(), String> {
    let problem = || "has a header that is not safetensors JSON; copy the file again".to_owned();
    let length = bytes
        .first_chunk::<8>()
        .map(|b| u64::from_le_bytes(*b))
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(problem)?;
    let header = length.checked_add(8).and_then(|end| bytes.get(8..end)).ok_or_else(problem)?;
    serde_json::from_slice::<UniqueKeys>(header).map(|_| ()).map_err(|e| format!("{e}; keep one copy"))
}

/// Deserialises from an object whose keys are all different, and keeps nothing.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueKeys;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
                let mut seen = HashSet::new();
                while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                    if let Some(twice) = seen.replace(key) {
                        return Err(serde::de::Error::custom(format!("tensor {twice} appears twice in the header")));
                    }
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}
