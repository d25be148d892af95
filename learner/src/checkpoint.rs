//! Checkpoints: written whole or not at all, verified before use. Which of them count is the ledger's business, and so is pruning.
//!
//! Temporary directory → files, each durable → directory → MANIFEST.json with sizes and digests → rename → parent directory.

use quorum_core::digest::{Sha256, sha256_hex, slab_digest};
use quorum_engine::OptimState;
use quorum_model::{ModelError, Partition, load_safetensors, load_slabs, save_safetensors, save_slabs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

const MODEL: &str = "model.safetensors";
const ADAPTER: &str = "adapter.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "MANIFEST.json";
/// Prefixes of the two moments in the optimiser's file.
const MOMENTS: [&str; 2] = ["m.", "v."];
const FORMAT: u32 = 1;

/// Why a checkpoint cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("checkpoint {}: cannot {action}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("checkpoint {} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("`{0}` is not the name of a checkpoint (step-NNNNNN)")]
    Name(String),
}

/// Size and digest of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    sha256: String,
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    files: BTreeMap<String, Entry>,
}

/// Contents of `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub format: u32,
    /// Steps contained; also the policy version.
    pub step: u64,
    /// Optimiser steps taken.
    pub adam_steps: u64,
    /// SHA-256 of the trainable slab, f32.
    pub weights_sha256: String,
    pub run_id: String,
    pub config_digest: String,
}

/// A verified checkpoint in memory.
#[derive(Debug)]
pub struct Loaded {
    pub state: State,
    pub weights: Vec<f32>,
    pub m: Vec<f32>,
    pub v: Vec<f32>,
}

/// A checkpoint on disk, invisible until the ledger names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub name: String,
    pub manifest_sha256: String,
    pub bytes: u64,
}

/// The file of the trainable weights.
fn weights_file(parts: &Partition) -> &'static str {
    if parts.lora.is_some() { ADAPTER } else { MODEL }
}

/// `step-000042`.
pub fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

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
    let parent = run_dir.join("checkpoints");
    let name = name_of(state.step);
    let (temporary, target) = (parent.join(format!(".tmp-{name}-{}", std::process::id())), parent.join(&name));
    remove(&temporary)?;
    fs::create_dir_all(&temporary).map_err(io(&temporary, "create it"))?;
    let (layout, file) = (&parts.trainable, weights_file(parts));
    save_safetensors(&temporary.join(file), layout, weights)?;
    save_slabs(&temporary.join(OPTIMIZER), layout, &[(MOMENTS[0], optim.m), (MOMENTS[1], optim.v)])?;
    let text = serde_json::to_vec_pretty(state).map_err(|e| damaged(&temporary, e.to_string()))?;
    write_durable(&temporary.join(STATE), &text)?;
    sync_directory(&temporary)?;
    let mut manifest = Manifest { files: BTreeMap::new() };
    for file in [file, OPTIMIZER, STATE] {
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

/// Loads a checkpoint after checking every byte of it.
///
/// # Errors
/// `Damaged` says what is missing or differs; never a panic, whatever the files hold.
pub fn load(run_dir: &Path, name: &str, parts: &Partition) -> Result<Loaded, CheckpointError> {
    let digits = name.strip_prefix("step-").unwrap_or_default();
    let step: u64 =
        digits.parse().ok().filter(|_| digits.len() >= 6).ok_or_else(|| CheckpointError::Name(name.to_owned()))?;
    let dir = run_dir.join("checkpoints").join(name);
    let (layout, file) = (&parts.trainable, weights_file(parts));
    verify(&dir, file)?;
    let text = fs::read(dir.join(STATE)).map_err(io(&dir, "read state.json"))?;
    let state: State = serde_json::from_slice(&text).map_err(|e| damaged(&dir, format!("{STATE}: {e}")))?;
    if state.format != FORMAT {
        return Err(damaged(&dir, format!("{STATE} has format {}, this build reads {FORMAT}", state.format)));
    }
    if state.step != step {
        return Err(damaged(&dir, format!("{STATE} says step {}", state.step)));
    }
    let weights = load_safetensors(&dir.join(file), layout)?;
    let mut moments = load_slabs(&dir.join(OPTIMIZER), layout, &MOMENTS)?.into_iter();
    let (Some(m), Some(v)) = (moments.next(), moments.next()) else {
        return Err(damaged(&dir, format!("{OPTIMIZER} lacks a moment")));
    };
    let digest = slab_digest(&weights);
    if digest != state.weights_sha256 {
        return Err(damaged(&dir, format!("its weights have digest {digest}, {STATE} says {}", state.weights_sha256)));
    }
    Ok(Loaded { state, weights, m, v })
}

/// The run a checkpoint must be of.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    pub run_id: &'a str,
    pub config_digest: &'a str,
}

impl Origin<'_> {
    /// A directory copied from another run, or from one with other settings, is whole and wrong all the same.
    fn check(&self, dir: &Path, loaded: Loaded) -> Result<Loaded, CheckpointError> {
        let state = &loaded.state;
        for (what, found, wanted) in
            [("run", &state.run_id, self.run_id), ("configuration", &state.config_digest, self.config_digest)]
        {
            if found != wanted {
                return Err(damaged(
                    dir,
                    format!("it is of {what} {found}, this is {what} {wanted}; put the run's own back"),
                ));
            }
        }
        Ok(loaded)
    }
}

/// The first of `names` that verifies and is of this run; each that does not is named in the log.
pub fn load_newest(run_dir: &Path, names: &[String], parts: &Partition, origin: Origin<'_>) -> Option<Loaded> {
    for name in names {
        let dir = run_dir.join("checkpoints").join(name);
        match load(run_dir, name, parts).and_then(|loaded| origin.check(&dir, loaded)) {
            Ok(loaded) => return Some(loaded),
            Err(error) => tracing::warn!(%error, "checkpoint not used; falling back to an older one"),
        }
    }
    None
}

/// A fresh `State`.
pub fn state(step: u64, adam_steps: u64, weights_sha256: &str, run_id: &str, config_digest: &str) -> State {
    State {
        format: FORMAT,
        step,
        adam_steps,
        weights_sha256: weights_sha256.to_owned(),
        run_id: run_id.to_owned(),
        config_digest: config_digest.to_owned(),
    }
}

/// Checks every file of the manifest.
fn verify(dir: &Path, weights: &str) -> Result<(), CheckpointError> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).map_err(io(&path, "read it"))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| damaged(dir, format!("{MANIFEST}: {e}")))?;
    for file in [weights, OPTIMIZER, STATE] {
        let promised = manifest.files.get(file).ok_or_else(|| damaged(dir, format!("{MANIFEST} lacks {file}")))?;
        let found = measure(&dir.join(file))?;
        if found.bytes != promised.bytes {
            return Err(damaged(dir, format!("{file} has {} bytes, {MANIFEST} says {}", found.bytes, promised.bytes)));
        }
        if found.sha256 != promised.sha256 {
            return Err(damaged(
                dir,
                format!("{file} has SHA-256 {}, {MANIFEST} says {}", found.sha256, promised.sha256),
            ));
        }
    }
    Ok(())
}

/// Size and digest of a file as it lies on disk.
fn measure(path: &Path) -> Result<Entry, CheckpointError> {
    let mut file = File::open(path).map_err(io(path, "open it"))?;
    let mut hash = Sha256::new();
    let (mut part, mut bytes) = (vec![0u8; 1 << 20], 0u64);
    loop {
        let n = file.read(&mut part).map_err(io(path, "read it"))?;
        if n == 0 {
            return Ok(Entry { sha256: hash.finish_hex(), bytes });
        }
        hash.update(part.get(..n).unwrap_or_default());
        bytes += n as u64;
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

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> CheckpointError + use<> {
    let path = path.to_path_buf();
    move |source| CheckpointError::Io { path, action, source }
}

fn damaged(path: &Path, reason: String) -> CheckpointError {
    CheckpointError::Damaged { path: path.to_path_buf(), reason }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
