//! Whole runs of the default recipe over seeds: majority vote, the same with ground truth as reward, the same with random reward.

use crate::bootstrap::{Interval, paired};
use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Arguments of `gain`.
#[derive(clap::Args)]
pub struct Args {
    /// RL seeds 1..=N.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// First RL seed.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Which rewards to run; default all three.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["majority", "ground-truth", "random"])]
    rewards: Vec<Reward>,
    /// Rollout workers.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// Where the run directories go.
    #[arg(long, default_value = "runs/gain")]
    out: PathBuf,
    /// Passed on to the coordinator, e.g. --set run.steps=10.
    #[arg(long = "set")]
    sets: Vec<String>,
    /// Passed on to the coordinator.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Where the reward of a run comes from.
#[derive(Clone, Copy, ValueEnum)]
enum Reward {
    Majority,
    GroundTruth,
    Random,
}

impl Reward {
    fn key(self) -> &'static str {
        match self {
            Reward::Majority => "majority",
            Reward::GroundTruth => "ground_truth",
            Reward::Random => "random",
        }
    }
}

/// One JSON line.
#[derive(Serialize)]
struct Line {
    reward: &'static str,
    seed: u64,
    n: usize,
    before: Value,
    after: Value,
    greedy: Interval,
    mean: Interval,
    mean_t03: Interval,
    vote: Interval,
    seconds: Value,
    weights_sha256: Value,
    run_dir: String,
}

/// Runs them one after another and prints one JSON line each.
pub fn run(args: &Args) -> anyhow::Result<()> {
    build()?;
    for seed in args.first_seed..args.first_seed + args.seeds {
        for &reward in &args.rewards {
            let dir = args.out.join(format!("{}-{seed}", reward.key()));
            if !dir.join("report.json").exists() {
                launch(args, reward, seed, &dir)?;
            }
            println!("{}", serde_json::to_string(&line(reward, seed, &dir)?)?);
        }
    }
    Ok(())
}

fn build() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(["build", "--release", "--quiet"]).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo build --release failed");
    }
    Ok(())
}

fn launch(args: &Args, reward: Reward, seed: u64, dir: &Path) -> anyhow::Result<()> {
    let coordinator = std::env::current_exe()?.with_file_name("coordinator");
    let mut command = Command::new(&coordinator);
    if dir.join("ledger.db").exists() {
        command.arg("--resume").arg(dir);
    } else {
        command.args(["--set", &format!("run.seed={seed}"), "--set", &format!("run.dir={}", dir.display())]);
        command.args(["--set", &format!("rollout.reward={}", reward.key())]);
        if matches!(reward, Reward::GroundTruth) {
            command.args(["--set", "data.train_labels=assets/data/unlabelled.labels.jsonl"]);
        }
        for set in &args.sets {
            command.args(["--set", set]);
        }
        if let Some(config) = &args.config {
            command.arg("--config").arg(config);
        }
    }
    command.args(["--workers", &args.workers.to_string(), "--progress", "plain"]);
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", coordinator.display()))?;
    if !status.success() {
        bail!("the run in {} failed: {status}", dir.display());
    }
    Ok(())
}

fn line(reward: Reward, seed: u64, dir: &Path) -> anyhow::Result<Line> {
    let report: Value = serde_json::from_slice(&std::fs::read(dir.join("report.json"))?)?;
    let before = questions(&dir.join("eval-before.jsonl"))?;
    let after = questions(&dir.join("eval-after.jsonl"))?;
    let interval = |key: &str| -> anyhow::Result<Interval> {
        Ok(paired(&column(&before, key)?, &column(&after, key)?, 2000, seed))
    };
    Ok(Line {
        reward: reward.key(),
        seed,
        n: before.len(),
        before: report["eval"]["before"].clone(),
        after: report["eval"]["after"].clone(),
        greedy: interval("greedy")?,
        mean: interval("mean")?,
        mean_t03: interval("mean_t03")?,
        vote: interval("vote")?,
        seconds: report["seconds"].clone(),
        weights_sha256: report["weights_sha256"].clone(),
        run_dir: dir.display().to_string(),
    })
}

fn questions(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|l| serde_json::from_str(l).with_context(|| format!("bad line in {}", path.display()))).collect()
}

/// Scores of one mode, 0..=1 a question.
fn column(rows: &[Value], key: &str) -> anyhow::Result<Vec<f64>> {
    let number = |row: &Value, key: &str| row[key].as_f64().with_context(|| format!("a question has no `{key}`"));
    let yes = |row: &Value| row[key].as_bool().map(f64::from).with_context(|| format!("a question has no `{key}`"));
    let score = |row: &Value| match key {
        "mean" => Ok(number(row, "correct")? / number(row, "samples")?),
        "mean_t03" => Ok(number(row, "correct_t03")? / number(row, "samples")?),
        _ => yes(row),
    };
    rows.iter().map(score).collect()
}
