//! What `[train]` means in numbers for one model: elements that learn and what each part costs.

use super::memory::Demand;
use super::shapes::panel_elements;
use quorum_core::config::{Precision, TrainSection};
use quorum_model::{Layout, ModelConfig, Partition};
use std::sync::Arc;

/// Elements by their fate, and their cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Training {
    /// Elements.
    pub trainable: u64,
    pub frozen: u64,
    /// Elements of the panels of trained matrices, and bytes of one.
    pub panels: u64,
    pub panel_bytes: u64,
    /// Bytes of what is frozen, as it is held.
    pub frozen_bytes: u64,
    pub vision_trained: bool,
    pub checkpointing: bool,
}

/// Reads the section as the engine does. `stored_bf16`: the model's files hold bf16, so that frozen matrices lose nothing in it.
pub(super) fn training(
    train: &TrainSection,
    model: &ModelConfig,
    layout: &Arc<Layout>,
    stored_bf16: bool,
) -> Result<Training, String> {
    let partition = Partition::of(model, layout, train).map_err(|e| e.to_string())?;
    let bf16 = train.precision == Precision::Bf16;
    let held = if bf16 || stored_bf16 { 2 } else { 4 };
    let frozen_bytes = partition.frozen.entries().iter().map(|e| match panel_elements(model, e) {
        Some(n) => n * held,
        None if e.name == model.embedding_name() => e.range.len() as u64 * held,
        None => e.range.len() as u64 * 4,
    });
    let panels = partition.trainable.entries().iter().filter_map(|e| panel_elements(model, e));
    let vision = model.family.vision_prefix();
    Ok(Training {
        trainable: partition.trainable.total() as u64,
        frozen: partition.frozen.total() as u64,
        panels: panels.sum(),
        panel_bytes: if bf16 { 2 } else { 4 },
        frozen_bytes: frozen_bytes.sum(),
        vision_trained: vision.is_some_and(|p| partition.trainable.entries().iter().any(|e| e.name.starts_with(p))),
        checkpointing: train.checkpointing,
    })
}

impl Training {
    /// The demand with this training instead of its own.
    pub fn apply(&self, d: &Demand) -> Demand {
        Demand {
            trainable: self.trainable,
            panels: self.panels,
            panel_bytes: self.panel_bytes,
            frozen_bytes: self.frozen_bytes,
            vision_trained: self.vision_trained,
            checkpointing: self.checkpointing,
            ..d.clone()
        }
    }
}
