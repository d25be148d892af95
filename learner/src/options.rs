//! Command line of the learner. Everything else comes from the coordinator at Join.

use crate::error::LearnerError;
use crate::transport::{self, Place, Transport, Wanted};
use clap::Parser;
use quorum_core::client::{MemberFlags, cores, seconds};
use quorum_core::config::RunConfig;
use quorum_core::logging::LogSpec;
use quorum_engine::Devices;
use std::time::Duration;

/// Trains the policy of a Quorum run.
#[derive(Debug, Clone, Parser)]
#[command(name = "learner", version = transport::version())]
pub struct Options {
    #[command(flatten)]
    pub member: MemberFlags,
    /// Number of this rank. Default: what mpirun or srun says, else 0.
    #[arg(long)]
    pub rank: Option<u32>,
    /// Number of ranks. Default: what mpirun or srun says, else 1.
    #[arg(long)]
    pub world: Option<u32>,
    /// How ranks reach each other.
    #[arg(long, value_enum, default_value_t = Wanted::Auto)]
    pub transport: Wanted,
    /// Seconds that one call between ranks may wait for the others.
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    pub group_seconds: f64,
    /// Where to compute: cpu, candle-cpu, cuda:N, or cuda: the GPU whose number this rank has on its machine. Several joined with + (cuda:0+cuda:1)
    /// hold a part of the model each.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: Devices,
    /// Only say whether this executable can compute on --device here: asked by the coordinator before a run begins.
    #[arg(long, hide = true)]
    pub check_device: bool,
    /// Threads; 0 = learner.threads of the run, else one a core. Never changes a result.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Name of this learner, stable over reconnects.
    #[arg(long, value_name = "NAME", env = "QUORUM_ID")]
    pub id: Option<String>,
    /// After the end of the run wait for SIGTERM instead of exiting: for supervisors that start again whatever ends.
    #[arg(long)]
    pub stay: bool,
    /// What is logged to stderr, e.g. info or quorum_learner=debug; with json in front (json,info) or alone as JSON lines.
    #[arg(long, value_name = "[json,]FILTER", default_value = "info")]
    pub log: LogSpec,
}

impl Options {
    /// Which of how many ranks this is.
    ///
    /// # Errors
    /// A rank that is not below the number of ranks.
    pub fn place(&self) -> Result<Place, LearnerError> {
        Place::of(self.rank, self.world, |name| std::env::var(name).ok())
    }

    /// `--id`, with the rank where there are several (they share their command line); else the rank and the process: two learners
    /// started by hand must not pass for one.
    pub fn caller_id(&self, place: Place) -> String {
        match &self.id {
            Some(id) if place.world > 1 => format!("{id}-{}", place.rank),
            Some(id) => id.clone(),
            None => format!("learner-{}-{}", place.rank, std::process::id()),
        }
    }

    /// The way to the other ranks.
    ///
    /// # Errors
    /// This build has none.
    pub fn way(&self) -> Result<Transport, LearnerError> {
        Transport::choose(self.transport, self.device.is_cuda())
    }

    /// Number of the device this rank computes on, or of the first of them.
    pub fn device_index(&self) -> usize {
        self.device.first().ordinal().unwrap_or(0)
    }

    pub fn group_patience(&self) -> Duration {
        seconds(self.group_seconds)
    }

    /// `--threads`, or `learner.threads`, or the cores.
    pub fn threads(&self, config: &RunConfig) -> usize {
        [self.threads, config.learner.threads as usize].into_iter().find(|&n| n > 0).unwrap_or_else(cores)
    }
}
