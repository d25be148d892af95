//! Benchmarks of Quorum: the held-out gain of whole runs, and the speed of training and decoding beside their peers.

mod bootstrap;
mod delta;
mod easy_vqa;
mod fanout;
mod gain;
mod memory;
mod page;
mod scale;
mod speed;
mod swarm;
mod word_problems;

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
    /// Write generated arithmetic word problems: unlabelled training questions, labelled validation and test questions.
    WordProblems(word_problems::Args),
    /// Convert the unpacked easy-VQA package into warm-up, unlabelled, validation and test parts.
    EasyVqa(easy_vqa::Args),
    /// CPU time of one training step of configuration T, V or L on one thread.
    Train(speed::Args),
    /// Peak memory of a training step at the shapes of Qwen2.5-0.5B: full training, bf16 weights, LoRA; and their ratio.
    Memory(memory::Args),
    /// Time to load a model directory, beside the time of reading its files.
    Load(memory::LoadArgs),
    /// CPU time of batched decoding (prefill included) of configuration T, V or L on one thread.
    Decode(speed::Args),
    /// How long the live page takes to show a history of 10,000 steps.
    History(page::history::Args),
    /// What an open page and Prometheus cost a run: pairs of the same run, watched and not.
    Watching(page::cost::Args),
    /// How new weights reach N simulated workers, with and without relays: the coordinator's bytes, and the time until the last one holds them.
    Fanout(fanout::Args),
    /// What the difference between successive checkpoints takes beside the whole.
    Delta(delta::Args),
    /// From 1 to 10,000 workers: the cost model beside a simulation around the coordinator's real state machine.
    Scale(scale::Args),
    /// The cost model against whole runs with one and two workers on this machine.
    ScaleRuns(scale::runs::Args),
    /// Simulated workers against a real coordinator over TCP: durable groups a second, latencies, exactly-once.
    Swarm(swarm::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Gain(args) => gain::run(&args),
        Command::WordProblems(args) => word_problems::run(&args),
        Command::EasyVqa(args) => easy_vqa::run(&args),
        Command::Train(args) => speed::train(&args),
        Command::Memory(args) => memory::run(&args),
        Command::Load(args) => memory::load(&args),
        Command::Decode(args) => speed::decode(&args),
        Command::History(args) => page::history::run(&args),
        Command::Watching(args) => page::cost::run(&args),
        Command::Fanout(args) => fanout::run(&args),
        Command::Delta(args) => delta::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::ScaleRuns(args) => scale::runs::run(&args),
        Command::Swarm(args) => swarm::run(&args),
    }
}
