//! The parity checks, shared by the example and the tests: reading the fixture, then images, forward passes, GRPO and AdamW.

mod forward;
mod grpo;
mod images;
mod tensors;

use quorum_engine::{Devices, Engine};
use quorum_model::{Checkpoint, EncodedPrompt, Partition};
use serde_json::Value;
use std::error::Error;
use std::path::{Path, PathBuf};
use tensors::Tensors;

/// Anything that keeps a check from being made.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Lines and the number of failed checks.
#[derive(Default)]
pub struct Report {
    pub lines: Vec<String>,
    pub failed: usize,
}

impl Report {
    /// Books one check; NaN fails.
    pub fn check(&mut self, name: &str, diff: f64, tolerance: f64) {
        let ok = diff <= tolerance;
        self.failed += usize::from(!ok);
        self.lines.push(format!("{name} {diff:.3e} {tolerance:.0e} {}", if ok { "ok" } else { "FAILED" }));
    }

    /// Books a check of equality.
    pub fn equal<T: PartialEq>(&mut self, name: &str, a: &T, b: &T) {
        self.check(name, if a == b { 0.0 } else { 1.0 }, 0.0);
    }
}

/// A checkpoint with its reference outputs.
pub struct Fixture {
    pub dir: PathBuf,
    pub checkpoint: Checkpoint,
    pub weights: Vec<f32>,
    pub engine: Engine,
    pub json: Value,
    pub tensors: Tensors,
    /// Prompts of the cases, in order.
    pub prompts: Vec<EncodedPrompt>,
}

/// All checks of one directory, with the engine on `devices`.
pub fn run(dir: &Path, devices: impl Into<Devices>) -> Result<Report> {
    let mut report = Report::default();
    let checkpoint = Checkpoint::open(dir)?;
    let weights = checkpoint.load_weights()?;
    let parts = Partition::full(checkpoint.layout.clone());
    let engine = Engine::loader_on(devices, &checkpoint.config, parts, false, 2)?.finish()?;
    let json: Value = serde_json::from_slice(&std::fs::read(dir.join("expected.json"))?)?;
    let tensors = Tensors::read(&dir.join("expected.safetensors"))?;
    let mut fixture = Fixture { dir: dir.to_owned(), checkpoint, weights, engine, json, tensors, prompts: Vec::new() };
    images::check(&fixture, &mut report)?;
    fixture.prompts = fixture.cases().iter().map(|c| images::encode(&fixture, c)).collect::<Result<_>>()?;
    forward::check(&fixture, &mut report)?;
    grpo::check(&fixture, &mut report)?;
    Ok(report)
}

impl Fixture {
    /// The cases of `expected.json`.
    pub fn cases(&self) -> &[Value] {
        self.json["cases"].as_array().map_or(&[], Vec::as_slice)
    }
}

/// Largest absolute difference; infinite if lengths differ.
pub fn max_diff(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let worst = |m: f64, d: f64| if d > m || d.is_nan() { d } else { m };
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).abs()).fold(0.0, worst)
}

/// A JSON array of numbers.
pub fn ids(v: &Value) -> Vec<u32> {
    v.as_array().into_iter().flatten().filter_map(|x| x.as_u64().map(|x| x as u32)).collect()
}
