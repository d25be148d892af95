//! What a step is remembered by: deterministic figures for the ledger, durations beside them, and the Prometheus page.

use crate::batch::{Batch, Use};
use crate::checkpoint::CheckpointError;
use crate::collective::CollectiveError;
use crate::error::LearnerError;
use crate::losses::BatchLosses;
use quorum_core::client::{PageOptions, start_metrics};
use quorum_core::metric;
use quorum_engine::StepStats;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What one step learned. Depends on the batch and the weights alone.
#[derive(Debug, Clone, Default)]
pub struct StepRecord {
    rate: f32,
    sums: BatchLosses,
    /// Gradient batches that moved the weights.
    updates: u64,
    grad_norm: f64,
    clipped: u64,
    non_finite: u64,
    /// Largest difference between worker and learner, where it was measured before the first update.
    pub mismatch: f64,
    sequences: u64,
    tokens: u64,
    truncated: u64,
    used: u64,
    flat: u64,
    dropped: u64,
}

impl StepRecord {
    /// Counts the batch; `rate` is the learning rate of the step.
    pub fn of(batch: &Batch, rate: f32) -> Self {
        let mut record = Self { rate, ..Self::default() };
        for item in &batch.items {
            match item.use_ {
                Use::Train => record.used += 1,
                Use::Flat => record.flat += 1,
                Use::Dropped => record.dropped += 1,
            }
            for sequence in &item.sequences {
                record.sequences += 1;
                record.tokens += sequence.tokens.len() as u64;
                record.truncated += u64::from(sequence.truncated);
            }
        }
        record.show(batch);
        record
    }

    /// What is known before anything is computed. `Batch::read` takes samples of the present version only, so none is stale.
    fn show(&self, batch: &Batch) {
        let advantages = batch.items.iter().flat_map(|i| &i.sequences).map(|s| f64::from(s.advantage));
        metric::LEARNER_ADVANTAGE_MEAN.with([]).set(advantages.sum::<f64>() / self.sequences.max(1) as f64);
        metric::LEARNER_STALENESS_STEPS.with([]).record_many(0.0, self.sequences as usize);
    }

    /// Adds one gradient batch and its optimiser step.
    pub fn add(&mut self, losses: &BatchLosses, stats: &StepStats) {
        self.sums.policy += losses.policy;
        self.sums.kl += losses.kl;
        self.sums.stats.merge(&losses.stats);
        self.sums.entropy_sum += losses.entropy_sum;
        if self.updates == 0 {
            self.mismatch = self.mismatch.max(losses.mismatch);
        }
        if stats.finite {
            self.updates += 1;
            self.grad_norm += stats.grad_norm;
            self.clipped += u64::from(stats.clipped);
        } else {
            self.skip_non_finite();
        }
    }

    /// Counts a gradient batch that was left out because its numbers were not finite.
    pub fn skip_non_finite(&mut self) {
        self.non_finite += 1;
        metric::LEARNER_NONFINITE.with(["gradient"]).increment(1);
    }

    /// The figures of `metrics.jsonl`.
    pub fn figures(&self) -> HashMap<String, f64> {
        let stats = &self.sums.stats;
        let per = |sum: f64, n: u64| if n == 0 { 0.0 } else { sum / n as f64 };
        let parts = (self.updates + self.non_finite).max(1);
        let figures = [
            ("loss", per(self.sums.policy + self.sums.kl, parts)),
            ("policy_loss", per(self.sums.policy, parts)),
            ("kl_loss", per(self.sums.kl, parts)),
            ("kl", stats.mean_kl()),
            ("entropy", stats.per_token(self.sums.entropy_sum)),
            ("grad_norm", per(self.grad_norm, self.updates)),
            ("grad_clipped", per(self.clipped as f64, self.updates)),
            ("clip_low", stats.clip_fraction_low()),
            ("clip_high", stats.clip_fraction_high()),
            ("ratio_max", stats.ratio_max),
            ("ratio_mean", stats.mean_ratio()),
            ("mismatch_nats", self.mismatch),
            ("tokens", self.tokens as f64),
            ("response_length_mean", per(self.tokens as f64, self.sequences)),
            ("truncated_ratio", per(self.truncated as f64, self.sequences)),
            ("learning_rate", f64::from(self.rate)),
            ("groups_used", self.used as f64),
            ("groups_zero_variance", self.flat as f64),
            ("groups_dropped", self.dropped as f64),
            ("nonfinite", self.non_finite as f64),
        ];
        // A ledger holds numbers only; what is not one is counted in `nonfinite`.
        figures
            .into_iter()
            .map(|(name, value)| (name.to_owned(), if value.is_finite() { value } else { 0.0 }))
            .collect()
    }
}

/// Durations of one step by phase, seconds.
#[derive(Debug)]
pub struct Timer {
    began: Instant,
    phases: BTreeMap<&'static str, f64>,
}

impl Default for Timer {
    fn default() -> Self {
        Self { began: Instant::now(), phases: BTreeMap::new() }
    }
}

impl Timer {
    /// Adds the time since `start` to a phase.
    pub fn add(&mut self, phase: &'static str, start: Instant) {
        *self.phases.entry(phase).or_default() += start.elapsed().as_secs_f64();
    }

    /// Adds a time that was measured elsewhere.
    pub fn add_time(&mut self, phase: &'static str, time: Duration) {
        *self.phases.entry(phase).or_default() += time.as_secs_f64();
    }

    /// Time spent in one phase so far.
    pub fn phase(&self, phase: &str) -> f64 {
        self.phases.get(phase).copied().unwrap_or(0.0)
    }

    /// `<phase>_seconds` of every phase, and `learner_seconds` of the whole step.
    pub fn figures(&self) -> HashMap<String, f64> {
        let total = ("learner_seconds".to_owned(), self.began.elapsed().as_secs_f64());
        self.phases.iter().map(|(name, seconds)| (format!("{name}_seconds"), *seconds)).chain([total]).collect()
    }
}

/// Shows a finished step on the Prometheus page.
pub fn export(step: u64, figures: &HashMap<String, f64>, timer: &Timer) {
    let get = |name: &str| figures.get(name).copied().unwrap_or(0.0);
    metric::LEARNER_STEP.with([]).set((step + 1) as f64);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    metric::LEARNER_LAST_STEP_TIMESTAMP_SECONDS.with([]).set(now.as_secs_f64());
    for (term, name) in [("policy", "policy_loss"), ("kl", "kl_loss"), ("total", "loss")] {
        metric::LEARNER_LOSS.with([term]).set(get(name));
    }
    metric::LEARNER_POLICY_ENTROPY_NATS.with([]).set(get("entropy"));
    metric::LEARNER_KL_NATS.with(["reference"]).set(get("kl"));
    metric::LEARNER_CLIP_FRACTION_RATIO.with(["low"]).set(get("clip_low"));
    metric::LEARNER_CLIP_FRACTION_RATIO.with(["high"]).set(get("clip_high"));
    metric::LEARNER_RATIO_MAX.with([]).set(get("ratio_max"));
    metric::LEARNER_GRAD_NORM.with([]).set(get("grad_norm"));
    metric::LEARNER_LEARNING_RATE.with([]).set(get("learning_rate"));
    metric::LEARNER_ROLLOUT_MISMATCH_NATS.with([]).set(get("mismatch_nats"));
    metric::LEARNER_TOKENS.with(["0"]).increment(get("tokens") as u64);
    durations(timer);
}

/// Shows the durations of a finished step.
pub fn durations(timer: &Timer) {
    for (name, seconds) in &timer.phases {
        metric::LEARNER_STEP_DURATION_SECONDS.with([name]).record(*seconds);
    }
}

/// Installs the recorder and serves it; returns the page's address, empty if another recorder is installed (tests).
///
/// # Errors
/// The address of --metrics cannot be used.
pub async fn start(page: &PageOptions) -> Result<String, LearnerError> {
    let page = start_metrics(page).await.map_err(|source| LearnerError::Start { what: "the metrics page", source })?;
    show_zeros();
    Ok(page)
}

/// Shows every count from zero: a counter that appears with its first event hides that event from rates.
fn show_zeros() {
    let built = [("candle", cfg!(feature = "candle")), ("cuda", cfg!(feature = "cuda"))];
    let between = [("mpi", cfg!(feature = "mpi")), ("nccl", cfg!(feature = "nccl"))];
    metric::announce(&[built, between].concat());
    metric::LEARNER_NONFINITE.with(["gradient"]).increment(0);
    for reason in ["peer_lost", "timeout", "resize"] {
        metric::LEARNER_COLLECTIVE_RESTARTS.with([reason]).increment(0);
    }
    for reason in ["enospc", "io", "verify"] {
        metric::CHECKPOINT_FAILURES.with([reason]).increment(0);
    }
}

/// Shows what is in use on this rank's GPU, by whatever process, and the most that was seen.
pub fn gpu_memory(rank: usize, bytes: u64) {
    static PEAK: AtomicU64 = AtomicU64::new(0);
    let (rank, peak) = (rank.to_string(), PEAK.fetch_max(bytes, Ordering::Relaxed).max(bytes));
    for (kind, value) in [("allocated", bytes), ("peak", peak)] {
        metric::LEARNER_GPU_MEMORY_BYTES.with([rank.as_str(), kind]).set(value as f64);
    }
}

/// Counts a group that ended before its time.
pub fn group_ended(error: &LearnerError) {
    let reason = match error {
        LearnerError::Group { source: CollectiveError::Late { .. }, .. } => "timeout",
        _ => "peer_lost",
    };
    metric::LEARNER_COLLECTIVE_RESTARTS.with([reason]).increment(1);
}

/// Counts a checkpoint that could not be written.
pub fn checkpoint_failed(error: &LearnerError) {
    let full = |e: &std::io::Error| e.kind() == std::io::ErrorKind::StorageFull;
    let reason = match error {
        LearnerError::Checkpoint(CheckpointError::Io { source, .. }) if full(source) => "enospc",
        LearnerError::Checkpoint(CheckpointError::Damaged { .. }) => "verify",
        _ => "io",
    };
    metric::CHECKPOINT_FAILURES.with([reason]).increment(1);
}

/// Shows a finished checkpoint; whether it counts is decided by the commit.
pub fn checkpointed(took: Duration, bytes: u64) {
    metric::CHECKPOINT_DURATION_SECONDS.with(["write"]).record(took.as_secs_f64());
    metric::CHECKPOINT_SIZE_BYTES.with([]).set(bytes as f64);
}
