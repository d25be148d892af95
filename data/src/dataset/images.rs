//! Images of records: loading those that are files without leaving the data directory, and looking at all of them on opening.

use super::build::{ImageCell, Outcomes};
use super::{ImageCheck, OpenOptions};
use crate::decode::{DecodeError, Limits, check_header, decode};
use crate::fault::Fault;
use crate::record::{ImageBytes, Record};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where a file's image paths may lead.
pub(super) struct Place<'a> {
    /// Directory of the file that names them.
    pub base: &'a Path,
    /// Directory of the data set: paths are tried from here next, and may not leave it.
    pub root: &'a Path,
}

/// The encoded image of a cell.
pub(super) fn load(cell: ImageCell, place: &Place, options: &OpenOptions) -> Result<ImageBytes, Fault> {
    let name = match cell {
        ImageCell::Bytes(bytes, path) => return Ok(ImageBytes::new(bytes, path)),
        ImageCell::Path(name) => name,
    };
    let path = resolve(&name, place, options)?;
    let bytes = read(&path, &options.limits).map_err(|f| Fault::new(f.kind, format!("image {name}: {}", f.reason)))?;
    Ok(ImageBytes::new(bytes, Some(name)))
}

/// The file that `name` means: relative to `data.image_root`, else to the file that names it, else to the data set.
fn resolve(name: &str, place: &Place, options: &OpenOptions) -> Result<PathBuf, Fault> {
    let fault = |reason: String| Fault::new(Fault::IMAGE_PATH, format!("image {name}: {reason}"));
    let root = options.image_root.as_deref().unwrap_or(place.root);
    let starts = if options.image_root.is_some() { vec![root] } else { vec![place.base, root] };
    let path = starts.iter().map(|s| s.join(name)).find(|p| p.exists());
    let Some(path) = path else {
        let tried = starts.first().map(|s| s.join(name).display().to_string()).unwrap_or_default();
        return Err(fault(format!("{tried} does not exist; paths start at the data file, or at data.image_root")));
    };
    let real = path.canonicalize().map_err(|e| fault(e.to_string()))?;
    let home = as_directory(root).canonicalize().map_err(|e| fault(format!("{}: {e}", root.display())))?;
    if real.starts_with(&home) || hub_blobs(&home).is_some_and(|blobs| real.starts_with(blobs)) {
        return Ok(real);
    }
    Err(fault(format!("leads out of {}; set data.image_root to a directory that holds all images", home.display())))
}

/// `""`, the parent of a bare file name, is the working directory.
fn as_directory(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// In the hub's cache (`datasets--x/snapshots/<revision>/…`) files are links into `datasets--x/blobs`.
fn hub_blobs(root: &Path) -> Option<PathBuf> {
    let snapshots = root.ancestors().find(|a| a.file_name().is_some_and(|n| n == "snapshots"))?;
    let blobs = snapshots.parent()?.join("blobs");
    blobs.is_dir().then_some(blobs)
}

fn read(path: &Path, limits: &Limits) -> Result<Vec<u8>, Fault> {
    let failed = |e: std::io::Error| Fault::new(Fault::IMAGE_PATH, e.to_string());
    // A pipe or device would be read for ever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Fault::new(Fault::IMAGE_PATH, "is not a file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limits.max_bytes {
        let reason = format!("more than data.max_image_bytes = {} bytes", limits.max_bytes);
        return Err(Fault::new(Fault::IMAGE_TOO_LARGE, reason));
    }
    Ok(bytes)
}

/// What is wrong with the images of each record, looked at by all cores; the result does not depend on how many.
pub(super) fn faults(outcomes: &Outcomes, options: &OpenOptions) -> Vec<Option<Fault>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = outcomes.len().div_ceil(threads).max(1);
    let fault = |outcome: &(u64, Result<Record, Fault>)| outcome.1.as_ref().ok().and_then(|r| of_record(r, options));
    std::thread::scope(|scope| {
        let parts: Vec<_> = outcomes
            .chunks(share)
            .map(|part| (part, scope.spawn(move || part.iter().map(fault).collect::<Vec<_>>())))
            .collect();
        let failed = |n| vec![Some(Fault::new(Fault::IMAGE_DECODE, "the image decoder failed")); n];
        let join = |(part, thread): (&[_], std::thread::ScopedJoinHandle<'_, _>)| {
            thread.join().unwrap_or_else(|_| failed(part.len()))
        };
        parts.into_iter().flat_map(join).collect()
    })
}

fn of_record(record: &Record, options: &OpenOptions) -> Option<Fault> {
    record.images.iter().enumerate().find_map(|(i, image)| {
        let found = match options.check {
            ImageCheck::Full => decode(&image.bytes, &options.limits).map(|_| ()),
            ImageCheck::Header => check_header(&image.bytes, &options.limits),
        };
        let error = found.err()?;
        let kind = match error {
            DecodeError::Unreadable(_) => Fault::IMAGE_DECODE,
            _ => Fault::IMAGE_TOO_LARGE,
        };
        let name = image.path.clone().unwrap_or_else(|| format!("image {i}"));
        Some(Fault::new(kind, format!("{name}: {error}")))
    })
}
