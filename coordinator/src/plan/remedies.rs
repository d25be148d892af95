//! What to change when memory does not suffice: each remedy is tried on the memory model, so that its effect is a number.

use super::memory::Demand;
use super::training::training;
use super::{Model, Processes};
use quorum_core::config::{LoraSection, Precision, TrainSection};
use serde::Serialize;

/// Rank of the adapters that are suggested.
const RANK: u32 = 16;

/// A change of settings and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// Settings, as they are written after `--set`.
    pub change: String,
    /// Bytes of all processes with it.
    pub total: u64,
    pub fits: bool,
}

/// Tries single changes of `demand` and `train`, then all together.
pub(super) fn remedies(
    model: &Model,
    train: &TrainSection,
    demand: &Demand,
    workers: u64,
    available: u64,
) -> Vec<Remedy> {
    let mut out = Vec::new();
    let mut try_it = |change: &str, d: Option<Demand>, workers: u64| {
        let Some(d) = d else { return };
        let total = Processes::of(&model.shapes, &d).total(workers);
        out.push(Remedy { change: change.to_owned(), total, fits: total <= available });
    };
    let trained = |d: &Demand, t: &TrainSection| {
        training(t, &model.config, &model.layout, model.stored_bf16).ok().map(|t| t.apply(d))
    };
    let alone = Demand { worker_threads: demand.worker_threads * workers.max(1), ..demand.clone() };
    if workers > 1 {
        try_it("--workers 1", Some(alone.clone()), 1);
    }
    if demand.prompts_per_lease > 1 {
        try_it("cluster.prompts_per_lease=1", Some(Demand { prompts_per_lease: 1, ..demand.clone() }), workers);
    }
    if !train.checkpointing {
        let t = TrainSection { checkpointing: true, ..train.clone() };
        try_it("train.checkpointing=true", trained(demand, &t), workers);
    }
    if demand.lanes > 1 {
        try_it("learner.lanes=1", Some(Demand { lanes: 1, ..demand.clone() }), workers);
    }
    if train.precision == Precision::F32 {
        let t = TrainSection { precision: Precision::Bf16, ..train.clone() };
        try_it("train.precision=bf16", trained(demand, &t), workers);
    }
    let lora = LoraSection { rank: train.lora.rank.max(RANK), ..train.lora.clone() };
    if train.lora.rank == 0 {
        if train.freeze.is_empty() {
            let parts = if model.config.vision.is_some() { &["vision", "embeddings"][..] } else { &["embeddings"] };
            let t = TrainSection { freeze: parts.iter().map(|p| (*p).to_owned()).collect(), ..train.clone() };
            try_it(&format!("train.freeze={parts:?}"), trained(demand, &t), workers);
        }
        let t = TrainSection { freeze: Vec::new(), lora: lora.clone(), ..train.clone() };
        try_it(&format!("train.lora.rank={RANK}"), trained(demand, &t), workers);
    }
    let least = TrainSection { freeze: Vec::new(), precision: Precision::Bf16, checkpointing: true, lora };
    let small = Demand { lanes: 1, prompts_per_lease: 1, ..alone };
    let all = format!(
        "--workers 1, train.lora.rank={} train.precision=bf16 train.checkpointing=true learner.lanes=1 cluster.prompts_per_lease=1",
        least.lora.rank
    );
    try_it(&all, trained(&small, &least), workers.min(1));
    out
}
