//! Checkpoints: written whole or not at all, verified before use. Which of them count is the ledger's business, and so is pruning.
//! One rank writes its moments into one file; of several each writes its own (`sharded`). Either can be loaded by any number of ranks.

mod draft;
pub mod sharded;

pub use draft::write;

use crate::error::LearnerError;
use crate::group::Group;
use quorum_core::digest::{Sha256, slab_digest};
use quorum_model::{Layout, ModelError, Partition, load_safetensors, load_slabs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::ops::Range;
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
    /// Moments of the stretch asked for.
    pub m: Vec<f32>,
    pub v: Vec<f32>,
}

/// A checkpoint on disk, invisible until the ledger names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Loads a checkpoint after checking every byte of it; of the moments, the stretch `owned`.
///
/// # Errors
/// `Damaged` says what is missing or differs; never a panic, whatever the files hold.
pub fn load(run_dir: &Path, name: &str, parts: &Partition, owned: &Range<usize>) -> Result<Loaded, CheckpointError> {
    let digits = name.strip_prefix("step-").unwrap_or_default();
    let step: u64 =
        digits.parse().ok().filter(|_| digits.len() >= 6).ok_or_else(|| CheckpointError::Name(name.to_owned()))?;
    let dir = run_dir.join("checkpoints").join(name);
    let (layout, file) = (&parts.trainable, weights_file(parts));
    let moments = verify(&dir, file)?;
    let text = fs::read(dir.join(STATE)).map_err(io(&dir, "read state.json"))?;
    let state: State = serde_json::from_slice(&text).map_err(|e| damaged(&dir, format!("{STATE}: {e}")))?;
    if state.format != FORMAT {
        return Err(damaged(&dir, format!("{STATE} has format {}, this build reads {FORMAT}", state.format)));
    }
    if state.step != step {
        return Err(damaged(&dir, format!("{STATE} says step {}", state.step)));
    }
    let weights = load_safetensors(&dir.join(file), layout)?;
    let [m, v] = load_moments(&dir, &moments, layout, owned)?;
    let digest = slab_digest(&weights);
    if digest != state.weights_sha256 {
        return Err(damaged(&dir, format!("its weights have digest {digest}, {STATE} says {}", state.weights_sha256)));
    }
    Ok(Loaded { state, weights, m, v })
}

/// The stretch `owned` of both moments, from one file or from those of several ranks.
fn load_moments(
    dir: &Path,
    files: &[String],
    layout: &Layout,
    owned: &Range<usize>,
) -> Result<[Vec<f32>; 2], CheckpointError> {
    if files != [OPTIMIZER] {
        return sharded::load(dir, files, layout.total(), owned);
    }
    let mut slabs = load_slabs(&dir.join(OPTIMIZER), layout, &MOMENTS)?
        .into_iter()
        .map(|slab| if *owned == (0..slab.len()) { Some(slab) } else { slab.get(owned.clone()).map(<[f32]>::to_vec) });
    match (slabs.next().flatten(), slabs.next().flatten()) {
        (Some(m), Some(v)) => Ok([m, v]),
        _ => Err(damaged(dir, format!("{OPTIMIZER} lacks a moment"))),
    }
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

/// The first of `names` that verifies on every rank and is of this run; each that does not is named in the log.
///
/// # Errors
/// A rank is lost or late.
pub fn load_newest(
    run_dir: &Path,
    names: &[String],
    parts: &Partition,
    origin: Origin<'_>,
    owned: &Range<usize>,
    group: &mut Group,
) -> Result<Option<Loaded>, LearnerError> {
    for name in names {
        let dir = run_dir.join("checkpoints").join(name);
        let loaded = load(run_dir, name, parts, owned).and_then(|loaded| origin.check(&dir, loaded));
        if let Err(error) = &loaded {
            quorum_core::metric::CHECKPOINT_FAILURES.with(["verify"]).increment(1);
            tracing::warn!(%error, "checkpoint not used; falling back to an older one");
        }
        let everywhere = group.agree("a checkpoint", Ok(vec![u8::from(loaded.is_ok())]))?;
        match everywhere.iter().position(|said| *said != [1]) {
            None => return Ok(loaded.ok()),
            Some(rank) if loaded.is_ok() => tracing::warn!(name, rank, "checkpoint not used: that rank cannot use it"),
            Some(_) => {}
        }
    }
    Ok(None)
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

/// Checks every file of a checkpoint; returns those that hold moments.
fn verify(dir: &Path, weights: &str) -> Result<Vec<String>, CheckpointError> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).map_err(io(&path, "read it"))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| damaged(dir, format!("{MANIFEST}: {e}")))?;
    let shards = manifest.files.keys().filter(|name| sharded::is_shard(name)).cloned();
    let moments = match shards.collect::<Vec<_>>() {
        none if none.is_empty() => vec![OPTIMIZER.to_owned()],
        some => some,
    };
    for file in moments.iter().map(String::as_str).chain([weights, STATE]) {
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
    Ok(moments)
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
