//! report.json: what a finished run reached, taken from the ledger alone, so that it can be made again at any time.

use crate::aside::AsideReport;
use crate::evaluate::{Figures, Gains};
use crate::ledger::History;
use crate::run::recover;
use quorum_core::verdict::{Level, Point, Probe, verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Before and after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// Absent when the run did not evaluate.
    pub before: Option<Figures>,
    pub after: Option<Figures>,
    /// What changed, with paired intervals.
    #[serde(default)]
    pub gain: Option<Gains>,
}

/// The content of report.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub eval: EvalReport,
    /// How the run went, in one line: the level and the first reason; the page shows all.
    #[serde(default)]
    pub verdict: String,
    /// Steps committed.
    pub steps: u64,
    /// Wall seconds over all resumes.
    pub seconds: f64,
    /// Training responses.
    pub samples: u64,
    pub config_digest: String,
    /// SHA-256 of the last version.
    pub weights_sha256: String,
    pub run_id: String,
    pub run_dir: String,
    /// Newest checkpoint, relative to the run directory.
    pub checkpoint: String,
    /// Times a coordinator was started for this run.
    pub epochs: u64,
    pub quarantined: u64,
    /// Records that were not used, in the data and while running.
    #[serde(default)]
    pub set_aside: AsideReport,
    /// Groups accepted from each worker, over all resumes.
    pub workers: BTreeMap<String, u64>,
    /// Groups that were learned from; absent in supervised runs.
    #[serde(default)]
    pub groups_used: Option<f64>,
    /// Largest difference between rollout and learner log-probs of any step, nats; 0 on CPU.
    pub mismatch_nats_max: f64,
}

/// Makes the report of a run with `questions` evaluation questions.
///
/// # Errors
/// The ledger contradicts itself.
pub fn report(
    history: &History,
    run_dir: &str,
    questions: u32,
    supervised_per_step: Option<u32>,
    set_aside: AsideReport,
) -> Result<Report, String> {
    let recovery = recover(history, supervised_per_step)?;
    let meta = |key: &str| history.meta.get(key).cloned().unwrap_or_default();
    let steps = history.committed();
    let figures = |version: u64| recovery.evaluations.get(&version).and_then(|e| e.figures(questions));
    let evaluation = |version: u64| recovery.evaluations.get(&version).filter(|_| figures(version).is_some());
    let gain = if steps > 0 { evaluation(0).zip(evaluation(steps)).and_then(|(b, a)| b.gain(a)) } else { None };
    let weights_sha256 = history.steps.last().map_or_else(|| meta("start_weights"), |s| s.digest.clone());
    let judged = judged(history, recovery.evaluations.keys().filter_map(|v| figures(*v)));
    Ok(Report {
        verdict: judged,
        eval: EvalReport { before: figures(0), after: figures(steps), gain },
        steps,
        seconds: history.seconds,
        samples: recovery.samples,
        config_digest: meta("config_digest"),
        weights_sha256,
        run_id: meta("run_id"),
        run_dir: run_dir.to_owned(),
        checkpoint: recovery.checkpoints.first().map(|c| format!("checkpoints/{}", c.name)).unwrap_or_default(),
        epochs: history.epoch,
        quarantined: recovery.quarantined,
        set_aside,
        workers: history.workers.clone(),
        groups_used: history.steps.iter().filter_map(|s| number(&s.metrics, "groups_used")).reduce(|a, b| a + b),
        mismatch_nats_max: history.steps.iter().filter_map(|s| number(&s.metrics, "mismatch_nats")).fold(0.0, f64::max),
    })
}

/// The verdict in one line.
fn judged(history: &History, evaluations: impl Iterator<Item = Figures>) -> String {
    let lines = history.steps.iter().filter_map(|s| serde_json::from_str(&s.metrics).ok());
    let points: Vec<Point> = lines.map(|line: serde_json::Value| Point::of(&line)).collect();
    let probes: Vec<Probe> = evaluations.map(|f| Probe { n: f.n as f64, greedy: f.greedy, mean: f.mean }).collect();
    let verdict = verdict(&points, &probes);
    let level = match verdict.level {
        Level::Starting => return verdict.line,
        Level::Healthy => "healthy",
        Level::Watch => "watch",
        Level::Collapsing => "collapsing",
    };
    format!("{level}: {}", verdict.line)
}

/// One number of a line of metrics.jsonl; supervised steps lack some.
fn number(metrics: &str, key: &str) -> Option<f64> {
    serde_json::from_str::<serde_json::Value>(metrics).ok()?.get(key)?.as_f64()
}
