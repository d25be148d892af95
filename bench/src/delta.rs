//! What the difference between two checkpoints takes beside the whole: ratio, and the processor time to make and to apply it.

use anyhow::{Context, ensure};
use quorum_core::config::Precision;
use quorum_core::delta;
use quorum_core::digest::{f32_from_le, policy_to_le};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `delta`.
#[derive(clap::Args)]
pub struct Args {
    /// Run directory with checkpoints of successive steps (`checkpoint.every = 1`).
    dir: PathBuf,
}

/// One JSON line a precision: sums over all pairs of successive checkpoints.
#[derive(Serialize)]
struct Line {
    bench: &'static str,
    precision: &'static str,
    pairs: usize,
    bytes: usize,
    ratio_mean: f64,
    ratio_least: f64,
    ratio_most: f64,
    encode_mb_per_second: f64,
    decode_mb_per_second: f64,
}

/// Prints a line for f32 and one for bf16.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let versions = checkpoints(&args.dir)?;
    ensure!(versions.len() > 1, "{} has fewer than two checkpoints", args.dir.display());
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        let versions: Vec<Vec<u8>> = versions.iter().map(|v| policy_to_le(v, precision)).collect();
        println!("{}", serde_json::to_string(&measure(name, precision, &versions)?)?);
    }
    Ok(())
}

fn measure(name: &'static str, precision: Precision, versions: &[Vec<u8>]) -> anyhow::Result<Line> {
    let (mut ratios, mut made, mut applied) = (Vec::new(), 0.0, 0.0);
    for pair in versions.windows(2) {
        let [old, new] = pair else { continue };
        ensure!(old.len() == new.len(), "the checkpoints are of different models");
        let part = |bytes: &[u8], from: usize, len: usize| bytes.get(from..from + len).unwrap_or_default().to_vec();
        let began = Instant::now();
        let piece = |from, len| Some((part(old, from, len), part(new, from, len)));
        let delta = delta::encode(new.len(), precision, usize::MAX, piece)?.context("it has no limit")?;
        made += began.elapsed().as_secs_f64();
        let mut back = Vec::with_capacity(new.len());
        let began = Instant::now();
        delta::decode(&delta, new.len(), precision, |f, l| part(old, f, l), |b| back.extend_from_slice(b))?;
        applied += began.elapsed().as_secs_f64();
        ensure!(&back == new, "the bits differ");
        ratios.push(delta.len() as f64 / new.len() as f64);
    }
    let bytes = versions.first().map_or(0, Vec::len);
    let megabytes = bytes as f64 * ratios.len() as f64 / 1e6;
    Ok(Line {
        bench: "delta",
        precision: name,
        pairs: ratios.len(),
        bytes,
        ratio_mean: ratios.iter().sum::<f64>() / ratios.len() as f64,
        ratio_least: ratios.iter().copied().fold(f64::INFINITY, f64::min),
        ratio_most: ratios.iter().copied().fold(0.0, f64::max),
        encode_mb_per_second: megabytes / made,
        decode_mb_per_second: megabytes / applied,
    })
}

/// The values of each checkpoint's trainable weights, in order of steps.
fn checkpoints(dir: &Path) -> anyhow::Result<Vec<Vec<f32>>> {
    let place = dir.join("checkpoints");
    let mut names: Vec<PathBuf> = std::fs::read_dir(&place)
        .with_context(|| place.display().to_string())?
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    names.sort();
    names.iter().map(|step| values(step)).collect()
}

/// The tensors of a checkpoint end to end; Quorum's own are all f32.
fn values(step: &Path) -> anyhow::Result<Vec<f32>> {
    let path = ["model.safetensors", "adapter.safetensors"].iter().map(|f| step.join(f)).find(|p| p.is_file());
    let path = path.with_context(|| format!("{} has no weights", step.display()))?;
    let bytes = std::fs::read(&path)?;
    let header = bytes.first_chunk::<8>().and_then(|h| usize::try_from(u64::from_le_bytes(*h)).ok());
    let data = header.and_then(|h| bytes.get(h.checked_add(8)?..));
    let mut values = Vec::new();
    f32_from_le(data.with_context(|| format!("{} is no safetensors file", path.display()))?, &mut values);
    Ok(values)
}
