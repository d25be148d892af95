//! `coordinator plan`: prints what a run will need and what is wrong with it. Status 1 if anything keeps it from starting.

use super::cli::RunOptions;
use crate::plan::{Setting, plan, text};
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Clone, Args)]
pub struct PlanOptions {
    /// Rollout workers on this machine; without it those of `--workers` before `plan`, or 1.
    #[arg(long, value_name = "N")]
    pub workers: Option<u32>,
    /// Training records whose prompts are measured, evenly spaced; 0 = all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub sample: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(run: &RunOptions, options: &PlanOptions) -> anyhow::Result<ExitCode> {
    let workers = options.workers.unwrap_or(run.workers);
    let setting = Setting {
        workers: u64::from(workers.max(1)),
        sample: options.sample,
        launched: workers > 0,
        devices: &run.device,
    };
    let plan = plan(&run.request(), setting);
    super::show(&if options.json { serde_json::to_string_pretty(&plan)? + "\n" } else { text(&plan) })?;
    Ok(if plan.mistakes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
