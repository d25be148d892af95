//! `coordinator export`: a checkpoint that the ledger names, verified, as a model directory with a model card.

use super::cli::ExportOptions;
use crate::aside::{self, Aside};
use crate::card::{Facts, card};
use crate::checkpoints::{ADAPTER, MODEL};
use crate::ledger::{CheckpointRow, History};
use crate::prepare::hash_model;
use crate::run::{recover, supervised_per_step};
use anyhow::{Context, anyhow, bail, ensure};
use quorum_core::config::RunConfig;
use quorum_model::{Checkpoint, Partition, SaveDtype, SaveOptions};
use std::path::{Path, PathBuf};

pub(super) fn export(options: &ExportOptions) -> anyhow::Result<()> {
    let run = &options.run_dir;
    let (history, config) = super::opened(run)?;
    let (row, dir) = choose(run, &history.checkpoints(), options.step)?;
    let checkpoint = Checkpoint::open(Path::new(&config.model.path)).context("model.path of the run")?;
    // What was not trained comes from the base: another base would make another model than the one that was evaluated.
    let files = hash_model(Path::new(&config.model.path), &checkpoint, &Default::default())?;
    ensure!(
        history.meta.get("model_files").is_none_or(|began| *began == files),
        "the content of model.path {} changed since run {} began; put the old files back to export it",
        config.model.path,
        run.display()
    );
    let parts = Partition::of(&checkpoint.config, &checkpoint.layout, &config.train)?;
    let weights = weights(&history, &row, &dir, &parts)?;
    let dtype: SaveDtype = options.dtype.into();
    let facts = Facts { adapter: options.adapter, ..facts(run, &history, &row, &config, &checkpoint, dtype)? };
    let readme = card(&config, &facts);
    if options.adapter {
        quorum_model::save_adapter(
            &options.to,
            &checkpoint,
            &parts,
            &weights,
            &config.model.path,
            &[("README.md", readme)],
        )?;
    } else {
        let whole = quorum_model::merged(&checkpoint, &parts, &weights)?;
        let save = SaveOptions { dtype, shard_bytes: options.max_shard_size, extra: vec![("README.md", readme)] };
        checkpoint.save_with(&options.to, &whole, &save)?;
    }
    println!(
        "exported {} steps from {} to {} (weights_sha256 {}); README.md there is its model card",
        row.steps,
        dir.display(),
        options.to.display(),
        facts.weights_sha256
    );
    Ok(())
}

/// What a checkpoint's run trained. Its digest in the ledger is the proof that it is whole, whatever else is damaged.
fn weights(history: &History, row: &CheckpointRow, dir: &Path, parts: &Partition) -> anyhow::Result<Vec<f32>> {
    let another = "use another checkpoint with --step";
    let path = dir.join(if parts.lora.is_some() { ADAPTER } else { MODEL });
    let weights = quorum_model::load_safetensors(&path, &parts.trainable).with_context(|| another)?;
    let digest = quorum_core::digest::policy_digest(&weights, parts.precision);
    ensure!(
        digest == promised(history, row),
        "{} is damaged: it holds weights {digest}, the ledger says {}; {another}",
        path.display(),
        promised(history, row)
    );
    Ok(weights)
}

/// Digest of the version a checkpoint holds.
fn promised<'a>(history: &'a History, row: &CheckpointRow) -> &'a str {
    history.steps.iter().find(|s| s.version == row.steps).map(|s| s.digest.as_str()).unwrap_or_default()
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

/// What the card tells of the run.
fn facts(
    run: &Path,
    history: &History,
    row: &CheckpointRow,
    config: &RunConfig,
    checkpoint: &Checkpoint,
    dtype: SaveDtype,
) -> anyhow::Result<Facts> {
    let recovery = recover(history, supervised_per_step(config)).map_err(|e| anyhow!(e))?;
    let evaluation = |version: u64| recovery.evaluations.get(&version);
    let figures = |version: u64| evaluation(version).and_then(|e| e.figures(e.asked()));
    let meta = |key: &str| history.meta.get(key).cloned().unwrap_or_default();
    let gain = evaluation(0).zip(evaluation(row.steps)).and_then(|(before, after)| before.gain(after));
    // Runs of older versions have the list alone, which is cut short.
    let list = || std::fs::read_to_string(run.join(aside::FILE)).unwrap_or_default();
    let listed = |list: String| {
        list.lines().filter_map(|l| serde_json::from_str::<Aside>(l).ok()).filter(|a| a.step.is_none()).count()
    };
    Ok(Facts {
        steps: row.steps,
        samples: recovery.samples,
        weights_sha256: promised(history, row).to_owned(),
        start_sha256: meta("start_weights"),
        config_digest: meta("config_digest"),
        run_id: meta("run_id"),
        model_files: meta("model_files"),
        data_train: meta("data_train"),
        data_test: meta("data_test"),
        train_rows: meta("train_rows"),
        test_rows: meta("test_rows"),
        set_aside: meta("set_aside").parse().unwrap_or_else(|_| listed(list()) as u64),
        before: figures(0),
        after: figures(row.steps),
        gain,
        adapter: false,
        images: checkpoint.config.vision.is_some(),
        dtype: dtype.torch_name().to_owned(),
        quorum_version: match meta("quorum_version") {
            version if version.is_empty() => env!("CARGO_PKG_VERSION").to_owned(),
            version => version,
        },
    })
}
