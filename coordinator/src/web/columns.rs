//! The figures of all steps as columns, read from the ledger once and then only added to.

use crate::ledger::StepRow;
use crate::step_metrics::{METRICS, TIMINGS};
use quorum_core::verdict::Point;
use serde_json::{Map, Number, Value};
use std::collections::{BTreeMap, BTreeSet};

/// One value a step and name; `None` where a step has none.
#[derive(Debug, Default)]
pub struct Columns {
    steps: Vec<u64>,
    columns: BTreeMap<String, Vec<Option<f64>>>,
    /// For the verdict.
    points: Vec<Point>,
    /// SHA-256 of the newest version.
    digest: String,
}

impl Columns {
    /// Step that comes next.
    pub fn next(&self) -> u64 {
        self.steps.last().map_or(0, |s| s + 1)
    }

    /// Steps held.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn points(&self) -> &[Point] {
        &self.points
    }

    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Adds a step; one that is there already, or is not a JSON object, is left out.
    pub fn push(&mut self, row: &StepRow) {
        if row.step != self.next() {
            return;
        }
        let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_default();
        let (metrics, timings) = (parse(&row.metrics), parse(&row.timings));
        self.points.push(Point::of(&metrics));
        let at = self.steps.len();
        self.steps.push(row.step);
        self.digest.clone_from(&row.digest);
        for (key, value) in [&metrics, &timings].into_iter().filter_map(Value::as_object).flatten() {
            if key == "step" {
                continue;
            }
            let Some(value) = value.as_f64() else { continue };
            let column = self.columns.entry(key.clone()).or_default();
            column.resize(at, None);
            column.push(Some(value));
        }
    }

    /// Names that may be asked for: those of this version, and whatever a step has.
    pub fn names(&self) -> BTreeSet<&str> {
        let own = METRICS.into_iter().chain(TIMINGS).chain(["step", "version"]);
        own.chain(self.columns.keys().map(String::as_str)).collect()
    }

    /// `{"from", "count", "columns": {"step": […], NAME: […]}}` of the steps from `from` on; all names if none are given.
    /// Values have 6 significant digits.
    pub fn json(&self, from: u64, names: &[&str]) -> Value {
        let at = self.steps.partition_point(|s| *s < from);
        let steps = self.steps.get(at..).unwrap_or_default();
        let mut columns = Map::new();
        columns.insert("step".into(), steps.iter().copied().map(Value::from).collect());
        for (name, column) in &self.columns {
            if !names.is_empty() && !names.contains(&name.as_str()) {
                continue;
            }
            let value = |i: usize| column.get(i).copied().flatten().map_or(Value::Null, short);
            columns.insert(name.clone(), (at..self.steps.len()).map(value).collect());
        }
        serde_json::json!({ "from": from, "count": steps.len(), "columns": columns })
    }
}

/// A number with 6 significant digits.
fn short(value: f64) -> Value {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { Value::from(0) } else { Value::Null };
    }
    let scale = 10f64.powi(5 - value.abs().log10().floor() as i32);
    let rounded = if scale.is_finite() && scale > 0.0 { (value * scale).round() / scale } else { value };
    Number::from_f64(rounded).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, metrics: &str) -> StepRow {
        StepRow {
            step,
            version: step + 1,
            digest: format!("d{step}"),
            metrics: metrics.into(),
            timings: format!("{{\"step\":{step},\"step_seconds\":1.5}}"),
            checkpoint: String::new(),
            manifest: String::new(),
        }
    }

    #[test]
    fn columns_keep_their_place_when_a_figure_is_missing() {
        let mut c = Columns::default();
        c.push(&row(0, r#"{"step":0,"reward_mean":0.123456789}"#));
        c.push(&row(1, r#"{"step":1,"kl":2.0}"#));
        c.push(&row(1, r#"{"step":1,"kl":9.0}"#));
        c.push(&row(2, r#"{"step":2,"reward_mean":0.5,"kl":null}"#));
        let json = c.json(0, &[]);
        let columns = &json["columns"];
        assert_eq!(columns["step"], serde_json::json!([0, 1, 2]));
        assert_eq!(columns["reward_mean"], serde_json::json!([0.123457, null, 0.5]));
        assert_eq!(columns["kl"], serde_json::json!([null, 2.0, null]));
        assert_eq!(columns["step_seconds"], serde_json::json!([1.5, 1.5, 1.5]));
        let tail = c.json(2, &["kl"]);
        assert_eq!(tail["columns"], serde_json::json!({"step": [2], "kl": [null]}));
        assert_eq!((c.next(), c.digest()), (3, "d2"));
        c.push(&row(3, r#"{"step":3,"of_an_older_version":1}"#));
        assert!(c.names().is_superset(&["step", "version", "kl", "of_an_older_version"].into()));
    }

    #[test]
    fn numbers_are_short_whatever_their_size() {
        for (value, wanted) in [(1234567.0, 1234570.0), (1.0e-9 / 3.0, 3.33333e-10), (-0.5, -0.5)] {
            let got = short(value).as_f64().unwrap();
            assert!((got - wanted).abs() <= wanted.abs() * 1e-12, "{got} {wanted}");
        }
        assert_eq!(short(f64::NAN), Value::Null);
    }
}
