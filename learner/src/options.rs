//! Command line of the learner. Everything else comes from the coordinator at Join.

use crate::error::LearnerError;
use crate::transport::{self, Place, Transport, Wanted};
use clap::Parser;
use quorum_core::client::{LinkOptions, PageOptions, cores};
use quorum_core::config::RunConfig;
use quorum_engine::Device;
use std::path::PathBuf;
use std::time::Duration;

/// Trains the policy of a Quorum run.
#[derive(Debug, Clone, Parser)]
#[command(name = "learner", version = transport::version())]
pub struct Options {
    /// gRPC address of the coordinator, e.g. http://127.0.0.1:7070.
    #[arg(long, value_name = "URL", env = "QUORUM_COORDINATOR", required_unless_present = "coordinator_file")]
    pub coordinator: Option<String>,
    /// File in which the coordinator says where it is, RUN_DIR/endpoints.json on a shared file system; waited for, and read again at reconnects.
    #[arg(long, value_name = "PATH", env = "QUORUM_COORDINATOR_FILE", conflicts_with = "coordinator")]
    pub coordinator_file: Option<PathBuf>,
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
    /// Where to compute: cpu, candle-cpu, cuda:N, or cuda: the GPU whose number this rank has on its machine.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: Device,
    /// Threads; 0 = learner.threads of the run, else one a core. Never changes a result.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Name of this learner, stable over reconnects.
    #[arg(long, value_name = "NAME", env = "QUORUM_ID")]
    pub id: Option<String>,
    /// Join this run only.
    #[arg(long, value_name = "RUN_ID", default_value = "")]
    pub run: String,
    /// File with the run's shared token.
    #[arg(long, value_name = "FILE", env = "QUORUM_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// PEM of the authority that signed the coordinator's certificate (with https).
    #[arg(long, value_name = "FILE", env = "QUORUM_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
    /// PEM of the certificate to show a coordinator that asks for one; also that of the page of --metrics.
    #[arg(long, value_name = "FILE", requires = "tls_key", env = "QUORUM_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// PEM of its key.
    #[arg(long, value_name = "FILE", requires = "tls_cert", env = "QUORUM_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Address of the page for Prometheus and probes. Beyond this machine it needs --tls-cert, --tls-key and --token-file, or --insecure.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub metrics: String,
    /// Allow addresses beyond this machine without TLS and token.
    #[arg(long)]
    pub insecure: bool,
    /// After the end of the run wait for SIGTERM instead of exiting: for supervisors that start again whatever ends.
    #[arg(long)]
    pub stay: bool,
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
        LinkOptions {
            url: LinkOptions::address(self.coordinator.as_deref(), self.coordinator_file.as_deref()),
            token_file: self.token_file.clone(),
            tls_ca: self.tls_ca.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
        }
    }

    /// Where the page for Prometheus and probes listens.
    pub fn page(&self) -> PageOptions {
        PageOptions { listen: self.metrics.clone(), link: self.link(), insecure: self.insecure }
    }

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
        Transport::choose(self.transport, matches!(self.device, Device::Cuda(_)))
    }

    /// Number of the device this rank computes on.
    pub fn device_index(&self) -> usize {
        match self.device {
            Device::Cuda(n) => n,
            Device::Cpu | Device::CandleCpu => 0,
        }
    }

    pub fn group_patience(&self) -> Duration {
        seconds(self.group_seconds)
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
