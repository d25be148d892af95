//! Benchmarks of Quorum: the held-out gain of whole runs, and the speed of training and decoding beside their peers.

mod bootstrap;
mod gain;
mod speed;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "quorum-bench", about = "Benchmarks of Quorum; every figure of bench/REPORT.md comes from here")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Held-out gain of the default recipe over seeds, with ground truth and random reward beside it. One JSON line a run.
    Gain(gain::Args),
    /// CPU time of one training step of configuration T, V or L on one thread.
    Train(speed::Args),
    /// CPU time of batched decoding (prefill included) of configuration T, V or L on one thread.
    Decode(speed::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Gain(args) => gain::run(&args),
        Command::Train(args) => speed::train(&args),
        Command::Decode(args) => speed::decode(&args),
    }
}
