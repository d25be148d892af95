//! Which files a path stands for.

use crate::error::DataError;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Parquet,
    Jsonl,
    Image,
}

pub(super) struct Input {
    pub path: PathBuf,
    pub kind: Kind,
}

/// A file itself; of a directory its data files by name, or else its images.
pub(super) fn files(path: &Path) -> Result<Vec<Input>, DataError> {
    let unknown = || DataError::UnknownKind { path: path.to_path_buf() };
    if !fs::metadata(path).map_err(|e| DataError::io(path, e))?.is_dir() {
        let kind = kind_of(path).filter(|k| *k != Kind::Image).ok_or_else(unknown)?;
        return Ok(vec![Input { path: path.to_path_buf(), kind }]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| DataError::io(path, e))? {
        let path = entry.map_err(|e| DataError::io(path, e))?.path();
        found.extend(kind_of(&path).map(|kind| Input { path, kind }));
    }
    // Images beside data files are what those point to.
    if found.iter().any(|f| f.kind != Kind::Image) {
        found.retain(|f| f.kind != Kind::Image);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    if found.is_empty() { Err(unknown()) } else { Ok(found) }
}

fn kind_of(path: &Path) -> Option<Kind> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "parquet" => Some(Kind::Parquet),
        "jsonl" | "ndjson" => Some(Kind::Jsonl),
        "png" | "jpg" | "jpeg" => Some(Kind::Image),
        _ => None,
    }
}
