//! The worker's metrics: names come from the catalogue in core, this file says when they move.

use crate::error::WorkerError;
use crate::load::LOAD;
use quorum_core::client::{PageOptions, set_ready, start_metrics};
use quorum_core::metric;
use quorum_proto::v1;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How often gauges of the engine are shown anew.
const SHOWN: Duration = Duration::from_secs(1);

static NAME: OnceLock<String> = OnceLock::new();

/// Installs the recorder and serves it; returns the page's address, empty if another recorder is installed (tests).
///
/// # Errors
/// The address of --metrics cannot be used.
pub async fn start(page: &PageOptions) -> Result<String, WorkerError> {
    start_metrics(page).await.map_err(|source| WorkerError::Start { what: "the metrics page", source })
}

/// Names the worker in its series, shows what its engines do, and every count from zero: a counter that appears with its first event hides that event from rates.
pub fn of_worker(name: &str) {
    let _ = NAME.set(name.to_owned());
    metric::announce(&[("candle", cfg!(feature = "candle")), ("cuda", cfg!(feature = "cuda"))]);
    for reason in ["stop", "length", "error", "cancelled"] {
        metric::ROLLOUT_COMPLETIONS.with([reason]).increment(0);
    }
    for reason in ["checksum", "disconnected", "timeout"] {
        metric::WEIGHT_SYNC_FAILURES.with([reason]).increment(0);
    }
    metric::ROLLOUT_GENERATED_TOKENS.with([worker()]).increment(0);
    metric::ROLLOUT_PROMPT_TOKENS.with([worker()]).increment(0);
    tokio::spawn(show());
}

fn worker() -> &'static str {
    NAME.get().map_or("", String::as_str)
}

/// Counts one finished group.
pub fn group(group: &v1::GroupMsg) {
    let mut tokens = 0;
    for completion in &group.completions {
        let reason = if completion.finish == v1::Finish::Stop as i32 { "stop" } else { "length" };
        metric::ROLLOUT_COMPLETIONS.with([reason]).increment(1);
        metric::ROLLOUT_RESPONSE_LENGTH_TOKENS.with([]).record(completion.tokens.len() as f64);
        tokens += completion.tokens.len() as u64;
    }
    metric::ROLLOUT_GENERATED_TOKENS.with([worker()]).increment(tokens);
}

/// Counts prompts that were run, each once for all its samples.
pub fn prefilled(tokens: usize) {
    metric::ROLLOUT_PROMPT_TOKENS.with([worker()]).increment(tokens as u64);
}

/// Counts completions that never came to be.
pub fn lost(reason: &'static str, samples: usize) {
    metric::ROLLOUT_COMPLETIONS.with([reason]).increment(samples as u64);
}

/// Shows the version that is served from now on.
pub fn serves(version: u64) {
    metric::ROLLOUT_WEIGHT_VERSION.with([worker()]).set(version as f64);
    set_ready(true);
}

/// Shows what the engines do, every second, for ever.
async fn show() {
    let mut began = (Instant::now(), LOAD.busy());
    loop {
        tokio::time::sleep(SHOWN).await;
        let now = (Instant::now(), LOAD.busy());
        let (wall, busy) = ((now.0 - began.0).as_secs_f64(), (now.1.saturating_sub(began.1)).as_secs_f64());
        began = now;
        metric::ROLLOUT_IDLE_RATIO.with([worker()]).set((1.0 - busy / wall.max(1e-9)).clamp(0.0, 1.0));
        metric::ROLLOUT_QUEUE_DEPTH.with([worker()]).set(LOAD.waiting() as f64);
        metric::ROLLOUT_RUNNING_REQUESTS.with([worker()]).set(LOAD.running() as f64);
        metric::ROLLOUT_KV_CACHE_USAGE_RATIO.with([worker()]).set(quorum_engine::kv_usage_ratio());
    }
}
