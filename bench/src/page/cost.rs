//! The processor time that watching takes: the same run with a page open and Prometheus scraping every second, and with nobody looking, in turn.
//! Counted is the time of the run's processes (user and system), not that of browser and Prometheus.

use super::{get, request, steps_path};
use crate::swarm::process::Coordinator;
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Arguments of `watching`.
#[derive(clap::Args)]
pub struct Args {
    /// Pairs of runs, watched and not; the order changes from pair to pair.
    #[arg(long, default_value_t = 8)]
    pairs: usize,
    /// Steps of a run.
    #[arg(long, default_value_t = 40)]
    steps: u64,
    /// Rollout workers.
    #[arg(long, default_value_t = 1)]
    workers: u32,
    /// Scratch directory; it must not exist.
    #[arg(long, default_value = "runs/watching")]
    dir: PathBuf,
    /// More settings for the coordinator.
    #[arg(long = "set")]
    sets: Vec<String>,
}

/// Longest time of a run.
const END: Duration = Duration::from_secs(1800);

/// What one run took, seconds.
#[derive(Clone, Copy)]
struct Cost {
    /// Processor time of the coordinator.
    coordinator: f64,
    /// Of all processes of the run.
    all: f64,
    wall: f64,
}

/// What was looked at.
#[derive(Default)]
struct Seen {
    scrapes: AtomicU64,
    events: AtomicU64,
    /// Answers of the API.
    answers: AtomicU64,
    bytes: AtomicU64,
}

/// Runs the pairs and prints one JSON line.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(!args.dir.exists(), "{} exists; remove it, or give another --dir", args.dir.display());
    let seen = Arc::new(Seen::default());
    let mut pairs = Vec::new();
    // The first run warms the file cache.
    once(args, "warm-up", None)?;
    for pair in 0..args.pairs {
        let alone = |name: &str| once(args, name, None);
        let watched = |name: &str| once(args, name, Some(&seen));
        let names = [format!("{pair}-a"), format!("{pair}-b")];
        let (without, with) = match pair % 2 {
            0 => (alone(&names[0])?, watched(&names[1])?),
            _ => {
                let with = watched(&names[0])?;
                (alone(&names[1])?, with)
            }
        };
        eprintln!("pair {pair}: processor seconds {:.2} alone, {:.2} watched", without.all, with.all);
        pairs.push((without, with));
    }
    std::fs::remove_dir_all(&args.dir)?;
    let mean = |of: &dyn Fn(&(Cost, Cost)) -> f64| pairs.iter().map(of).sum::<f64>() / pairs.len() as f64;
    let percent =
        |of: &dyn Fn(&(Cost, Cost)) -> f64| interval(&pairs.iter().map(|p| 100.0 * of(p)).collect::<Vec<_>>());
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64 / args.pairs as f64;
    let line = json!({
        "bench": "watching",
        "pairs": args.pairs,
        "steps": args.steps,
        "workers": args.workers,
        "alone": { "cpu_seconds": mean(&|p| p.0.all), "coordinator_cpu_seconds": mean(&|p| p.0.coordinator), "seconds": mean(&|p| p.0.wall) },
        "watched": { "cpu_seconds": mean(&|p| p.1.all), "coordinator_cpu_seconds": mean(&|p| p.1.coordinator), "seconds": mean(&|p| p.1.wall) },
        "seen_in_a_run": { "scrapes": count(&seen.scrapes), "events": count(&seen.events), "answers": count(&seen.answers), "kilobytes": count(&seen.bytes) / 1000.0 },
        // Means over the pairs with their 95 % intervals.
        "coordinator_percent_of_all": percent(&|(a, w)| (w.coordinator - a.coordinator) / a.all),
        "cpu_percent": percent(&|(a, w)| w.all / a.all - 1.0),
        "wall_percent": percent(&|(a, w)| w.wall / a.wall - 1.0),
    });
    println!("{line}");
    Ok(())
}

/// One run, and its eyes if it is watched.
fn once(args: &Args, name: &str, seen: Option<&Arc<Seen>>) -> anyhow::Result<Cost> {
    let dir = args.dir.join(name);
    let mut sets: Vec<String> =
        ["cluster.listen=127.0.0.1:0", "cluster.http=127.0.0.1:0", "eval.enabled=false", "rollout.prompts_per_step=64"]
            .map(str::to_owned)
            .into();
    sets.extend([format!("run.dir={}", dir.display()), format!("run.steps={}", args.steps)]);
    sets.extend_from_slice(&args.sets);
    let began = Instant::now();
    let mut coordinator = Coordinator::with(None, &dir, &["--workers", &args.workers.to_string()], &sets)?;
    let eyes = match seen {
        Some(seen) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let address = runtime.block_on(coordinator.address("http"))?;
            vec![page(address.clone(), seen.clone()), prometheus(address, seen.clone())]
        }
        None => Vec::new(),
    };
    let (coordinator, all) = coordinator.cost(END)?;
    let wall = began.elapsed().as_secs_f64();
    for eye in eyes {
        ensure!(eye.join().is_ok(), "a watcher broke down");
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(Cost { coordinator, all, wall })
}

/// What a browser with the page open asks for, until the run ends.
fn page(address: String, seen: Arc<Seen>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        // The last answer may break off, because the coordinator ends.
        let _ = watch(&address, &seen);
    })
}

fn watch(address: &str, seen: &Seen) -> anyhow::Result<()> {
    let ask = |path: &str| -> anyhow::Result<()> {
        let body = get(address, path)?;
        seen.answers.fetch_add(1, Ordering::Relaxed);
        seen.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        Ok(())
    };
    for path in ["/", "/app.css", "/app.js", "/charts.js", "/groups.js", "/uplot.js", "/uplot.css", "/api/v1/run"] {
        ask(path)?;
    }
    let mut drawn = 0;
    let steps = steps_path(address)?;
    for line in BufReader::new(request(address, "/api/v1/events")?).lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        seen.events.fetch_add(1, Ordering::Relaxed);
        seen.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        let run: Value = serde_json::from_str(data)?;
        let committed = run.get("committed").and_then(Value::as_u64).context("an event without committed")? as usize;
        if committed > drawn {
            ask(&format!("{steps}&from={drawn}"))?;
            ask("/api/v1/groups")?;
            drawn = committed;
        }
    }
    Ok(())
}

/// Every second the metrics of all processes, as service discovery names them, until the run ends.
fn prometheus(address: String, seen: Arc<Seen>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut next = Instant::now();
        while let Ok(found) = get(&address, "/sd") {
            let found: Value = serde_json::from_slice(&found).unwrap_or_default();
            let targets = found.as_array().into_iter().flatten().filter_map(|t| t.get("targets")?.get(0)?.as_str());
            for target in targets.chain([address.as_str()]) {
                // A process that has just ended is scraped no more.
                let Ok(body) = get(target, "/metrics") else { continue };
                seen.scrapes.fetch_add(1, Ordering::Relaxed);
                seen.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
            }
            next += Duration::from_secs(1);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    })
}

/// Mean and 95 % interval (Student's t) of paired differences.
fn interval(values: &[f64]) -> Value {
    /// Two-sided 95 % quantiles for 1, 2, … degrees of freedom.
    const T: [f64; 15] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13];
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let half = T.get(values.len().saturating_sub(2)).copied().unwrap_or(2.1) * (variance / n).sqrt();
    let short = |v: f64| (v * 1000.0).round() / 1000.0;
    json!({ "mean": short(mean), "low": short(mean - half), "high": short(mean + half) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_that_of_students_t() {
        let found = interval(&[1.0, 2.0, 3.0, 4.0]);
        let get = |key: &str| found[key].as_f64().unwrap();
        assert!((get("mean") - 2.5).abs() < 1e-9);
        assert!((get("high") - 4.552).abs() < 0.01 && (get("low") - 0.448).abs() < 0.01, "{found}");
    }
}
