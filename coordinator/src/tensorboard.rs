//! The figures of a run as a TensorBoard event file, `tensorboard/events.out.tfevents.*` in the run directory.
//!
//! Format: records of `length u64 LE, masked CRC-32C of it, protobuf Event, masked CRC-32C of it` (TFRecord), as TensorFlow documents them.
//! The file follows the ledger: a restarted coordinator writes it anew, then adds to it.

use crate::ledger::StepRow;
use prost::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Directory inside the run directory; `tensorboard --logdir RUN_DIR` finds it.
const DIR: &str = "tensorboard";
/// TensorBoard asks for `tfevents` in the name; a fixed one, so that a restart replaces the file.
const FILE: &str = "events.out.tfevents.0.quorum";
/// Added to the rotated checksum.
const MASK: u32 = 0xa282_ead8;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// Writes the file anew with every step and evaluation (`Figures` by version) of the ledger.
///
/// # Errors
/// It cannot be written.
pub fn begin(run_dir: &Path, steps: &[StepRow], evaluations: &BTreeMap<u64, Value>) -> io::Result<()> {
    let dir = run_dir.join(DIR);
    fs::create_dir_all(&dir)?;
    let now = unix();
    let version = Event { wall_time: now, step: 0, file_version: Some("brain.Event:2".into()), summary: None };
    let mut bytes = record(&version);
    let run_seconds = |row: &StepRow| number(&row.timings, "run_seconds");
    let end = steps.last().and_then(run_seconds).unwrap_or(0.0);
    for row in steps {
        let at = now - (end - run_seconds(row).unwrap_or(end));
        bytes.extend(record(&of_step(at, row.version, &row.metrics, &row.timings)));
    }
    for (version, figures) in evaluations {
        bytes.extend(record(&of_evaluation(now, *version, figures)));
    }
    let half = dir.join(format!("{FILE}.tmp"));
    fs::write(&half, bytes)?;
    fs::rename(half, dir.join(FILE))
}

/// Adds a committed step: its lines of metrics.jsonl and timing.jsonl.
///
/// # Errors
/// The file cannot be written.
pub fn add_step(run_dir: &Path, version: u64, metrics: &str, timings: &str) -> io::Result<()> {
    append(run_dir, &of_step(unix(), version, metrics, timings))
}

/// Adds the figures of an evaluation.
///
/// # Errors
/// The file cannot be written.
pub fn add_evaluation(run_dir: &Path, version: u64, figures: &Value) -> io::Result<()> {
    append(run_dir, &of_evaluation(unix(), version, figures))
}

fn append(run_dir: &Path, event: &Event) -> io::Result<()> {
    let path: PathBuf = run_dir.join(DIR).join(FILE);
    OpenOptions::new().append(true).open(path)?.write_all(&record(event))
}

fn of_step(wall_time: f64, version: u64, metrics: &str, timings: &str) -> Event {
    let mut value = scalars("train", &serde_json::from_str(metrics).unwrap_or_default());
    value.extend(scalars("time", &serde_json::from_str(timings).unwrap_or_default()));
    event(wall_time, version, value)
}

fn of_evaluation(wall_time: f64, version: u64, figures: &Value) -> Event {
    event(wall_time, version, scalars("eval", figures))
}

fn event(wall_time: f64, version: u64, value: Vec<Scalar>) -> Event {
    let step = i64::try_from(version).unwrap_or(i64::MAX);
    Event { wall_time, step, file_version: None, summary: Some(Summary { value }) }
}

/// Every number of an object as `SECTION/NAME`.
fn scalars(section: &str, object: &Value) -> Vec<Scalar> {
    let of = |(key, value): (&String, &Value)| {
        let value = value.as_f64().filter(|_| key != "step" && key != "version")?;
        Some(Scalar { tag: format!("{section}/{key}"), simple_value: Some(value as f32) })
    };
    object.as_object().into_iter().flatten().filter_map(of).collect()
}

fn record(event: &Event) -> Vec<u8> {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(&data);
    out.extend(masked(&data).to_le_bytes());
    out
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK)
}

fn number(line: &str, key: &str) -> Option<f64> {
    serde_json::from_str::<Value>(line).ok()?.get(key)?.as_f64()
}

fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads records back and checks both sums of each.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let (mut at, mut events) = (0, Vec::new());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(word(at + 8), masked(&bytes[at..at + 8]));
            let data = &bytes[at + 12..at + 12 + length];
            assert_eq!(word(at + 12 + length), masked(data));
            events.push(Event::decode(data).unwrap());
            at += length + 16;
        }
        events
    }

    #[test]
    fn a_restart_says_the_same_as_the_run_did() {
        let dir = tempfile::tempdir().unwrap();
        let row = |step: u64| StepRow {
            step,
            version: step + 1,
            digest: String::new(),
            metrics: format!("{{\"step\":{step},\"reward_mean\":0.5,\"weights_sha256\":\"x\",\"kl\":null}}"),
            timings: format!("{{\"step\":{step},\"run_seconds\":{step}.5}}"),
            checkpoint: String::new(),
            manifest: String::new(),
        };
        let figures = serde_json::json!({"greedy": 0.75, "greedy_interval": [0.7, 0.8], "n": 100});
        begin(dir.path(), &[row(0)], &BTreeMap::from([(0, figures.clone())])).unwrap();
        add_step(dir.path(), 2, &row(1).metrics, &row(1).timings).unwrap();
        add_evaluation(dir.path(), 2, &figures).unwrap();
        let file = dir.path().join(DIR).join(FILE);
        let told = |events: &[Event]| {
            let mut all: Vec<(i64, String, f32)> = events
                .iter()
                .flat_map(|e| e.summary.iter().flat_map(move |s| s.value.iter().map(move |v| (e.step, v))))
                .map(|(step, v)| (step, v.tag.clone(), v.simple_value.unwrap()))
                .collect();
            all.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
            all
        };
        let during = told(&read(&file));
        begin(dir.path(), &[row(0), row(1)], &BTreeMap::from([(0, figures.clone()), (2, figures)])).unwrap();
        let events = read(&file);
        assert_eq!(told(&events), during);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert!(
            during.contains(&(1, "train/reward_mean".into(), 0.5)) && during.contains(&(2, "eval/greedy".into(), 0.75))
        );
        assert!((events[2].wall_time - events[1].wall_time - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_checksum_is_the_one_of_the_format() {
        // CRC-32C of "123456789" is 0xe3069283.
        assert_eq!(masked(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(MASK));
    }
}
