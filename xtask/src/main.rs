//! Repository chores that no process of a run needs: making the bundled data, tokenizer and model, and checking configuration files.

mod bundle;
mod configs;
mod metrics;
mod model;
mod tokenizer;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Chores of the Quorum repository.
#[derive(Parser)]
#[command(name = "xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the bundled data set from the four MNIST files (docs/data.md says how to get them).
    BundleData(bundle::Args),
    /// Parse every TOML file under assets/ and configs/ as a run configuration.
    CheckConfigs(configs::Args),
    /// Compare dashboards, alerts, runbook and docs/metrics.md with the metrics that there are.
    CheckMetrics(metrics::Args),
    /// Train a byte-level BPE tokenizer with Qwen's special tokens.
    TrainTokenizer(tokenizer::Args),
    /// Write a randomly initialised Qwen2.5-VL checkpoint directory.
    NewModel(model::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::BundleData(args) => bundle::run(&args),
        Command::CheckConfigs(args) => configs::run(&args),
        Command::CheckMetrics(args) => metrics::run(&args),
        Command::TrainTokenizer(args) => tokenizer::run(&args),
        Command::NewModel(args) => model::run(&args),
    }
}
