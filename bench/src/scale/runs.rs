//! The cost model against whole runs on this machine: its four figures of worker and learner come from two runs with one worker and different numbers of samples, the step
//! times of the others are predicted from them.

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
    /// Two runs that the figures are taken from: workers x prompts a step x samples a prompt x prompts a lease, with one worker and different samples.
    #[arg(long, value_delimiter = ',', num_args = 1.., default_values = ["1x64x4x16", "1x64x16x16"])]
    calibrate: Vec<Shape>,
    /// The runs that are predicted.
    #[arg(long, value_delimiter = ',', num_args = 1.., default_values = ["1x64x8x16", "2x64x8x16", "1x128x8x16", "2x128x8x16", "2x96x8x32", "2x128x4x16", "2x64x16x16", "1x64x24x16"])]
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
    /// Of the second run that they are from: the figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Rates>,
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted: Option<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prediction_off: Option<f64>,
}

impl Line {
    fn of(case: Shape, measured: Measured) -> Self {
        Self { bench: "scale-runs", case, measured, rates: None, predicted: None, prediction_off: None }
    }
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Rates {
    /// Mean tokens of a response.
    response_tokens: f64,
    /// Sampled tokens a second, of worker and learner.
    decode: f64,
    train: f64,
    /// Seconds a prompt, of worker and learner.
    worker_prompt: f64,
    rank_prompt: f64,
    weight_bytes: f64,
}

/// Runs the calibration and the cases one after another.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.steps > 2, "--steps must be above 2: the first two are not counted");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measure = |shape: Shape| runtime.block_on(whole_run(args, shape)).with_context(|| format!("case {shape:?}"));
    let &[a, b] = &args.calibrate[..] else { bail!("--calibrate takes two runs, e.g. 1x64x4x16,1x64x16x16") };
    ensure!(
        a.workers == 1 && b.workers == 1 && a.samples != b.samples,
        "the two runs of --calibrate need one worker and different numbers of samples"
    );
    let weight_bytes = weight_bytes(args)?;
    let first = measure(a)?;
    print(&Line::of(a, first))?;
    let second = measure(b)?;
    let rates = rates([(a, &first), (b, &second)], weight_bytes)?;
    print(&Line { rates: Some(rates), ..Line::of(b, second) })?;
    for &case in &args.cases {
        let measured = measure(case)?;
        let predicted = cost::step(&job(case, &rates), &machines(args, case, &rates));
        let off = predicted.total / measured.total - 1.0;
        print(&Line { predicted: Some(predicted), prediction_off: Some(off), ..Line::of(case, measured) })?;
    }
    Ok(())
}

fn print(line: &Line) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}

/// The formulas of `docs/scaling.md`, solved for what a prompt and a sampled token cost worker and learner.
fn rates(runs: [(Shape, &Measured); 2], weight_bytes: f64) -> anyhow::Result<Rates> {
    let tokens = runs.map(|(shape, m)| f64::from(shape.samples) * m.response_tokens);
    // Seconds of a prompt = fixed + tokens / rate.
    let solve = |seconds: fn(&Measured) -> f64| {
        let each = runs.map(|(shape, m)| seconds(m) / f64::from(shape.prompts));
        let slope = (each[1] - each[0]) / (tokens[1] - tokens[0]);
        ensure!(slope > 0.0, "more samples took no more time: measure on a machine that does nothing else");
        Ok((each[0] - tokens[0] * slope, 1.0 / slope))
    };
    let ((worker_prompt, decode), (rank_prompt, train)) = (solve(|m| m.sampling)?, solve(|m| m.training)?);
    let response_tokens = runs.iter().map(|r| r.1.response_tokens).sum::<f64>() / 2.0;
    Ok(Rates { response_tokens, decode, train, worker_prompt, rank_prompt, weight_bytes })
}

fn job(shape: Shape, rates: &Rates) -> Job {
    Job {
        parameters: rates.weight_bytes / 4.0,
        weight_bytes: rates.weight_bytes,
        prompts: shape.prompts.into(),
        samples: shape.samples.into(),
        response_tokens: rates.response_tokens,
    }
}

fn machines(args: &Args, shape: Shape, rates: &Rates) -> Machines {
    Machines {
        workers: shape.workers.into(),
        decode_rate: rates.decode,
        worker_prompt: rates.worker_prompt,
        ranks: 1.0,
        train_rate: rates.train,
        rank_prompt: rates.rank_prompt,
        bandwidth: args.bandwidth,
        fan_out: f64::from(shape.workers),
        pairs: args.pairs,
        lease: shape.lease.into(),
    }
}

/// Bytes of a version, from `coordinator plan`.
fn weight_bytes(args: &Args) -> anyhow::Result<f64> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("coordinator"));
    command.args(["plan", "--json"]);
    for set in &args.sets {
        command.args(["--set", set]);
    }
    let out = command.stderr(Stdio::inherit()).output().context("cannot start coordinator: build it first")?;
    ensure!(out.status.success(), "coordinator plan failed: {}", out.status);
    let plan: Value = serde_json::from_slice(&out.stdout)?;
    let trainable = plan.pointer("/model/trainable").and_then(Value::as_f64);
    Ok(4.0 * trainable.context("no /model/trainable in the plan")?)
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
    fn the_figures_reproduce_the_runs_they_come_from() {
        let shapes = ["1x64x4x16", "1x128x16x16"].map(|s| s.parse::<Shape>().unwrap());
        // A prompt takes 10 ms and 5 ms, a token 1 ms and 2 ms.
        let run = |s: Shape| {
            let tokens = f64::from(s.samples) * 20.0;
            let (sampling, training) =
                (f64::from(s.prompts) * (0.01 + 0.001 * tokens), f64::from(s.prompts) * (0.005 + 0.002 * tokens));
            Measured { sampling, training, total: sampling + training, response_tokens: 20.0, steps: 1 }
        };
        let runs = shapes.map(run);
        let rates = rates([(shapes[0], &runs[0]), (shapes[1], &runs[1])], 0.0).unwrap();
        assert!((rates.worker_prompt - 0.01).abs() < 1e-9 && (rates.train - 500.0).abs() < 1e-6, "{rates:?}");
        let args = <crate::Cli as clap::Parser>::parse_from(["bench", "scale-runs", "--pairs", "1e12"]);
        let crate::Command::ScaleRuns(args) = args.command else { panic!("scale-runs") };
        for (shape, run) in shapes.into_iter().zip(runs) {
            let step = cost::step(&job(shape, &rates), &machines(&args, shape, &rates));
            assert!((step.total / run.total - 1.0).abs() < 1e-6, "{step:?}");
        }
        assert!(super::rates([(shapes[0], &runs[1]), (shapes[1], &runs[0])], 0.0).is_err());
        assert!("2x64x8".parse::<Shape>().is_err() && "0x1x1x1".parse::<Shape>().is_err());
    }
}
