//! The parity checks of the example, on the fixtures of the repository.

#![allow(clippy::unwrap_used)]
#[path = "../examples/parity/checks/mod.rs"]
mod checks;
mod common;

fn all_ok(name: &str, at_least: usize) {
    let report = checks::run(&common::fixture(name), quorum_engine::Device::Cpu).unwrap();
    let bad: Vec<&String> = report.lines.iter().filter(|l| !l.ends_with(" ok")).collect();
    assert!(report.failed == 0 && bad.is_empty(), "{bad:#?}");
    assert!(report.lines.len() >= at_least, "only {} checks were made", report.lines.len());
}

#[test]
fn qwen2_5_vl_agrees_with_transformers() {
    all_ok("qwen2_5_vl", 120);
}

#[test]
fn qwen2_text_agrees_with_transformers() {
    all_ok("qwen2_text", 45);
}

#[test]
fn qwen3_text_agrees_with_transformers() {
    all_ok("qwen3_text", 45);
}

#[test]
fn qwen2_vl_agrees_with_transformers() {
    all_ok("qwen2_vl", 120);
}

#[test]
fn qwen3_vl_agrees_with_transformers() {
    all_ok("qwen3_vl", 125);
}

#[test]
fn llama_text_agrees_with_transformers() {
    all_ok("llama_text", 45);
}

#[test]
fn llama_with_scaled_rope_and_biases_agrees_with_transformers() {
    all_ok("llama_rope", 45);
}
