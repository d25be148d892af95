//! A thousand simulated rollout workers against a real coordinator process over real TCP: how many groups a second it leases and makes durable, how
//! long the calls take, and whether any group is lost or counted twice. Workers, heartbeats and retries are those of `quorum_core::client`; only the
//! model is missing: groups are made up.

mod learner;
pub(crate) mod process;
mod tally;
mod worker;

use anyhow::{Context, ensure};
use process::Coordinator;
use quorum_core::client::{JoinOptions, LinkOptions, Session};
use quorum_proto::v1::Role;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally::{Latency, Tally};
use tokio::task::JoinSet;

/// Arguments of `swarm`.
#[derive(clap::Args)]
pub struct Args {
    /// Simulated rollout workers, each with a connection and heartbeats of its own.
    #[arg(long, default_value_t = 1000)]
    workers: u32,
    /// Groups of a step.
    #[arg(long, default_value_t = 40_000)]
    prompts: u32,
    #[arg(long, default_value_t = 1)]
    steps: u64,
    /// Groups a worker leases with one call; each is submitted with a call of its own.
    #[arg(long, default_value_t = 1)]
    lease: u32,
    /// Samples of a group.
    #[arg(long, default_value_t = 8)]
    samples: u32,
    /// Groups a second that all workers together begin, at moments that do not depend on the answers; 0 = each begins as soon as it has ended one.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Share of the groups that are submitted a second time at the same moment.
    #[arg(long, default_value_t = 0.01)]
    resend: f64,
    /// Threads of the load generator.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// SIGKILL the coordinator after this many accepted groups, and look for each of them in its ledger; 0 = never.
    #[arg(long, default_value_t = 0)]
    kill_after: u64,
    /// Executable; without it the one beside this executable.
    #[arg(long)]
    coordinator: Option<PathBuf>,
    /// Scratch run directory; it must not exist. The file system below it is the one whose fsync counts.
    #[arg(long, default_value = "runs/swarm")]
    dir: PathBuf,
    /// More settings for the coordinator, e.g. cluster.heartbeat_seconds=5.
    #[arg(long = "set")]
    sets: Vec<String>,
}

/// One JSON line.
#[derive(Serialize)]
struct Line {
    bench: &'static str,
    workers: u32,
    lease: u32,
    offered_pairs_per_second: f64,
    pairs: u64,
    seconds: f64,
    pairs_per_second: f64,
    lease_ms: Percentiles,
    submit_ms: Percentiles,
    group_bytes: usize,
    wire_bytes_per_pair: usize,
    join_seconds: f64,
    listen_overflows: u64,
    errors: u64,
    duplicates_sent: u64,
    duplicates_answered: u64,
    double_counts: u64,
    missing: u64,
    transactions: u64,
    pairs_per_transaction: f64,
    coordinator_cpu_ms_per_1000_pairs: f64,
    generator_cpu_ms_per_1000_pairs: f64,
    coordinator_rss_mb: f64,
}

/// Milliseconds.
#[derive(Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl From<&mut Latency> for Percentiles {
    fn from(l: &mut Latency) -> Self {
        Self { p50: l.ms(0.5), p90: l.ms(0.9), p99: l.ms(0.99), max: l.ms(1.0) }
    }
}

/// Runs the swarm and prints its line. Fails if a group was lost or counted twice.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let line = measure(args)?;
    println!("{}", serde_json::to_string(&line)?);
    ensure!(line.double_counts == 0, "{} groups were counted twice", line.double_counts);
    ensure!(line.missing == 0, "{} accepted groups are not in the ledger", line.missing);
    Ok(())
}

fn measure(args: &Args) -> anyhow::Result<Line> {
    ensure!(
        args.workers > 0 && args.prompts > 0 && args.lease > 0 && args.samples > 1,
        "counts must be above 0, samples above 1"
    );
    process::raise_file_limit();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(args.threads.max(1)).enable_all().build()?;
    let line = runtime.block_on(drive(args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    line
}

async fn drive(args: &Args) -> anyhow::Result<Line> {
    let mut coordinator = Coordinator::start(args.coordinator.as_deref(), &args.dir, &settings(args))?;
    let url = coordinator.url().await?;
    let tally = Arc::new(Tally::new(args.steps, args.prompts));
    let overflows = process::listen_overflows();
    let joining = Instant::now();
    let sessions = join(args, &url).await?;
    let join_seconds = joining.elapsed().as_secs_f64();
    let listen_overflows = process::listen_overflows() - overflows;
    let learner = Session::join(&options(&url, Role::Learner, "learner-0".into())).await?;
    let slab_bytes = learner::slab_bytes()?;
    learner::publish(&learner, 0, slab_bytes).await?;

    let (cpu, own_cpu, began) = (coordinator.cpu_seconds(), process::own_cpu_seconds(), Instant::now());
    let groups = u64::from(args.prompts) * args.steps;
    let pace = (args.rate > 0.0).then(|| Duration::from_secs_f64(f64::from(args.workers * args.lease) / args.rate));
    let mut workers = JoinSet::new();
    for (i, session) in (0u32..).zip(sessions) {
        let own = worker::Worker::new(i, session, tally.clone(), args.lease, args.resend, pace, began);
        workers.spawn(own.run(f64::from(i) / f64::from(args.workers)));
    }
    let learning = tokio::spawn(learner::run(learner, tally.clone(), args.steps, slab_bytes));
    let accepted = tally.wait(if args.kill_after > 0 { args.kill_after.min(groups) } else { groups }).await?;
    let seconds = began.elapsed().as_secs_f64();
    let (cpu, own_cpu) = (coordinator.cpu_seconds() - cpu, process::own_cpu_seconds() - own_cpu);
    let (transactions, rss) = (coordinator.transactions().await, coordinator.rss_mb());
    if args.kill_after > 0 {
        learning.abort();
        workers.abort_all();
        coordinator.kill();
    } else {
        learning.await?.context("the learner's part")?;
        coordinator.ended(Duration::from_secs(60)).await?;
    }
    workers.shutdown().await;
    let (ledger_double, missing) = tally.against_ledger(&args.dir)?;
    std::fs::remove_dir_all(&args.dir).context("removing the scratch directory")?;
    let mut seen = tally.finish();
    let per_thousand = |cpu: f64| cpu * 1e6 / accepted as f64;
    Ok(Line {
        bench: "swarm",
        workers: args.workers,
        lease: args.lease,
        offered_pairs_per_second: args.rate,
        pairs: accepted,
        seconds,
        pairs_per_second: accepted as f64 / seconds,
        lease_ms: (&mut seen.lease).into(),
        submit_ms: (&mut seen.submit).into(),
        group_bytes: seen.group_bytes,
        wire_bytes_per_pair: seen.wire_bytes / accepted.max(1) as usize,
        join_seconds,
        listen_overflows,
        errors: seen.errors,
        duplicates_sent: seen.resent,
        duplicates_answered: seen.duplicates,
        double_counts: seen.double + ledger_double,
        missing,
        transactions,
        pairs_per_transaction: accepted as f64 / transactions.max(1) as f64,
        coordinator_cpu_ms_per_1000_pairs: per_thousand(cpu),
        generator_cpu_ms_per_1000_pairs: per_thousand(own_cpu),
        coordinator_rss_mb: rss,
    })
}

/// Connects all workers at once.
async fn join(args: &Args, url: &str) -> anyhow::Result<Vec<Session>> {
    let mut joins = JoinSet::new();
    for i in 0..args.workers {
        let options = options(url, Role::RolloutWorker, format!("swarm-{i}"));
        joins.spawn(async move { anyhow::Ok((i, Session::join(&options).await?)) });
    }
    let mut sessions = Vec::new();
    while let Some(joined) = joins.join_next().await {
        sessions.push(joined??);
    }
    sessions.sort_by_key(|(i, _)| *i);
    Ok(sessions.into_iter().map(|(_, s)| s).collect())
}

fn options(url: &str, role: Role, caller_id: String) -> JoinOptions {
    JoinOptions {
        link: LinkOptions { url: url.to_owned(), ..LinkOptions::default() },
        role,
        caller_id,
        run_id: String::new(),
        config_digest: String::new(),
        instruction_set: "simulated".into(),
        metrics_address: String::new(),
        rank: 0,
        world: 1,
        relay_address: String::new(),
        patience: Duration::from_secs(60),
    }
}

fn settings(args: &Args) -> Vec<String> {
    let mut sets = vec![
        format!("run.dir={}", args.dir.display()),
        format!("run.steps={}", args.steps),
        format!("rollout.prompts_per_step={}", args.prompts),
        format!("rollout.group_size={}", args.samples),
        format!("rollout.max_new_tokens={}", worker::TOKENS),
        format!("cluster.prompts_per_lease={}", args.lease),
        "cluster.listen=127.0.0.1:0".into(),
        "cluster.http=127.0.0.1:0".into(),
        "eval.enabled=false".into(),
        "view.count=1".into(),
        "rollout.train_size=0".into(),
        "vote.min_votes=1".into(),
    ];
    sets.extend(args.sets.iter().cloned());
    sets
}
