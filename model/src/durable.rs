//! Files and directories that appear whole or not at all, and survive a power cut once the call returns.

use crate::error::ModelError;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A name beside `path` that no other thread or process uses.
fn sibling(path: &Path) -> Result<PathBuf, ModelError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path has no last part; give a name");
        ModelError::io(path, "write", source)
    })?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".tmp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(hidden))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_directory(dir: &Path) -> Result<(), ModelError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| ModelError::io(dir, "flush to disk", e))
}

/// Writes `path` through `fill`: temporary file, fsync, rename, fsync of the directory.
pub(crate) fn write_file(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), WriteError>,
) -> Result<(), ModelError> {
    let temporary = sibling(path)?;
    let result = write_synced(&temporary, fill).map_err(|e| e.at(path)).and_then(|()| {
        std::fs::rename(&temporary, path).map_err(|e| ModelError::io(path, "rename into place", e))?;
        sync_directory(parent(path))
    });
    if result.is_err() {
        // Best effort: the error that is returned says what went wrong.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

fn write_synced(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<(), WriteError>) -> Result<(), WriteError> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    fill(&mut out)?;
    out.flush()?;
    Ok(out.get_ref().sync_all()?)
}

/// Makes the directory `path` with what `fill` writes into it. It must not exist, or be empty.
pub(crate) fn write_directory(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    if std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
        let source = std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "the directory is not empty; choose another or remove it",
        );
        return Err(ModelError::io(path, "save a checkpoint there", source));
    }
    std::fs::create_dir_all(parent(path)).map_err(|e| ModelError::io(parent(path), "create the directory", e))?;
    let temporary = sibling(path)?;
    std::fs::create_dir(&temporary).map_err(|e| ModelError::io(&temporary, "create the directory", e))?;
    let result = fill(&temporary).and_then(|()| {
        sync_directory(&temporary)?;
        std::fs::rename(&temporary, path).map_err(|e| ModelError::io(path, "rename into place", e))?;
        sync_directory(parent(path))
    });
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    result
}

/// Why filling a file failed.
pub(crate) enum WriteError {
    Io(std::io::Error),
    Content(String),
}

impl From<std::io::Error> for WriteError {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e)
    }
}

impl WriteError {
    fn at(self, path: &Path) -> ModelError {
        match self {
            Self::Io(e) => ModelError::io(path, "write", e),
            Self::Content(problem) => ModelError::weights(path, problem),
        }
    }
}
