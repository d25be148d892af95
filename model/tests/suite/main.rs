//! Parity of this crate with the Python reference (fixtures), and its answers to broken input.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod broken;
mod config;
mod families;
mod gguf;
mod images;
mod prompts;
mod text;
mod tokens;
mod weights;

use serde_json::Value;
use std::path::PathBuf;

/// Fixture directories, one a family (two of Llama's).
const FIXTURES: [&str; 7] =
    ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen2_text", "qwen3_text", "llama_text", "llama_rope"];

/// A file or directory under `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn rgb(name: &str) -> image::RgbImage {
    quorum_model::to_rgb(&image::open(fixture(name)).unwrap(), quorum_model::AlphaMode::White)
}
