//! `coordinator export`: a checkpoint that the ledger names, verified, as a model directory.

use super::cli::{Dtype, ExportOptions};
use crate::ledger::{CheckpointRow, Ledger};
use anyhow::{Context, anyhow, bail, ensure};
use quorum_core::digest::Sha256;
use quorum_model::{Checkpoint, SaveDtype};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(super) fn export(options: &ExportOptions) -> anyhow::Result<()> {
    let run = &options.run_dir;
    let ledger = run.join("ledger.db");
    ensure!(ledger.is_file(), "run directory {} holds no run (ledger.db is missing)", run.display());
    let history = Ledger::inspect(&ledger)?;
    let named = history.checkpoints();
    let (row, dir) = choose(run, &named, options.step)?;
    verify(&dir, &row)?;
    let config = quorum_core::config::load(Some(&run.join("config.resolved.toml")), &[])?;
    let checkpoint = Checkpoint::open(Path::new(&config.model.path)).context("model.path of the run")?;
    let weights = quorum_model::load_safetensors(&dir.join("model.safetensors"), &checkpoint.layout)?;
    let digest = quorum_core::digest::slab_digest(&weights);
    let promised = history.steps.iter().find(|s| s.version == row.steps).map(|s| s.digest.as_str()).unwrap_or_default();
    ensure!(digest == promised, "checkpoint {} holds weights {digest}, the ledger says {promised}", dir.display());
    let dtype = match options.dtype {
        Dtype::Bf16 => SaveDtype::Bf16,
        Dtype::F32 => SaveDtype::F32,
    };
    checkpoint.save(&options.to, &weights, dtype)?;
    println!("exported {} steps from {} to {}", row.steps, dir.display(), options.to.display());
    Ok(())
}

/// The checkpoint asked for, or the newest that is there.
fn choose(run: &Path, named: &[CheckpointRow], step: Option<u64>) -> anyhow::Result<(CheckpointRow, PathBuf)> {
    let there: Vec<(&CheckpointRow, PathBuf)> =
        named.iter().map(|c| (c, run.join("checkpoints").join(&c.name))).filter(|(_, d)| d.is_dir()).collect();
    let found = match step {
        None => there.first(),
        Some(step) => there.iter().find(|(c, _)| c.steps == step),
    };
    if let Some((row, dir)) = found {
        return Ok(((*row).clone(), dir.clone()));
    }
    let have: Vec<String> = there.iter().map(|(c, _)| c.steps.to_string()).collect();
    match step {
        Some(step) => bail!("run {} has no checkpoint of step {step}; it has: {}", run.display(), have.join(", ")),
        None => bail!("run {} has no checkpoint yet", run.display()),
    }
}

/// Checks the manifest against the ledger and every file against the manifest.
fn verify(dir: &Path, row: &CheckpointRow) -> anyhow::Result<()> {
    let path = dir.join("MANIFEST.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let digest = quorum_core::digest::sha256_hex(&text);
    ensure!(
        digest == row.manifest,
        "{} is not the one the ledger names; use another checkpoint with --step",
        path.display()
    );
    let manifest: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let files =
        manifest.get("files").and_then(Value::as_object).ok_or_else(|| anyhow!("{} lists no files", path.display()))?;
    for (name, entry) in files {
        let file = dir.join(name);
        let promised = entry.get("sha256").and_then(Value::as_str).unwrap_or_default();
        let found = sha256_of(&file).with_context(|| file.display().to_string())?;
        ensure!(
            found == promised,
            "{} is damaged (its SHA-256 is not the manifest's); use another checkpoint with --step",
            file.display()
        );
    }
    Ok(())
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hash.finish_hex()),
            n => hash.update(&part[..n]),
        }
    }
}
