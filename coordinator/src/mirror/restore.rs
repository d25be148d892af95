//! From a bucket into an empty run directory: the newest complete copy whose every digest is right.

use super::manifest::Manifest;
use super::store::Store;
use super::{MirrorError, Place, claim};
use crate::checkpoints;
use crate::ledger::Ledger;
use std::path::Path;

/// Where a copy arrives before it counts.
const ARRIVING: &str = ".arriving";

/// Fills `dir`, which must hold no run, and returns the steps contained. The next coordinator on it has a higher epoch than any that wrote to `place`.
///
/// # Errors
/// There is no complete and undamaged copy, or the directory is taken or cannot be written.
pub async fn restore(place: &Place, dir: &Path) -> Result<u64, MirrorError> {
    from(&Store::open(place)?, dir).await
}

pub(super) async fn from(store: &Store, dir: &Path) -> Result<u64, MirrorError> {
    let local = |path: &Path, reason: String| MirrorError::Local { path: path.display().to_string(), reason };
    for name in [crate::rundir::LEDGER, "config.resolved.toml", "checkpoints"] {
        if dir.join(name).exists() {
            return Err(local(dir, format!("it holds {name} already: give an empty --run-dir")));
        }
    }
    let names = store.list("snapshots").await?;
    let manifests = names.iter().rev().filter(|n| n.ends_with(".json") && n.matches('/').count() == 1);
    let mut passed_over = Vec::new();
    for name in manifests {
        let arriving = dir.join(ARRIVING);
        let _ = std::fs::remove_dir_all(&arriving);
        std::fs::create_dir_all(&arriving).map_err(|e| local(&arriving, e.to_string()))?;
        match fetch(store, name, &arriving).await {
            Ok(manifest) => {
                let epoch = claim::newest(store).await?.max(manifest.epoch);
                Ledger::raise_epoch(&arriving.join(crate::rundir::LEDGER), epoch)
                    .map_err(|e| local(&arriving, e.to_string()))?;
                settle(&arriving, dir).map_err(|e| local(dir, e.to_string()))?;
                return Ok(manifest.steps);
            }
            Err(error) => {
                tracing::warn!("{}/{name} is passed over: {error}", store.place);
                passed_over.push(format!("{name}: {error}"));
            }
        }
    }
    let passed_over = if passed_over.is_empty() { String::new() } else { format!(" ({})", passed_over.join("; ")) };
    Err(MirrorError::Nothing { place: store.place.clone(), passed_over })
}

/// Downloads one copy and checks all of it.
async fn fetch(store: &Store, name: &str, to: &Path) -> Result<Manifest, MirrorError> {
    let damaged =
        |reason: String| MirrorError::Store { place: store.place.clone(), action: format!("verifying {name}"), reason };
    let manifest: Manifest = serde_json::from_slice(&store.read(name).await?).map_err(|e| damaged(e.to_string()))?;
    if !manifest.sound() {
        return Err(damaged("its manifest cannot be used by this build".into()));
    }
    let folder = name.trim_end_matches(".json");
    for file in &manifest.files {
        let path = to.join(&file.path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| damaged(e.to_string()))?;
        }
        let (bytes, sha256) = store.download(&format!("{folder}/{}", file.path), &path).await?;
        if (bytes, &sha256) != (file.bytes, &file.sha256) {
            return Err(damaged(format!("{} has another size or SHA-256 than promised", file.path)));
        }
    }
    let history = Ledger::inspect(&to.join(crate::rundir::LEDGER)).map_err(|e| damaged(e.to_string()))?;
    let row = history.checkpoints().into_iter().find(|c| c.name == manifest.checkpoint);
    let row = row.ok_or_else(|| damaged(format!("its ledger does not name {}", manifest.checkpoint)))?;
    checkpoints::verify(&to.join("checkpoints").join(&row.name), &row).map_err(|f| damaged(f.reason))?;
    Ok(manifest)
}

/// Moves everything to its place, the ledger last: without it there is no run.
fn settle(arriving: &Path, dir: &Path) -> std::io::Result<()> {
    let mut names: Vec<_> = std::fs::read_dir(arriving)?.flatten().map(|e| e.file_name()).collect();
    names.sort_by_key(|n| n == crate::rundir::LEDGER);
    for name in names {
        std::fs::rename(arriving.join(&name), dir.join(&name))?;
    }
    std::fs::remove_dir(arriving)?;
    std::fs::File::open(dir)?.sync_all()
}
