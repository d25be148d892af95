//! Qwen2.5-VL, and text-only Qwen2 as the same decoder without a vision tower and with one-axis positions.

pub mod batch;
pub mod head;
pub mod model;
pub mod plan;
pub mod vision;
pub mod windows;
