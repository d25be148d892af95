//! Flags and sub-commands.

use super::certs::CertsOptions;
use super::plan::PlanOptions;
use super::status::StatusOptions;
use crate::prepare::RunRequest;
use crate::show::Style;
use clap::{Args, Parser, Subcommand, ValueEnum};
use quorum_core::logging::LogSpec;
use std::path::PathBuf;

/// Improves a vision-language model on unlabelled images by majority vote and group-relative policy optimisation.
///
/// Without a sub-command it runs: fixes prompts, leases them to rollout workers, feeds the learner, evaluates, reports.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, args_conflicts_with_subcommands = false)]
pub struct Cli {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What a run takes.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// Rollout workers to start on this machine, with a learner; 0 = wait for processes that dial in.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub workers: u32,
    /// Processes that the learner consists of; short for `--set learner.ranks=R`. More than one needs a learner built with feature mpi or nccl.
    #[arg(long, value_name = "R", global = true)]
    pub ranks: Option<u32>,
    /// Devices for the processes started here, e.g. cuda:0,cuda:1 (or cuda:0+cuda:1,cuda:2+cuda:3: each joined pair holds one model); dealt out to
    /// workers and learner ranks in turn. Without it the processor.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub device: Vec<String>,
    /// TOML file with settings.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// One setting, e.g. run.steps=3; may be repeated; stronger than the file.
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub set: Vec<String>,
    /// Go on with the run in this directory, or with its copy in s3://BUCKET/PREFIX (then also --run-dir).
    #[arg(long, value_name = "RUN_DIR")]
    pub resume: Option<PathBuf>,
    /// Empty directory for a run that is resumed from S3.
    #[arg(long, value_name = "DIR", requires = "resume")]
    pub run_dir: Option<PathBuf>,
    /// Go on with the run in run.dir if there is one, else start it: for supervisors that start the same command again.
    #[arg(long = "continue", conflicts_with = "resume")]
    pub go_on: bool,
    /// After the end of the run keep serving the page until SIGTERM: for supervisors that start again whatever ends.
    #[arg(long)]
    pub stay: bool,
    /// Allow addresses beyond this machine without TLS and token.
    #[arg(long)]
    pub insecure: bool,
    /// How progress is shown. Auto: a bar on a terminal, lines in a pipe, JSON lines with --log json.
    #[arg(long, value_enum, default_value_t, value_name = "STYLE")]
    pub progress: Style,
    /// What is logged to stderr, e.g. info or quorum_coordinator=debug; with json in front (json,info) or alone as JSON lines. Children log to
    /// RUN_DIR/logs at `info` or this.
    #[arg(long, default_value = "warn", value_name = "[json,]FILTER")]
    pub log: LogSpec,
    /// Write what every step waited for to RUN_DIR/trace.json, for ui.perfetto.dev or chrome://tracing.
    #[arg(long)]
    pub trace: bool,
    /// Send the same to an OpenTelemetry collector (gRPC, http://HOST:4317); without it to OTEL_EXPORTER_OTLP_ENDPOINT, if that is set. Needs a build
    /// with feature otel.
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
}

impl RunOptions {
    /// The request, with settings of the environment variable QUORUM_SET (separated by `;`) before those of the command line.
    pub fn request(&self) -> RunRequest {
        let environment = std::env::var("QUORUM_SET").unwrap_or_default();
        let mut set: Vec<String> =
            environment.split(';').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
        set.extend(self.set.iter().cloned());
        set.extend(self.ranks.map(|ranks| format!("learner.ranks={ranks}")));
        RunRequest { config: self.config.clone(), set, resume: self.resume.clone(), insecure: self.insecure }
    }
}

/// Number format of written weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// Half the size; what most of the Python ecosystem expects.
    #[default]
    Bf16,
    /// Bit for bit the weights held or read.
    F32,
}

impl From<Dtype> for quorum_model::SaveDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::F32 => Self::F32,
        }
    }
}

/// `5GB`, `500MB`, `1000000`: powers of 1000, as the Python ecosystem counts them.
fn size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err("give bytes, or a number with KB, MB or GB".into()),
    };
    let bytes = number.parse::<usize>().ok().and_then(|n| n.checked_mul(factor)).filter(|n| *n > 0);
    bytes.ok_or_else(|| "give a number above 0, e.g. 5GB".into())
}

#[derive(Debug, Clone, Args)]
pub struct ExportOptions {
    /// Directory of the run.
    #[arg(value_name = "RUN_DIR")]
    pub run_dir: PathBuf,
    /// New directory for the model.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    pub dtype: Dtype,
    /// Steps of the checkpoint; without it the newest.
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    /// Write the adapters alone, in the format of the PEFT package, instead of the whole model with the adapters merged into it.
    #[arg(long)]
    pub adapter: bool,
    /// Largest weights file: bytes, or with KB, MB, GB. A larger model is split and gets an index.
    #[arg(long, default_value = "5GB", value_parser = size, value_name = "SIZE")]
    pub max_shard_size: usize,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a run would need (memory, tokens, batches, disk) and everything that is wrong with it; starts nothing.
    Plan(PlanOptions),
    /// Decide pairs of answers: prints each JSON line with "equivalent" added.
    Grade {
        /// JSON lines with `a` and `b`; `-` = standard input.
        #[arg(long, value_name = "FILE.jsonl")]
        pairs: PathBuf,
    },
    /// Write a checkpoint of a run as a Hugging Face model directory.
    Export(ExportOptions),
    /// Turn a GGUF file of a text model into a Hugging Face model directory.
    Import {
        /// The .gguf file.
        #[arg(value_name = "FILE.gguf")]
        file: PathBuf,
        /// New directory for the model.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        #[arg(long, value_enum, default_value_t)]
        dtype: Dtype,
    },
    /// Show how a running coordinator's run goes: a screen of text on a terminal, JSON in a pipe; --watch keeps showing it.
    Status(StatusOptions),
    /// Make an authority, certificates and a token for a cluster of more than one machine, and print the flags that use them.
    Certs(CertsOptions),
    /// Serve the page of a run that is over or at rest, from its run directory.
    View {
        #[arg(value_name = "RUN_DIR")]
        run_dir: PathBuf,
        /// Loopback address of the page.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7071")]
        http: String,
        /// Where the training data is now, if it was moved since the run.
        #[arg(long, value_name = "PATH")]
        data: Option<PathBuf>,
    },
    /// Write one HTML file that holds a run: verdict, curves, accuracy, sample groups with images, configuration, digests.
    Report {
        #[arg(value_name = "RUN_DIR")]
        run_dir: PathBuf,
        /// File to write; without it RUN_DIR/report.html.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
        /// Where the training data is now, if it was moved since the run.
        #[arg(long, value_name = "PATH")]
        data: Option<PathBuf>,
    },
    /// Print the resolved configuration.
    Config,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["coordinator", "--workers", "2", "--set", "run.steps=3", "--set", "run.seed=7"]);
        assert_eq!((cli.run.workers, cli.run.set.len()), (2, 2));
        let cli = Cli::parse_from(["coordinator", "--workers", "2", "--ranks", "4", "--device", "cuda:0,cuda:1"]);
        assert_eq!(cli.run.request().set.last().map(String::as_str), Some("learner.ranks=4"));
        assert_eq!(cli.run.device, ["cuda:0", "cuda:1"]);
        let cli = Cli::parse_from(["coordinator", "config", "--set", "run.steps=3"]);
        assert!(matches!(cli.command, Some(Command::Config)));
        assert_eq!(cli.run.set, ["run.steps=3"]);
        assert_eq!(["5GB", "12 kb", "7"].map(|s| size(s).unwrap()), [5_000_000_000, 12_000, 7]);
        assert!(["", "GB", "0", "1.5GB", "3TB"].iter().all(|s| size(s).is_err()));
        let cli = Cli::parse_from(["coordinator", "plan", "--workers", "2", "--json"]);
        assert!(matches!(cli.command, Some(Command::Plan(PlanOptions { workers: Some(2), json: true, .. }))));
    }
}
