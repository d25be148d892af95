//! A running run as text, from the answer of `coordinator status`: a screen for people, one line for pipes. Pure; the figures are those of page and
//! progress line.

use super::progress::{duration, evaluated, figures, thousands};
use crate::evaluate::Figures;
use console::{Alignment, measure_text_width, pad_str, truncate_str};
use serde_json::Value;

/// Width of the step bar, columns.
const BAR: usize = 28;
/// Column of the fleet table that gives way when the terminal is narrow, and its least width.
const DEVICE: usize = 2;
const NARROW: usize = 6;

/// The screen in lines that fit `width` columns, at most `height` of them.
pub(crate) fn screen(status: &Value, width: usize, height: usize) -> Vec<String> {
    let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default();
    let seconds = status.get("seconds").and_then(Value::as_f64).unwrap_or(0.0);
    let mut lines = vec![format!("run {} · {} · {}", text("run_id"), text("run_dir"), duration(seconds))];
    lines.extend(wrapped(&judgement(status), width));
    let reasons = status.pointer("/verdict/reasons").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let more = reasons.iter().skip(1).filter_map(|r| r.get("text")?.as_str());
    lines.extend(more.flat_map(|text| wrapped(&format!("  {text}"), width)));
    lines.push(String::new());
    lines.push(bar(status));
    lines.extend(pace(status));
    lines.extend(newest_evaluation(status).iter().flat_map(|text| wrapped(text, width)));
    let table = if members(status).is_empty() { Vec::new() } else { fleet(status, width) };
    lines.extend((!table.is_empty()).then(String::new));
    let room = height.saturating_sub(lines.len());
    let hidden = table.len().saturating_sub(room);
    if hidden > 0 {
        let shown = room.saturating_sub(1);
        lines.extend(table.iter().take(shown).cloned());
        lines.push(format!("… and {} more; see all with --json", table.len() - shown.max(1)));
    } else {
        lines.extend(table);
    }
    lines.truncate(height.max(1));
    lines.iter().map(|line| truncate_str(line, width, "…").into_owned()).collect()
}

/// A sentence in lines of at most `width` columns where its words allow it.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if measure_text_width(line) + measure_text_width(word) < width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("    {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The run in one line.
pub(crate) fn sentence(status: &Value) -> String {
    let mut parts = vec![format!("step {}", count(status)), doing(status)];
    parts.extend(pace(status));
    parts.push(match workers(status).len() {
        1 => "1 worker".to_owned(),
        n => format!("{n} workers"),
    });
    parts.push(judgement(status));
    parts.retain(|p| !p.is_empty());
    console::strip_ansi_codes(&parts.join("  ")).into_owned()
}

/// What changes when something happened; rates and times always do.
pub(crate) fn news(status: &Value) -> String {
    let get = |key: &str| status.get(key).map(Value::to_string).unwrap_or_default();
    let level = status.pointer("/verdict/level").map(Value::to_string).unwrap_or_default();
    let evaluations = status.get("evaluations").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    [get("state"), get("epoch"), get("committed"), get("doing"), level, evaluations.to_string()].join(" ")
        + &workers(status).join(" ")
}

fn workers(status: &Value) -> Vec<&str> {
    let role = |m: &&Value| m.get("role").and_then(Value::as_str) == Some("rollout_worker");
    members(status).iter().filter(role).filter_map(|m| m.get("id")?.as_str()).collect()
}

fn members(status: &Value) -> &[Value] {
    status.get("members").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn judgement(status: &Value) -> String {
    if status.get("state").and_then(Value::as_str) == Some("failed") {
        let reason = status.get("reason").and_then(Value::as_str).unwrap_or_default();
        return format!("{}  {reason}", console::style("Failed").red().bold());
    }
    let text = |key: &str| status.pointer(&format!("/verdict/{key}")).and_then(Value::as_str).unwrap_or_default();
    let word = match text("level") {
        "starting" => console::style("Starting").dim(),
        "healthy" => console::style("Healthy").green().bold(),
        "watch" => console::style("Watch").yellow().bold(),
        "collapsing" => console::style("Collapsing").red().bold(),
        // The ledger was busy.
        _ => return String::new(),
    };
    format!("{word}  {}", text("line"))
}

fn count(status: &Value) -> String {
    let number = |key: &str| status.get(key).and_then(Value::as_u64).unwrap_or(0);
    format!("{}/{}", number("committed"), number("steps"))
}

/// What is under way. Steps are counted from 1, as everywhere people read.
fn doing(status: &Value) -> String {
    let number = |path: &str| status.pointer(path).and_then(Value::as_u64);
    let done = || {
        let (all, open) = (number("/tasks/all")?, number("/tasks/open")?);
        (all > 0).then(|| format!(", {} of {all}", all.saturating_sub(open)))
    };
    let done = done().unwrap_or_default();
    let step = number("/doing/step").unwrap_or(0) + 1;
    match status.pointer("/doing/phase").and_then(Value::as_str) {
        Some("evaluate") => format!("evaluating version {}{done}", number("/doing/version").unwrap_or(0)),
        Some("sample") => format!("sampling step {step}{done}"),
        Some("train") => format!("training step {step}"),
        Some("complete") => "complete".into(),
        _ => String::new(),
    }
}

fn bar(status: &Value) -> String {
    let number = |key: &str| status.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (committed, steps) = (number("committed"), number("steps").max(1));
    let full = usize::try_from(committed.min(steps) * BAR as u64 / steps).unwrap_or(BAR);
    format!("step {} {}{}  {}", count(status), "━".repeat(full), "╌".repeat(BAR - full), doing(status))
}

fn pace(status: &Value) -> Option<String> {
    let metrics = status.get("last_step").filter(|m| !m.is_null())?;
    let get = |key: &str| status.pointer(&format!("/pace/{key}")).and_then(Value::as_f64);
    Some(figures(metrics, get("tokens_per_second")?, get("seconds_left")?))
}

fn newest_evaluation(status: &Value) -> Option<String> {
    let evaluations = status.get("evaluations")?.as_object()?;
    let newest = evaluations.iter().filter_map(|(v, f)| Some((v.parse::<u64>().ok()?, f))).max_by_key(|(v, _)| *v)?;
    let figures: Figures = serde_json::from_value(newest.1.clone()).ok()?;
    Some(evaluated(newest.0, &figures))
}

/// The fleet, its head first.
fn fleet(status: &Value, width: usize) -> Vec<String> {
    const HEAD: [&str; 8] = ["process", "role", "device", "version", "leases", "groups", "tokens/s", "last seen"];
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(members(status).iter().map(row));
    let mut widths: [usize; 8] =
        std::array::from_fn(|i| rows.iter().map(|r| measure_text_width(&r[i])).max().unwrap_or(0));
    let beyond = (widths.iter().sum::<usize>() + 2 * (widths.len() - 1)).saturating_sub(width);
    widths[DEVICE] = widths[DEVICE].saturating_sub(beyond).max(NARROW);
    let aligned = |row: &[String; 8]| {
        let cells = row.iter().zip(widths).enumerate().map(|(i, (cell, width))| {
            let side = if i <= DEVICE { Alignment::Left } else { Alignment::Right };
            pad_str(&truncate_str(cell, width, "…"), width, side, None).into_owned()
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(aligned).collect()
}

fn row(member: &Value) -> [String; 8] {
    let text = |key: &str| member.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |key: &str| member.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    let worker = member.get("role").and_then(Value::as_str) == Some("rollout_worker");
    let of_worker = |text: String| if worker { text } else { "–".into() };
    [
        text("id"),
        text("role").replace('_', " "),
        text("instruction_set"),
        format!("{:.0}", number("version")),
        of_worker(format!("{:.0}", number("leases"))),
        of_worker(format!("{:.0}", number("delivered"))),
        of_worker(thousands(number("tokens_per_second"))),
        format!("{} ago", duration(number("last_seen_seconds_ago"))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Value {
        let member = |id: &str, role: &str| {
            json!({"id": id, "role": role, "instruction_set": "cpu, avx512 and more",
                "version": 7, "leases": 2, "delivered": 31, "tokens_per_second": 1234.4, "last_seen_seconds_ago": 0.4})
        };
        json!({
            "run_id": "r1", "run_dir": "runs/x", "state": "running", "epoch": 1, "steps": 20, "committed": 7, "seconds": 83.0,
            "doing": {"phase": "sample", "step": 7}, "tasks": {"all": 64, "open": 60},
            "pace": {"tokens_per_second": 2400.0, "seconds_left": 65.0, "step_seconds": 5.0},
            "last_step": {"reward_mean": 0.25, "agreement_mean": 0.75},
            "verdict": {"level": "watch", "line": "responses shrank", "reasons": [{"text": "responses shrank"}, {"text": "a second one"}]},
            "evaluations": {"0": figures(0.5), "12": figures(0.6), "6": figures(0.1)},
            "members": [member("learner-0", "learner"), member("worker-0", "rollout_worker"), member("worker-1", "rollout_worker")],
        })
    }

    fn figures(greedy: f64) -> Value {
        json!({"greedy": greedy, "mean": 0.5, "mean_t03": 0.5, "vote": 0.5, "n": 10, "truncated": 0.0,
            "greedy_interval": [0.0, 1.0], "mean_interval": [0.0, 1.0], "mean_t03_interval": [0.0, 1.0], "vote_interval": [0.0, 1.0]})
    }

    #[test]
    fn a_screen_holds_the_figures_and_fits() {
        let lines = screen(&status(), 200, 50);
        let text = console::strip_ansi_codes(&lines.join("\n")).into_owned();
        let words = [
            "run r1 · runs/x · 1 min 23 s",
            "Watch  responses shrank\n  a second one\n",
            "step 7/20 ━━━━━━━━━╌",
            "sampling step 8, 4 of 64",
            "reward 0.250  agreement 0.750  2400 tok/s  1 min 5 s left",
            "version 12 on 10 held-out questions: greedy 60.0 %",
            "worker-1   rollout worker  cpu, avx512 and more        7       2      31      1234    0 s ago",
        ];
        words.iter().for_each(|w| assert!(text.contains(w), "{w}: {text}"));
        let learner = lines.iter().find(|l| l.starts_with("learner-0")).unwrap();
        assert_eq!(learner.matches('–').count(), 3, "{learner}");
        let narrow = screen(&status(), 80, 50);
        assert!(narrow.iter().all(|l| measure_text_width(l) <= 80), "{narrow:#?}");
        assert!(narrow.last().unwrap().contains("cpu, a… ") && narrow.last().unwrap().ends_with("ago"), "{narrow:#?}");
        assert!(narrow.iter().any(|l| l.trim_start().ends_with("vote 50.0 %")), "{narrow:#?}");
        let low = screen(&status(), 80, 10);
        assert_eq!(low.len(), 10);
        assert!(low[9].starts_with("… and 3 more"), "{low:#?}");
    }

    #[test]
    fn rates_and_times_alone_are_no_news() {
        let (now, mut later) = (status(), status());
        later["pace"]["tokens_per_second"] = 9.0.into();
        later["members"][1]["leases"] = 0.into();
        later["seconds"] = 99.0.into();
        assert_eq!(news(&now), news(&later));
        later["committed"] = 8.into();
        assert_ne!(news(&now), news(&later));
        let line = "step 7/20  sampling step 8, 4 of 64  reward 0.250  agreement 0.750  2400 tok/s  1 min 5 s left  2 workers  Watch  responses shrank";
        assert_eq!(sentence(&now), line);
    }
}
