//! Which safetensors files make up a checkpoint directory, and what is wrong with a damaged one.

use crate::error::ModelError;
use crate::json::parse_object;
use safetensors::tensor::SafeTensorError;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Bytes an index may have; that of a 72B model has 80 kB.
const MAX_INDEX: u64 = 64 << 20;

/// The safetensors files of a checkpoint directory, each once, in name order.
pub(super) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
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
    shards(dir, &index)
}

/// The files an index names.
fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let read = |e| ModelError::io(index, "read", e);
    if std::fs::metadata(index).map_err(read)?.len() > MAX_INDEX {
        return Err(read(std::io::Error::other(format!("it has more than {MAX_INDEX} bytes; copy it again"))));
    }
    let bytes = std::fs::read(index).map_err(read)?;
    let label = index.display().to_string();
    let map = parse_object(&label, &bytes)?;
    let weight_map = map.get("weight_map").and_then(|m| m.as_object());
    let weight_map = weight_map
        .ok_or_else(|| ModelError::key(&label, "weight_map", "is missing or not an object; copy the index again"))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in weight_map {
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
    if files.is_empty() {
        return Err(ModelError::key(&label, "weight_map", "names no tensor; copy the index again"));
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

/// What a failed header check means, and what to do.
pub(super) fn damage(error: &SafeTensorError, len: usize) -> String {
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
pub(super) fn reject_duplicate_keys(bytes: &[u8]) -> Result<(), String> {
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
