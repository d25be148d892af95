//! The cost model against whole runs on this machine: the rates come from one run with one worker, the step times of the others are predicted from them.

use super::cost::{self, Job, Machines, Step};
use crate::swarm::process::Coordinator;
use anyhow::{Context, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

/// Arguments of `scale-runs`.
#[derive(clap::Args)]
pub struct Args {
    /// The run that the rates are taken from: workers x prompts a step x samples a prompt x prompts a lease.
    #[arg(long, default_value = "1x64x8x16")]
    calibrate: Shape,
    /// The runs that are predicted.
    #[arg(long, value_delimiter = ',', default_values = ["2x64x8x16", "1x128x8x16", "2x128x8x16", "2x96x8x32", "2x128x4x16", "1x64x16x16"])]
    cases: Vec<Shape>,
    /// Steps of each run; the first two are not counted.
    #[arg(long, default_value_t = 12)]
    steps: u64,
    /// Threads of each worker, and of the learner.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Bytes a second over loopback.
    #[arg(long, default_value_t = 1e9)]
    bandwidth: f64,
    /// Lease + submit pairs a second: `quorum-bench swarm`.
    #[arg(long, default_value_t = 5000.0)]
    pairs: f64,
    /// Longest wait for one run, seconds.
    #[arg(long, default_value_t = 1800.0)]
    limit: f64,
    /// Scratch directory; it must not exist.
    #[arg(long, default_value = "runs/scale")]
    dir: PathBuf,
    /// More settings, e.g. model.path=DIR.
    #[arg(long = "set")]
    sets: Vec<String>,
}

/// What differs between the runs.
#[derive(Debug, Clone, Copy, Serialize)]
struct Shape {
    workers: u32,
    prompts: u32,
    samples: u32,
    lease: u32,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<u32> = text.split('x').filter_map(|n| n.parse().ok().filter(|n| *n > 0)).collect();
        match numbers[..] {
            [workers, prompts, samples, lease] => Ok(Self { workers, prompts, samples, lease }),
            _ => Err("give workers x prompts x samples x lease, e.g. 2x64x8x16".into()),
        }
    }
}

/// Seconds of a step of a whole run, means over its counted steps.
#[derive(Debug, Clone, Copy, Serialize)]
struct Measured {
    /// The learner waits for the batch: weights, leases and sampling.
    sampling: f64,
    /// Everything else.
    training: f64,
    total: f64,
    /// Mean tokens of a response.
    response_tokens: f64,
    steps: usize,
}

/// One JSON line a run.
#[derive(Serialize)]
struct Line {
    bench: &'static str,
    case: Shape,
    measured: Measured,
    /// Of the run that the rates are from: the rates themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Rates>,
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted: Option<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prediction_off: Option<f64>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Rates {
    prompt_tokens: f64,
    response_tokens: f64,
    decode: f64,
    train: f64,
    weight_bytes: f64,
}

/// Runs the calibration and the cases one after another.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.steps > 2, "--steps must be above 2: the first two are not counted");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measure = |shape: Shape| runtime.block_on(whole_run(args, shape)).with_context(|| format!("case {shape:?}"));
    let (prompt_tokens, weight_bytes) = planned(args)?;
    let first = measure(args.calibrate)?;
    let rates = rates(args.calibrate, &first, prompt_tokens, weight_bytes);
    print(&Line {
        bench: "scale-runs",
        case: args.calibrate,
        measured: first,
        rates: Some(rates),
        predicted: None,
        prediction_off: None,
    })?;
    for &case in &args.cases {
        let measured = measure(case)?;
        let predicted = cost::step(&job(case, &rates), &machines(args, case, &rates));
        let off = predicted.total / measured.total - 1.0;
        print(&Line {
            bench: "scale-runs",
            case,
            measured,
            rates: None,
            predicted: Some(predicted),
            prediction_off: Some(off),
        })?;
    }
    Ok(())
}

fn print(line: &Line) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}

/// The formulas of `docs/scaling.md`, solved for d and t.
fn rates(shape: Shape, measured: &Measured, prompt_tokens: f64, weight_bytes: f64) -> Rates {
    let [prompts, samples, workers] = [shape.prompts, shape.samples, shape.workers].map(f64::from);
    let generated = prompts * samples * measured.response_tokens;
    Rates {
        prompt_tokens,
        response_tokens: measured.response_tokens,
        decode: generated / measured.sampling / workers,
        train: (prompts * prompt_tokens + generated) / measured.training,
        weight_bytes,
    }
}

fn job(shape: Shape, rates: &Rates) -> Job {
    Job {
        parameters: rates.weight_bytes / 4.0,
        weight_bytes: rates.weight_bytes,
        prompts: shape.prompts.into(),
        samples: shape.samples.into(),
        prompt_tokens: rates.prompt_tokens,
        response_tokens: rates.response_tokens,
    }
}

fn machines(args: &Args, shape: Shape, rates: &Rates) -> Machines {
    Machines {
        workers: shape.workers.into(),
        decode_rate: rates.decode,
        ranks: 1.0,
        train_rate: rates.train,
        bandwidth: args.bandwidth,
        fan_out: f64::from(shape.workers),
        pairs: args.pairs,
        lease: shape.lease.into(),
    }
}

/// Median tokens of a prompt and bytes of a version, from `coordinator plan`.
fn planned(args: &Args) -> anyhow::Result<(f64, f64)> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("coordinator"));
    command.args(["plan", "--json"]);
    for set in &args.sets {
        command.args(["--set", set]);
    }
    let out = command.stderr(Stdio::inherit()).output().context("cannot start coordinator: build it first")?;
    ensure!(out.status.success(), "coordinator plan failed: {}", out.status);
    let plan: Value = serde_json::from_slice(&out.stdout)?;
    let number =
        |path: &str| plan.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path} in the plan"));
    Ok((number("/prompts/tokens/median")?, 4.0 * number("/model/trainable")?))
}

/// Learner and workers; killed on drop.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn whole_run(args: &Args, shape: Shape) -> anyhow::Result<Measured> {
    let Shape { workers, prompts, samples, lease } = shape;
    let dir = args.dir.join(format!("{workers}x{prompts}x{samples}x{lease}"));
    let mut sets = args.sets.clone();
    // Every group is trained on, so that the work does not depend on the votes; and nothing but steps is timed.
    sets.extend(
        ["objective.skip_flat_groups=false", "vote.band_low=0", "view.count=4", "eval.enabled=false"]
            .map(str::to_owned),
    );
    sets.extend(["checkpoint.every=1000", "cluster.listen=127.0.0.1:0", "cluster.http=127.0.0.1:0"].map(str::to_owned));
    sets.push(format!("run.steps={}", args.steps));
    sets.push(format!("run.dir={}", dir.display()));
    sets.push(format!("rollout.prompts_per_step={prompts}"));
    sets.push(format!("rollout.group_size={samples}"));
    sets.push(format!("cluster.prompts_per_lease={lease}"));
    let mut coordinator = Coordinator::start(None, &dir, &sets)?;
    let url = coordinator.url().await?;
    let mut children = Children(Vec::new());
    let programs = std::iter::once(("learner", 0)).chain((0..workers).map(|w| ("rollout-worker", w)));
    for (program, index) in programs {
        let path = std::env::current_exe()?.with_file_name(program);
        let mut command = Command::new(&path);
        command.args(["--coordinator", &url, "--threads", &args.threads.to_string(), "--log", "warn"]);
        command.args(["--id", &format!("{program}-{index}")]).stdin(Stdio::null()).stdout(Stdio::null());
        children.0.push(command.spawn().with_context(|| format!("{}: build it first", path.display()))?);
    }
    coordinator.ended(Duration::from_secs_f64(args.limit)).await?;
    measured(&dir)
}

fn measured(dir: &Path) -> anyhow::Result<Measured> {
    let column = |file: &str, key: &str| -> anyhow::Result<Vec<f64>> {
        let path = dir.join(file);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let value = |line: &str| serde_json::from_str::<Value>(line).ok()?.get(key)?.as_f64();
        let all: Option<Vec<f64>> = text.lines().skip(2).map(value).collect();
        match all {
            Some(all) if !all.is_empty() => Ok(all),
            _ => bail!("{} lacks {key}", path.display()),
        }
    };
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (steps, waits) = (column("timing.jsonl", "step_seconds")?, column("timing.jsonl", "wait_batch_seconds")?);
    let (total, sampling) = (mean(&steps), mean(&waits));
    let response_tokens = mean(&column("metrics.jsonl", "response_length_mean")?);
    Ok(Measured { sampling, training: total - sampling, total, response_tokens, steps: steps.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_reproduce_the_run_they_come_from() {
        let shape: Shape = "2x64x8x16".parse().unwrap();
        let measured = Measured { sampling: 2.0, training: 1.0, total: 3.0, response_tokens: 20.0, steps: 1 };
        let rates = rates(shape, &measured, 24.0, 0.0);
        let args = <crate::Cli as clap::Parser>::parse_from(["bench", "scale-runs", "--pairs", "1e12"]);
        let crate::Command::ScaleRuns(args) = args.command else { panic!("scale-runs") };
        let step = cost::step(&job(shape, &rates), &machines(&args, shape, &rates));
        assert!((step.total - 3.0).abs() < 1e-6 && (step.sampling - 2.0).abs() < 1e-6, "{step:?}");
        assert!("2x64x8".parse::<Shape>().is_err() && "0x1x1x1".parse::<Shape>().is_err());
    }
}
