//! `check-metrics`: dashboards, alerts, their runbook and the table of docs/metrics.md name the metrics that there are, and all of them.

use anyhow::{Context, Result, bail};
use quorum_core::metric::{ALL, Declared, Kind};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const DASHBOARDS: &str = "deploy/grafana/dashboards";
const ALERTS: &str = "deploy/prometheus/alerts.yml";
const ALERT_TESTS: &str = "deploy/prometheus/alerts_test.yml";
const RUNBOOK: &str = "docs/runbook.md";
const TABLE: &str = "docs/metrics.md";
/// The chart can only read files below itself; these are copies.
const CHART_FILES: &str = "deploy/helm/quorum/files";

/// Metrics that need no panel, and why.
const ON_NO_DASHBOARD: &[(&str, &str)] =
    &[("quorum_vote_blind_agreement_ratio", "answering without the image is not built yet")];

#[derive(clap::Args)]
pub struct Args {
    /// Root of the repository.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// Write docs/metrics.md and the chart's copies anew instead of complaining about them.
    #[arg(long)]
    write: bool,
}

/// Checks everything; fails with every fault at once.
pub fn run(args: &Args) -> Result<()> {
    let used = dashboards(&args.root)?;
    if args.write {
        fs::write(args.root.join(TABLE), table(&used))?;
        for (from, to) in copies(&args.root)? {
            fs::create_dir_all(to.parent().unwrap_or(&to))?;
            fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        }
    }
    let mut faults = of_dashboards(&used);
    faults.extend(of_alerts(&args.root)?);
    if read(&args.root.join(TABLE)).unwrap_or_default() != table(&used) {
        faults.push(format!("{TABLE} is not the table of core/src/metric.rs; {REWRITE}"));
    }
    for (from, to) in copies(&args.root)? {
        if fs::read(&from)? != fs::read(&to).unwrap_or_default() {
            faults.push(format!("{} is no copy of {}; {REWRITE}", to.display(), from.display()));
        }
    }
    if !faults.is_empty() {
        bail!("{} faults:\n{}", faults.len(), faults.join("\n"));
    }
    println!("{} metrics, {} dashboards, alerts, runbook and table agree", ALL.len(), used.len());
    Ok(())
}

const REWRITE: &str = "run `cargo run --release -p xtask -- check-metrics --write`";

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Names in each dashboard's expressions, by the dashboard's title.
fn dashboards(root: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut found = BTreeMap::new();
    for path in json_files(&root.join(DASHBOARDS))? {
        let dashboard: Value =
            serde_json::from_str(&read(&path)?).with_context(|| format!("{} is no JSON", path.display()))?;
        let title = dashboard.get("title").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut names = BTreeSet::new();
        expressions(&dashboard, &mut |text| names.extend(names_in(text)));
        if found.insert(title.clone(), names).is_some() {
            bail!("two dashboards have the title {title:?}");
        }
    }
    if found.is_empty() {
        bail!("no dashboard in {}; run this at the root of the repository", root.join(DASHBOARDS).display());
    }
    Ok(found)
}

fn json_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    files.sort();
    Ok(files)
}

/// Every `expr` of a dashboard.
fn expressions(value: &Value, take: &mut dyn FnMut(&str)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "expr" => take(text),
                    other => expressions(other, take),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, take)),
        _ => {}
    }
}

/// Words that begin with `quorum_`.
fn names_in(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with("quorum_"))
        .map(str::to_owned)
}

/// The metric a series belongs to: histograms are asked for by `_bucket`, `_sum` and `_count`, others by their name.
fn metric_of(series: &str) -> Option<&'static Declared> {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| series.strip_suffix(suffix));
    ALL.iter().find(|m| match m.kind {
        Kind::Histogram => base == Some(m.name),
        Kind::Counter | Kind::Gauge => series == m.name,
    })
}

fn of_dashboards(used: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut faults = Vec::new();
    for (title, names) in used {
        let unknown = names.iter().filter(|n| metric_of(n).is_none());
        faults.extend(unknown.map(|n| format!("dashboard {title:?} asks for {n}, which no process exports")));
    }
    let shown: BTreeSet<&str> = used.values().flatten().filter_map(|n| metric_of(n)).map(|m| m.name).collect();
    for m in ALL {
        let exempt = ON_NO_DASHBOARD.iter().any(|(name, _)| *name == m.name);
        match (shown.contains(m.name), exempt) {
            (false, false) => faults.push(format!("{} is on no dashboard", m.name)),
            (true, true) => faults.push(format!("{} is on a dashboard and need not be exempt", m.name)),
            _ => {}
        }
    }
    let stale = ON_NO_DASHBOARD.iter().filter(|(name, _)| ALL.iter().all(|m| m.name != *name));
    faults.extend(stale.map(|(name, _)| format!("{name} is exempt and does not exist")));
    faults
}

fn of_alerts(root: &Path) -> Result<Vec<String>> {
    let (rules, tests, runbook) =
        (read(&root.join(ALERTS))?, read(&root.join(ALERT_TESTS))?, read(&root.join(RUNBOOK))?);
    let mut faults = Vec::new();
    for (file, text) in [(ALERTS, &rules), (ALERT_TESTS, &tests)] {
        let code: String = text.lines().filter(|l| !l.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
        let unknown: BTreeSet<String> = names_in(&code).filter(|n| metric_of(n).is_none()).collect();
        faults.extend(unknown.iter().map(|n| format!("{file} asks for {n}, which no process exports")));
    }
    let alerts: Vec<&str> = rules.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")).collect();
    if alerts.is_empty() {
        faults.push(format!("{ALERTS} has no alert"));
    }
    for alert in alerts {
        for case in ["fires", "is silent"] {
            if !tests.contains(&format!("- name: {alert} {case}\n")) {
                faults.push(format!("{ALERT_TESTS} has no case \"{alert} {case}\""));
            }
        }
        if !runbook.contains(&format!("\n## {alert}\n")) {
            faults.push(format!("{RUNBOOK} does not say what to do about {alert}"));
        }
        if !rules.contains(&format!("runbook: {RUNBOOK}#{}\n", alert.to_lowercase())) {
            faults.push(format!("{alert} has no annotation `runbook: {RUNBOOK}#{}`", alert.to_lowercase()));
        }
    }
    Ok(faults)
}

/// What the chart holds copies of: (original, copy).
fn copies(root: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let chart = root.join(CHART_FILES);
    let mut pairs = vec![(root.join(ALERTS), chart.join("alerts.yml"))];
    for from in json_files(&root.join(DASHBOARDS))? {
        let name = from.file_name().unwrap_or_default().to_owned();
        pairs.push((from, chart.join("dashboards").join(name)));
    }
    Ok(pairs)
}

/// The text of docs/metrics.md.
fn table(used: &BTreeMap<String, BTreeSet<String>>) -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Every process has a page for Prometheus: the coordinator at `http://127.0.0.1:7071/metrics`, workers and learner at addresses of their own (`--metrics`),\n\
         which the coordinator lists for Prometheus' HTTP service discovery at `/sd`. Names, labels and meanings are declared once, in `core/src/metric.rs`; this file is made from it by\n\
         `cargo run --release -p xtask -- check-metrics --write`. Dashboards: `deploy/grafana`; alerts: `deploy/prometheus`, with [what to do](runbook.md).\n\n\
         | name | type | labels | unit | meaning | dashboards |\n|---|---|---|---|---|---|\n",
    );
    for m in ALL {
        let shows = |names: &&BTreeSet<String>| names.iter().any(|n| metric_of(n).is_some_and(|d| d.name == m.name));
        let titles: Vec<&str> = used
            .iter()
            .filter(|(_, names)| shows(names))
            .map(|(title, _)| title.strip_prefix("Quorum: ").unwrap_or(title))
            .collect();
        let kind = format!("{:?}", m.kind).to_lowercase();
        let _ = writeln!(
            text,
            "| `{}` | {kind} | {} | {} | {} | {} |",
            m.name,
            m.labels.join(", "),
            m.unit,
            m.help.replace('|', "\\|"),
            if titles.is_empty() { "–".to_owned() } else { titles.join(", ") }
        );
    }
    text.push_str("\nNo panel shows:\n");
    for (name, why) in ON_NO_DASHBOARD {
        let _ = writeln!(text, "- `{name}`: {why}.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    #[test]
    fn dashboards_alerts_and_table_name_what_there_is() {
        run(&Args { root: repository(), write: false }).unwrap();
    }

    #[test]
    fn a_wrong_or_missing_name_is_found() {
        let mut used = dashboards(&repository()).unwrap();
        used.insert("Wrong".into(), ["quorum_learner_stepp".into(), "quorum_reward_value".into()].into());
        let faults = of_dashboards(&used);
        assert!(faults.iter().any(|f| f.contains("quorum_learner_stepp") && f.contains("Wrong")), "{faults:?}");
        assert!(faults.iter().any(|f| f.contains("quorum_reward_value,")), "a histogram has no series of its own name");
        used.retain(|title, _| title == "Wrong");
        assert!(of_dashboards(&used).contains(&"quorum_learner_step is on no dashboard".to_owned()));
    }

    #[test]
    fn an_alert_without_test_or_runbook_is_found() {
        let root = tempfile::tempdir().unwrap();
        for file in [ALERTS, ALERT_TESTS, RUNBOOK] {
            let to = root.path().join(file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(repository().join(file), to).unwrap();
        }
        assert!(of_alerts(root.path()).unwrap().is_empty());
        let mut rules = read(&root.path().join(ALERTS)).unwrap();
        rules.push_str("      - alert: NewOne\n        expr: quorum_nothing > 0\n");
        fs::write(root.path().join(ALERTS), rules).unwrap();
        let faults = of_alerts(root.path()).unwrap().join("\n");
        for wanted in ["quorum_nothing", "\"NewOne fires\"", "\"NewOne is silent\"", "runbook.md does not say"] {
            assert!(faults.contains(wanted), "{wanted}: {faults}");
        }
    }
}
