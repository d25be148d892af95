//! A run directory of made-up steps, written through the real ledger, and how long the page takes to show it.

use super::{get, steps_path};
use anyhow::{Context, ensure};
use prost::Message;
use quorum_coordinator::ledger::{Ledger, Write};
use quorum_coordinator::step_metrics::{METRICS, TIMINGS};
use quorum_core::seed::Stream;
use quorum_core::vote::{VoteRule, vote};
use quorum_proto::v1;
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Arguments of `history`.
#[derive(clap::Args)]
pub struct Args {
    /// Steps of the made-up run.
    #[arg(long, default_value_t = 10_000)]
    steps: u64,
    /// Groups of a step.
    #[arg(long, default_value_t = 128)]
    groups: u32,
    /// Starts of `coordinator view`; each time the history is read anew.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Script that loads the page in a browser (`node SCRIPT URL` prints one JSON object); see bench/page.sh.
    #[arg(long)]
    browser: Option<PathBuf>,
    /// The run directory; it is made, or used as it is if it exists.
    #[arg(long, default_value = "runs/history")]
    dir: PathBuf,
}

/// Steps whose texts are still in the ledger.
const TEXTS: u64 = 100;
/// Samples of a group.
const SAMPLES: u32 = 8;
/// Steps a transaction.
const TOGETHER: u64 = 20;
/// What a step of the default recipe does not have.
const ABSENT: [&str; 3] = ["groups_quarantined", "nonfinite", "all_reduce_seconds"];

/// Makes the run directory if it is not there, and times the page over it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let program = std::env::current_exe()?.with_file_name("coordinator");
    if !args.dir.exists() {
        let began = Instant::now();
        make(args, &program)?;
        eprintln!("made {} in {:.0} s", args.dir.display(), began.elapsed().as_secs_f64());
    }
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        rounds.push(round(args, &program)?);
    }
    let mut line = Map::new();
    line.insert("bench".into(), "history".into());
    line.insert("steps".into(), args.steps.into());
    line.insert("groups".into(), args.groups.into());
    line.insert("ledger_mb".into(), (std::fs::metadata(args.dir.join("ledger.db"))?.len() / 1_000_000).into());
    line.insert("rounds".into(), args.rounds.into());
    let names: Vec<String> = rounds.iter().flat_map(Map::keys).cloned().collect();
    for name in names {
        let mut values: Vec<f64> = rounds.iter().filter_map(|r| r.get(&name)?.as_f64()).collect();
        values.sort_by(f64::total_cmp);
        if let (Some(low), Some(high)) = (values.first(), values.last()) {
            let short = |v: f64| (v * 10.0).round() / 10.0;
            line.insert(
                name,
                json!({ "median": short(values[values.len() / 2]), "low": short(*low), "high": short(*high) }),
            );
        }
    }
    println!("{}", Value::Object(line));
    Ok(())
}

fn make(args: &Args, program: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir)?;
    let sets = [
        format!("run.dir={}", args.dir.display()),
        format!("run.steps={}", args.steps),
        format!("rollout.prompts_per_step={}", args.groups),
    ];
    let mut command = Command::new(program);
    command.arg("config");
    for set in &sets {
        command.args(["--set", set]);
    }
    let out = command.output().with_context(|| format!("{}: build it first", program.display()))?;
    ensure!(out.status.success(), "coordinator config: {}", String::from_utf8_lossy(&out.stderr));
    std::fs::write(args.dir.join("config.resolved.toml"), out.stdout)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (ledger, _) = Ledger::open(&args.dir.join("ledger.db"))?;
        ledger.commit(vec![Write::Meta { key: "run_id", value: "history".into() }]).await?;
        let votes = votes()?;
        for first in (0..args.steps).step_by(TOGETHER as usize) {
            let steps = first..args.steps.min(first + TOGETHER);
            ledger.commit(steps.flat_map(|s| step(args, &votes, s)).collect()).await?;
        }
        anyhow::Ok(())
    })
}

/// Votes and rewards of some groups.
fn votes() -> anyhow::Result<Vec<(String, String)>> {
    let mut stream = Stream::named("made-up votes", &[]);
    let mut group = |g: u64| {
        let spread = 1 + g % 5;
        let answers: Vec<Option<String>> = (0..u64::from(SAMPLES))
            .map(|i| !(g + i).is_multiple_of(31))
            .zip(0..)
            .map(|(answered, i)| answered.then(|| (g % 90 + stream.below(spread, 100 * g + i)).to_string()))
            .collect();
        let record = vote(&answers, &VoteRule::default());
        let winner = record.winner();
        let paid = |i: u32| u8::from(winner.is_some_and(|c| c.samples.contains(&i)));
        let rewards: Vec<u8> = (0..SAMPLES).map(paid).collect();
        Ok((serde_json::to_string(&record)?, serde_json::to_string(&rewards)?))
    };
    (0..500).map(&mut group).collect()
}

/// What the coordinator writes for a step.
fn step(args: &Args, votes: &[(String, String)], step: u64) -> Vec<Write> {
    let mut order = Stream::named("made-up questions", &[step]);
    let mut writes: Vec<Write> = (0..args.groups)
        .map(|slot| {
            let at = order.below(8000, u64::from(slot));
            let (vote, rewards) = votes[(at as usize + step as usize) % votes.len()].clone();
            Write::Group {
                step,
                slot,
                prompt: at,
                version: step,
                samples: SAMPLES,
                vote,
                rewards,
                worker: "worker-0".into(),
                body: if step + TEXTS < args.steps { Vec::new() } else { body() },
            }
        })
        .collect();
    let mut figures = |names: &[&str]| {
        let mut object = Map::new();
        object.insert("step".into(), step.into());
        for (i, name) in names.iter().filter(|name| !ABSENT.contains(name)).enumerate() {
            let wave = (step as f64 / 700.0 + i as f64).sin();
            object.insert(
                (*name).to_owned(),
                (0.5 + 0.3 * wave + 0.05 * order.below(1000, 1000 + i as u64) as f64 / 1000.0).into(),
            );
        }
        Value::Object(object).to_string()
    };
    writes.push(Write::Commit {
        step,
        version: step + 1,
        digest: format!("{step:064x}"),
        metrics: figures(&METRICS),
        timings: figures(&TIMINGS),
        checkpoint: String::new(),
        manifest: String::new(),
    });
    writes
}

/// Eight responses of 24 tokens.
fn body() -> Vec<u8> {
    let completion = |sample| v1::CompletionMsg {
        sample,
        tokens: (0..24).collect(),
        logprobs: vec![-0.25; 24],
        text: "The digits are 3 and 6. 6 - 3 = 3. \\boxed{3}".into(),
        ..v1::CompletionMsg::default()
    };
    v1::GroupMsg { completions: (0..SAMPLES).map(completion).collect(), ..v1::GroupMsg::default() }.encode_to_vec()
}

/// `coordinator view`, ended on drop.
struct View(Child);

impl Drop for View {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(args: &Args, program: &Path) -> anyhow::Result<(View, String)> {
    let mut child = Command::new(program)
        .arg("view")
        .arg(&args.dir)
        .args(["--http", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{}: build it first", program.display()))?;
    let out = child.stdout.take().context("no output")?;
    let view = View(child);
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let address = line.strip_prefix("http://").and_then(|l| l.split('/').next());
    Ok((view, address.with_context(|| format!("coordinator view said {line:?}"))?.to_owned()))
}

/// Milliseconds and kilobytes of one start.
fn round(args: &Args, program: &Path) -> anyhow::Result<Map<String, Value>> {
    let mut found = Map::new();
    let began = Instant::now();
    let (view, address) = start(args, program)?;
    found.insert("start_ms".into(), ms(began).into());
    let steps = steps_path(&address)?;
    let last = format!("/api/v1/groups/{}/0", args.steps - 1);
    // In the order of the page. The first answer reads the figures of all steps, the first group which ones asked the same question.
    let mut all = 0.0;
    for (name, path) in [("run", "/api/v1/run"), ("steps", &steps), ("groups", "/api/v1/groups"), ("group", &last)] {
        let began = Instant::now();
        let body = get(&address, path)?;
        all += if name == "run" || name == "steps" { ms(began) } else { 0.0 };
        found.insert(format!("{name}_ms"), ms(began).into());
        found.insert(format!("{name}_kb"), (body.len() as f64 / 1000.0).into());
    }
    found.insert("history_ms".into(), all.into());
    drop(view);
    if let Some(script) = &args.browser {
        let (_view, address) = start(args, program)?;
        let out = Command::new("node").arg(script).arg(format!("http://{address}/")).output().context("node")?;
        ensure!(out.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&out.stderr));
        let seen: Map<String, Value> = serde_json::from_slice(&out.stdout)?;
        found.extend(seen.into_iter().map(|(name, value)| (format!("browser_{name}"), value)));
    }
    Ok(found)
}

fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}
