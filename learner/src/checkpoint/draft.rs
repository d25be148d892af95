//! Writing a checkpoint: temporary directory → files, each durable → directory → MANIFEST.json with sizes and digests → rename → parent directory.

use super::{
    CheckpointError, Entry, MANIFEST, MOMENTS, Manifest, OPTIMIZER, STATE, State, Written, damaged, io, measure,
    name_of, weights_file,
};
use quorum_core::digest::sha256_hex;
use quorum_engine::OptimState;
use quorum_model::{Partition, save_safetensors, save_slabs};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Writes `run_dir/checkpoints/step-NNNNNN`. One that is there already was never committed (or is this very one again) and is replaced.
///
/// # Errors
/// Names the file that could not be written; nothing under the final name has changed then.
pub fn write(
    run_dir: &Path,
    parts: &Partition,
    state: &State,
    weights: &[f32],
    optim: OptimState<'_>,
) -> Result<Written, CheckpointError> {
    let draft = Draft::begin(run_dir, state.step)?;
    let path = draft.temporary.join(OPTIMIZER);
    save_slabs(&path, &parts.trainable, &[(MOMENTS[0], optim.m), (MOMENTS[1], optim.v)])?;
    let moments = [(OPTIMIZER.to_owned(), measure(&path)?)].into();
    draft.finish(parts, state, weights, moments)
}

/// A checkpoint while it is written.
pub(super) struct Draft {
    parent: PathBuf,
    pub(super) temporary: PathBuf,
    name: String,
}

impl Draft {
    /// An empty directory under a temporary name.
    pub(super) fn begin(run_dir: &Path, step: u64) -> Result<Self, CheckpointError> {
        let (parent, name) = (run_dir.join("checkpoints"), name_of(step));
        let temporary = parent.join(format!(".tmp-{name}-{}", std::process::id()));
        remove(&temporary)?;
        fs::create_dir_all(&temporary).map_err(io(&temporary, "create it"))?;
        Ok(Self { parent, temporary, name })
    }

    /// Adds the other files to the moments that lie there, and gives the whole its name.
    pub(super) fn finish(
        self,
        parts: &Partition,
        state: &State,
        weights: &[f32],
        moments: BTreeMap<String, Entry>,
    ) -> Result<Written, CheckpointError> {
        let Self { parent, temporary, name } = self;
        let (file, target) = (weights_file(parts), parent.join(&name));
        save_safetensors(&temporary.join(file), &parts.trainable, weights)?;
        let text = serde_json::to_vec_pretty(state).map_err(|e| damaged(&temporary, e.to_string()))?;
        write_durable(&temporary.join(STATE), &text)?;
        sync_directory(&temporary)?;
        let mut manifest = Manifest { files: moments };
        for file in [file, STATE] {
            manifest.files.insert(file.to_owned(), measure(&temporary.join(file))?);
        }
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| damaged(&temporary, e.to_string()))?;
        write_durable(&temporary.join(MANIFEST), &text)?;
        sync_directory(&temporary)?;
        remove(&target)?;
        fs::rename(&temporary, &target).map_err(io(&target, "rename it into place"))?;
        sync_directory(&parent)?;
        let bytes = manifest.files.values().map(|f| f.bytes).sum();
        Ok(Written { name, manifest_sha256: sha256_hex(&text), bytes })
    }
}

fn write_durable(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut file = File::create(path).map_err(io(path, "create it"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(path, "write it"))
}

fn sync_directory(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(io(path, "make it durable"))
}

fn remove(path: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(path, "remove the old one")(e)),
        _ => Ok(()),
    }
}
