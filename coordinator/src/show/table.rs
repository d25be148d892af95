//! The table at the end of a run: held-out accuracy before and after with 95 % intervals, and where everything lies.

use super::report::Report;
use crate::evaluate::Figures;
use std::fmt::Write;

type Row = (&'static str, fn(&Figures) -> (f64, [f64; 2]));

const ROWS: [Row; 4] = [
    ("greedy", |f| (f.greedy, f.greedy_interval)),
    ("mean of samples", |f| (f.mean, f.mean_interval)),
    ("mean, low temperature", |f| (f.mean_t03, f.mean_t03_interval)),
    ("vote", |f| (f.vote, f.vote_interval)),
];

fn cell(figures: &Figures, get: fn(&Figures) -> (f64, [f64; 2])) -> String {
    let (value, [low, high]) = get(figures);
    format!("{:5.1} [{:4.1}, {:4.1}]", 100.0 * value, 100.0 * low, 100.0 * high)
}

/// The table as text.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    if let (Some(before), Some(after)) = (&report.eval.before, &report.eval.after) {
        let _ = writeln!(out, "held-out accuracy, % [95 % interval], n = {}", after.n);
        let _ = writeln!(out, "{:<22} {:>19}  {:>19}  {:>7}", "", "before", "after", "change");
        for (name, get) in ROWS {
            let change = 100.0 * (get(after).0 - get(before).0);
            let _ = writeln!(out, "{name:<22} {:>19}  {:>19}  {change:>+7.1}", cell(before, get), cell(after, get));
        }
        let _ = writeln!(out);
    }
    let _ = writeln!(out, "{} steps, {} responses, {:.0} s", report.steps, report.samples, report.seconds);
    if report.quarantined > 0 {
        let _ = writeln!(out, "{} prompts were set aside (table `quarantine` of ledger.db)", report.quarantined);
    }
    let _ = writeln!(out, "run directory  {}", report.run_dir);
    let _ = writeln!(out, "report         {}/report.json", report.run_dir);
    let _ = writeln!(out, "metrics        {}/metrics.jsonl", report.run_dir);
    if !report.checkpoint.is_empty() {
        let _ = writeln!(out, "checkpoint     {}/{}", report.run_dir, report.checkpoint);
        let _ = writeln!(out, "export         coordinator export {} --to DIR", report.run_dir);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::report::EvalReport;
    use super::*;

    #[test]
    fn the_table_shows_changes_in_points() {
        let figures = |greedy| Figures {
            greedy,
            mean: 0.5,
            mean_t03: 0.5,
            vote: 0.5,
            n: 10,
            greedy_interval: [0.1, 0.9],
            mean_interval: [0.1, 0.9],
            mean_t03_interval: [0.1, 0.9],
            vote_interval: [0.1, 0.9],
            truncated: 0.0,
        };
        let report = Report {
            eval: EvalReport { before: Some(figures(0.7)), after: Some(figures(0.8)) },
            steps: 3,
            seconds: 12.0,
            samples: 24,
            config_digest: String::new(),
            weights_sha256: String::new(),
            run_id: String::new(),
            run_dir: "runs/x".into(),
            checkpoint: "checkpoints/step-000003".into(),
            epochs: 1,
            quarantined: 0,
            workers: Default::default(),
            mismatch_nats_max: 0.0,
        };
        let text = table(&report);
        assert!(text.contains("n = 10") && text.contains("+10.0") && text.contains("80.0 [10.0, 90.0]"), "{text}");
        assert!(text.contains("runs/x/checkpoints/step-000003"), "{text}");
    }
}
