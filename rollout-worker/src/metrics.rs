//! The worker's metrics: names come from the catalogue in core, this file says when they move.

use crate::error::WorkerError;
use quorum_core::client::start_metrics;
use quorum_core::metric;
use quorum_proto::v1;

/// Bounds of histograms: seconds from a millisecond to minutes, and token counts.
const BUCKETS: [f64; 18] = [
    0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0,
    16384.0,
];

/// Installs the recorder and serves it; returns the page's address, empty if another recorder is installed (tests).
///
/// # Errors
/// No free port on loopback.
pub async fn start() -> Result<String, WorkerError> {
    start_metrics(&BUCKETS).await.map_err(|source| WorkerError::Start { what: "the metrics page", source })
}

/// Counts one finished group.
pub fn group(worker: &str, group: &v1::GroupMsg) {
    let mut tokens = 0;
    for completion in &group.completions {
        let reason = if completion.finish == v1::Finish::Stop as i32 { "stop" } else { "length" };
        metric::ROLLOUT_COMPLETIONS.with([reason]).increment(1);
        metric::ROLLOUT_RESPONSE_LENGTH_TOKENS.with([]).record(completion.tokens.len() as f64);
        tokens += completion.tokens.len() as u64;
    }
    metric::ROLLOUT_GENERATED_TOKENS.with([worker]).increment(tokens);
}

/// Counts completions that never came to be.
pub fn lost(reason: &'static str, samples: usize) {
    metric::ROLLOUT_COMPLETIONS.with([reason]).increment(samples as u64);
}
