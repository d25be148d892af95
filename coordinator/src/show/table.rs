//! The table at the end of a run: held-out accuracy before and after with 95 % intervals, and where everything lies.

use super::report::Report;
use crate::evaluate::{Figures, Gain, Gains};
use std::fmt::Write;

/// A measure: its name, its value with interval, and its change.
pub(crate) type Measure = (&'static str, fn(&Figures) -> (f64, [f64; 2]), fn(&Gains) -> Gain);

/// All measures, in the order they are shown.
pub(crate) const MEASURES: [Measure; 4] = [
    ("greedy", |f| (f.greedy, f.greedy_interval), |g| g.greedy),
    ("mean of samples", |f| (f.mean, f.mean_interval), |g| g.mean),
    ("mean, low temperature", |f| (f.mean_t03, f.mean_t03_interval), |g| g.mean_t03),
    ("vote", |f| (f.vote, f.vote_interval), |g| g.vote),
];

/// `+1.9 [0.5, 3.3]`, in points.
pub(crate) fn change(gain: &Gain) -> String {
    let [low, high] = gain.interval.map(|v| 100.0 * v);
    format!("{:+.1} [{low:.1}, {high:.1}]", 100.0 * gain.change)
}

pub(crate) fn cell(figures: &Figures, get: fn(&Figures) -> (f64, [f64; 2])) -> String {
    let (value, [low, high]) = get(figures);
    format!("{:5.1} [{:4.1}, {:4.1}]", 100.0 * value, 100.0 * low, 100.0 * high)
}

/// The table as text.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    if let (Some(before), Some(after)) = (&report.eval.before, &report.eval.after) {
        let _ = writeln!(out, "held-out accuracy, % [95 % interval], n = {}", after.n);
        let _ = writeln!(out, "{:<22} {:>19}  {:>19}  {:>18}", "", "before", "after", "change, paired");
        for (name, get, gain) in MEASURES {
            let change = match &report.eval.gain {
                Some(gains) => change(&gain(gains)),
                None => format!("{:+.1}", 100.0 * (get(after).0 - get(before).0)),
            };
            let _ = writeln!(out, "{name:<22} {:>19}  {:>19}  {change:>18}", cell(before, get), cell(after, get));
        }
        let _ = writeln!(out);
    }
    if !report.verdict.is_empty() {
        let _ = writeln!(out, "{}", report.verdict);
    }
    let _ = writeln!(out, "{} steps, {} responses, {:.0} s", report.steps, report.samples, report.seconds);
    if report.groups_used == Some(0.0) {
        let _ = writeln!(
            out,
            "nothing was learned: no group of any step had a majority to pay; metrics.jsonl counts why (votes_…)"
        );
    }
    aside(&mut out, report);
    let _ = writeln!(out, "run directory  {}", report.run_dir);
    let _ = writeln!(out, "look at it     coordinator view {}", report.run_dir);
    let _ = writeln!(out, "report         {}/report.json", report.run_dir);
    let _ = writeln!(out, "metrics        {}/metrics.jsonl", report.run_dir);
    if !report.checkpoint.is_empty() {
        let _ = writeln!(out, "checkpoint     {}/{}", report.run_dir, report.checkpoint);
        let _ = writeln!(out, "export         coordinator export {} --to DIR", report.run_dir);
    }
    out
}

/// What was not used, and the first of it by name.
fn aside(out: &mut String, report: &Report) {
    let a = &report.set_aside;
    if a.count() == 0 {
        return;
    }
    let _ = writeln!(
        out,
        "{} records were set aside ({} of the training data, {} of the test data, {} while running):",
        a.count(),
        a.train,
        a.test,
        a.running
    );
    for one in &a.first {
        let _ = writeln!(out, "  {one}");
    }
    if a.count() > a.first.len() as u64 {
        let _ = writeln!(out, "  … more in {}/{}", report.run_dir, crate::aside::FILE);
    }
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
            eval: EvalReport { before: Some(figures(0.7)), after: Some(figures(0.8)), gain: None },
            verdict: "watch: responses shrank".into(),
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
            set_aside: crate::aside::AsideReport {
                train: 7,
                test: 0,
                running: 1,
                first: vec![crate::aside::Aside {
                    set: "train".into(),
                    file: "a.parquet".into(),
                    row: 3,
                    reason: "no image".into(),
                    step: None,
                }],
            },
            workers: Default::default(),
            groups_used: Some(0.0),
            mismatch_nats_max: 0.0,
        };
        let text = table(&report);
        assert!(text.contains("n = 10") && text.contains("+10.0") && text.contains("80.0 [10.0, 90.0]"), "{text}");
        assert!(
            text.contains("runs/x/checkpoints/step-000003") && text.contains("\nwatch: responses shrank\n"),
            "{text}"
        );
        assert!(text.contains("8 records were set aside") && text.contains("a.parquet, row 3: no image"), "{text}");
        assert!(text.contains("more in runs/x/set-aside.jsonl") && text.contains("nothing was learned"), "{text}");
        assert!(!table(&Report { groups_used: Some(2.0), ..report }).contains("nothing was learned"));
    }
}
