//! Command line of the learner. Everything else comes from the coordinator at Join.

use clap::Parser;
use quorum_core::client::{LinkOptions, cores};
use quorum_core::config::RunConfig;
use std::path::PathBuf;
use std::time::Duration;

/// Trains the policy of a Quorum run.
#[derive(Debug, Clone, Parser)]
#[command(name = "learner", version)]
pub struct Options {
    /// gRPC address of the coordinator, e.g. http://127.0.0.1:7070.
    #[arg(long, value_name = "URL")]
    pub coordinator: String,
    /// Number of this rank.
    #[arg(long, default_value_t = 0)]
    pub rank: u32,
    /// Number of ranks.
    #[arg(long, default_value_t = 1)]
    pub world: u32,
    /// Threads; 0 = learner.threads of the run, else one a core. Never changes a result.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Name of this learner, stable over reconnects.
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Join this run only.
    #[arg(long, value_name = "RUN_ID", default_value = "")]
    pub run: String,
    /// File with the run's shared token.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// PEM of the authority that signed the coordinator's certificate (with https).
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Seconds to wait for a coordinator at the start.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub join_seconds: f64,
    /// Seconds to wait for a coordinator that went away.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    pub reconnect_seconds: f64,
    /// Log filter, e.g. info or quorum_learner=debug.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
}

impl Options {
    /// How to reach the coordinator.
    pub fn link(&self) -> LinkOptions {
        LinkOptions { url: self.coordinator.clone(), token_file: self.token_file.clone(), tls_ca: self.tls_ca.clone() }
    }

    /// `--id`, or the rank and the process: two learners started by hand must not pass for one.
    pub fn caller_id(&self) -> String {
        self.id.clone().unwrap_or_else(|| format!("learner-{}-{}", self.rank, std::process::id()))
    }

    /// `--threads`, or `learner.threads`, or the cores.
    pub fn threads(&self, config: &RunConfig) -> usize {
        [self.threads, config.learner.threads as usize].into_iter().find(|&n| n > 0).unwrap_or_else(cores)
    }

    pub fn join_patience(&self) -> Duration {
        seconds(self.join_seconds)
    }

    pub fn reconnect_patience(&self) -> Duration {
        seconds(self.reconnect_seconds)
    }
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(60))
}
