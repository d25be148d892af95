//! Checkpoints of several ranks: each writes the moments of its stretch, `optimizer-00002-of-00004.safetensors` with the flat tensors `m` and `v`;
//! rank 0 writes the rest, and the manifest when all are done. The run directory is one that all ranks see.

use super::draft::Draft;
use super::{CheckpointError, Entry, State, Written, damaged, measure};
use crate::collective::shares;
use crate::error::LearnerError;
use crate::group::Group;
use quorum_engine::OptimState;
use quorum_model::{Layout, Partition, load_slabs, save_slabs};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const TENSOR: &str = "moment";
const PREFIXES: [&str; 2] = ["m.", "v."];

/// File of rank `rank` of `world`.
fn file_of(rank: usize, world: usize) -> String {
    format!("optimizer-{:05}-of-{world:05}.safetensors", rank + 1)
}

/// Rank and world of such a file.
fn parse(name: &str) -> Option<(usize, usize)> {
    let (rank, world) = name
        .strip_prefix("optimizer-")?
        .strip_suffix(".safetensors")?
        .split_once("-of-")
        .map(|(r, w)| (r.parse(), w.parse()))?;
    let (rank, world): (usize, usize) = (rank.ok()?, world.ok()?);
    (rank >= 1 && rank <= world && file_of(rank - 1, world) == name).then(|| (rank - 1, world))
}

/// Whether a file of a manifest holds the moments of one of several ranks.
pub(super) fn is_shard(name: &str) -> bool {
    parse(name).is_some()
}

/// A flat stretch as a layout.
fn flat(length: usize) -> Layout {
    Layout::new([(TENSOR.to_owned(), vec![length])])
}

/// Writes `run_dir/checkpoints/step-NNNNNN` together with all other ranks; the result is the same on each.
///
/// # Errors
/// Names the file that could not be written, here or on another rank.
pub fn write(
    group: &mut Group,
    run_dir: &Path,
    parts: &Partition,
    state: &State,
    weights: &[f32],
    optim: OptimState<'_>,
) -> Result<Written, LearnerError> {
    let place = group.share();
    // Rank 0 makes the directory, everybody a file in it, rank 0 the rest.
    let draft = if group.leads() { Some(Draft::begin(run_dir, state.step)) } else { None };
    let (draft, told) = match draft.transpose() {
        Ok(draft) => {
            let name = draft.as_ref().and_then(|d| d.temporary.file_name()?.to_str()).unwrap_or_default();
            let name = name.as_bytes().to_vec();
            (draft, group.agree("beginning a checkpoint", Ok(name))?)
        }
        Err(error) => {
            return Err(group.agree("beginning a checkpoint", Err(error.into())).err().unwrap_or_else(unsaid));
        }
    };
    let name = told.first().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
    let temporary = run_dir.join("checkpoints").join(name);
    let own = write_own(&temporary, place.rank, place.world, optim).map_err(LearnerError::from);
    let entries = group.agree("writing a checkpoint", own)?;
    let written = match draft {
        Some(draft) => finish(draft, parts, state, weights, &entries).map_err(LearnerError::from),
        None => Ok(Vec::new()),
    };
    let told = group.agree("finishing a checkpoint", written)?;
    told.first().and_then(|bytes| serde_json::from_slice(bytes).ok()).ok_or_else(unsaid)
}

fn unsaid() -> LearnerError {
    LearnerError::Peer { rank: 0, what: "writing a checkpoint", reason: "its answer cannot be read".into() }
}

/// Writes this rank's moments; name, size and digest as JSON. Nothing for a stretch without elements.
fn write_own(dir: &Path, rank: usize, world: usize, optim: OptimState<'_>) -> Result<Vec<u8>, CheckpointError> {
    let mut files = BTreeMap::new();
    if !optim.m.is_empty() {
        let name = file_of(rank, world);
        let path = dir.join(&name);
        save_slabs(&path, &flat(optim.m.len()), &[(PREFIXES[0], optim.m), (PREFIXES[1], optim.v)])?;
        files.insert(name, measure(&path)?);
    }
    serde_json::to_vec(&files).map_err(|e| damaged(dir, e.to_string()))
}

fn finish(
    draft: Draft,
    parts: &Partition,
    state: &State,
    weights: &[f32],
    entries: &[Vec<u8>],
) -> Result<Vec<u8>, CheckpointError> {
    let mut moments: BTreeMap<String, Entry> = BTreeMap::new();
    let place = draft.temporary.clone();
    for bytes in entries {
        let files: BTreeMap<String, Entry> =
            serde_json::from_slice(bytes).map_err(|e| damaged(&place, format!("a rank's entry: {e}")))?;
        moments.extend(files);
    }
    let written = draft.finish(parts, state, weights, moments)?;
    serde_json::to_vec(&written).map_err(|e| damaged(&place, e.to_string()))
}

/// The stretch `owned` of both moments from the files of another number of ranks (or the same).
pub(super) fn load(
    dir: &Path,
    files: &[String],
    total: usize,
    owned: &Range<usize>,
) -> Result<[Vec<f32>; 2], CheckpointError> {
    let world = files.first().and_then(|f| parse(f)).map_or(0, |(_, world)| world);
    let mut out = [vec![0.0; owned.len()], vec![0.0; owned.len()]];
    let stretches: Vec<(PathBuf, Range<usize>)> = shares(total, world)
        .into_iter()
        .enumerate()
        .filter(|(_, stretch)| !stretch.is_empty())
        .map(|(rank, stretch)| (dir.join(file_of(rank, world)), stretch))
        .collect();
    let names: Vec<String> = stretches.iter().filter_map(|(p, _)| Some(p.file_name()?.to_str()?.to_owned())).collect();
    if names != files || world > total {
        return Err(damaged(dir, format!("its optimizer files are {}, not {}", files.join(", "), names.join(", "))));
    }
    for (path, stretch) in stretches {
        let wanted = stretch.start.max(owned.start)..stretch.end.min(owned.end);
        if wanted.is_empty() {
            continue;
        }
        let slabs = load_slabs(&path, &flat(stretch.len()), &PREFIXES)?;
        for (slab, out) in slabs.iter().zip(&mut out) {
            let from = slab.get(wanted.start - stretch.start..wanted.end - stretch.start);
            let to = out.get_mut(wanted.start - owned.start..wanted.end - owned.start);
            if let (Some(from), Some(to)) = (from, to) {
                to.copy_from_slice(from);
            }
        }
    }
    Ok(out)
}
