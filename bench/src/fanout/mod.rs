//! How long it takes until the last of N workers holds a version, and what the coordinator sends for it, with and without relays.

#[cfg(test)]
#[cfg(feature = "nccl")]
mod broadcast;
#[cfg_attr(not(test), allow(dead_code, reason = "the tests also kill relays and damage what they send"))]
mod cluster;
#[cfg_attr(not(test), allow(dead_code, reason = "the tests also kill relays and damage what they send"))]
mod proxy;
#[cfg(test)]
mod tests;

use anyhow::ensure;
use cluster::{Client, Cluster};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use proxy::Fault;
use quorum_core::seed::Stream;
use serde::Serialize;
use std::time::Instant;
use tokio::task::JoinSet;

/// Arguments of `fanout`.
#[derive(clap::Args)]
pub struct Args {
    /// Simulated workers, each with its own connections, relay and heartbeats.
    #[arg(long, default_value_t = 64)]
    workers: usize,
    /// Megabytes (10^6) of a version.
    #[arg(long, default_value_t = 8)]
    megabytes: usize,
    /// Values of `cluster.relay_fanout`, one line each; 0 = all from the coordinator.
    #[arg(long, value_delimiter = ',', default_value = "0,2,4,8")]
    fanout: Vec<u32>,
    /// Versions that are spread; the first warms connections and does not count.
    #[arg(long, default_value_t = 5)]
    versions: u64,
    /// Speed of the network card that stands before the coordinator and before each relay, megabits a second; 0 = loopback as it is.
    #[arg(long, default_value_t = 0.0)]
    mbit: f64,
}

/// One JSON line; times are medians over versions.
#[derive(Serialize)]
struct Line {
    bench: &'static str,
    workers: usize,
    bytes: usize,
    fanout: u32,
    mbit: f64,
    last_seconds: f64,
    mean_seconds: f64,
    /// Weights that the coordinator sent, as multiples of one version.
    coordinator_versions: f64,
    relayed_versions: f64,
    deepest: usize,
}

/// Spreads versions and prints a line for each fan-out.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.workers > 0 && args.megabytes > 0 && args.versions > 1, "counts must be above 0, versions above 1");
    crate::swarm::process::raise_file_limit();
    let page = PrometheusBuilder::new().install_recorder()?;
    let runtime = tokio::runtime::Runtime::new()?;
    for &fanout in &args.fanout {
        let line = runtime.block_on(measure(args, fanout, &page))?;
        println!("{}", serde_json::to_string(&line)?);
    }
    Ok(())
}

async fn measure(args: &Args, fanout: u32, page: &PrometheusHandle) -> anyhow::Result<Line> {
    let elements = args.megabytes * 250_000;
    let rate = (args.mbit > 0.0).then_some(args.mbit * 1e6 / 8.0);
    let dir = std::env::temp_dir().join(format!("quorum-fanout-{}-{fanout}", std::process::id()));
    let sets = [format!("cluster.relay_fanout={fanout}"), "cluster.relay_seconds=60".into()];
    let cluster = Cluster::start(&dir, elements, &sets, rate).await?;
    let mut clients = Vec::new();
    for i in 0..args.workers {
        clients.push(cluster.join(&format!("worker-{i:03}"), rate.map(Fault::Pace)).await?);
    }
    let (mut last, mut mean, mut direct, mut relayed, mut deepest) = (Vec::new(), Vec::new(), 0.0, 0.0, 0);
    for version in 0..args.versions {
        let slab = slab(version, elements);
        let before = (moved(page, "grpc"), moved(page, "relay"));
        cluster.publish(version, &slab);
        let took;
        (clients, took) = spread(clients, version).await?;
        if version == 0 {
            continue;
        }
        last.push(took.iter().copied().fold(0.0, f64::max));
        mean.push(took.iter().sum::<f64>() / took.len() as f64);
        direct += moved(page, "grpc") - before.0;
        relayed += moved(page, "relay") - before.1;
        let hops = clients.iter().filter_map(|c| cluster.weights.fanout.whence(&c.id).0).map(|w| w.hops);
        deepest = deepest.max(hops.max().unwrap_or(0));
    }
    let all = ((args.versions - 1) as usize * elements * 4) as f64;
    Ok(Line {
        bench: "fanout",
        workers: args.workers,
        bytes: elements * 4,
        fanout,
        mbit: args.mbit,
        last_seconds: median(last),
        mean_seconds: median(mean),
        coordinator_versions: direct / all,
        relayed_versions: relayed / all,
        deepest,
    })
}

/// All clients fetch `version` at once; the seconds each took.
async fn spread(clients: Vec<Client>, version: u64) -> anyhow::Result<(Vec<Client>, Vec<f64>)> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let got = client.get(version).await.map(|_| began.elapsed().as_secs_f64());
            (client, got)
        });
    }
    let (mut clients, mut took) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (client, seconds) = done?;
        took.push(seconds?);
        clients.push(client);
    }
    clients.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((clients, took))
}

/// Weights that nothing compresses.
fn slab(version: u64, elements: usize) -> Vec<f32> {
    let mut stream = Stream::named("fanout", &[version]);
    let block: Vec<f32> = (0..1 << 16).map(|i| stream.uniform(i) as f32 - 0.5).collect();
    (0..elements).map(|i| block[i % block.len()] + (i / block.len()) as f32 * 1e-3).collect()
}

/// Bytes of weights sent over a transport by all of this process.
fn moved(page: &PrometheusHandle, transport: &str) -> f64 {
    let name = format!("quorum_weight_sync_bytes_total{{transport=\"{transport}\"}}");
    let text = page.render();
    let line = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_default();
    line.trim().parse().unwrap_or(0.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
