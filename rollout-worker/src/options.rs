//! Command line of the worker. Everything else comes from the coordinator at Join.

use crate::relay::RelayOptions;
use clap::Parser;
use quorum_core::client::{LinkOptions, PageOptions, cores};
use quorum_engine::{Device, EngineError};
use std::path::PathBuf;
use std::time::Duration;

/// Generates and votes for a Quorum run; joins and leaves at any time.
#[derive(Debug, Clone, Parser)]
#[command(name = "rollout-worker", version)]
pub struct Options {
    /// gRPC address of the coordinator, e.g. http://127.0.0.1:7070.
    #[arg(long, value_name = "URL", env = "QUORUM_COORDINATOR", required_unless_present = "coordinator_file")]
    pub coordinator: Option<String>,
    /// File in which the coordinator says where it is, RUN_DIR/endpoints.json on a shared file system; waited for, and read again at reconnects.
    #[arg(long, value_name = "PATH", env = "QUORUM_COORDINATOR_FILE", conflicts_with = "coordinator")]
    pub coordinator_file: Option<PathBuf>,
    /// Where to compute: cpu, candle-cpu or cuda:N; several are separated by commas and get an engine each, which share the leases.
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', default_value = "cpu")]
    pub device: Vec<Device>,
    /// Threads of the engines together; 0 = one a core. Never changes a result.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Name of this worker, stable over reconnects.
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
    /// Address on which weights are handed on to other workers, or "off". Without it: a free port if the coordinator is on this machine, else off.
    /// Beyond this machine it needs --tls-cert, --tls-key and --token-file, or --insecure.
    #[arg(long, value_name = "HOST:PORT", env = "QUORUM_RELAY")]
    pub relay: Option<String>,
    /// Directory for weights beyond 64 MB that are handed on while they arrive; without it, versions are handed on once they are complete, and frozen
    /// weights that large are not.
    #[arg(long, value_name = "DIR")]
    pub relay_dir: Option<PathBuf>,
    /// After the end of a run look for the next one of the same coordinator every 30 s instead of exiting: for supervisors that start again
    /// whatever ends.
    #[arg(long)]
    pub stay: bool,
    /// Seconds to wait for a coordinator at the start.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub join_seconds: f64,
    /// Seconds to wait for a coordinator that went away.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    pub reconnect_seconds: f64,
    /// Log filter, e.g. info or quorum_rollout_worker=debug.
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

    /// How weights are handed on.
    pub fn relay(&self) -> RelayOptions {
        let (listen, dir) = (self.relay.clone(), self.relay_dir.clone());
        RelayOptions { listen, dir, link: self.link(), insecure: self.insecure }
    }

    /// `--id`, or host and process number.
    pub fn caller_id(&self) -> String {
        self.id.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("worker-{}-{}", host.trim(), std::process::id())
        })
    }

    /// Threads of one engine: a share of `--threads`, or of the cores.
    pub fn threads(&self) -> usize {
        let all = if self.threads == 0 { cores() } else { self.threads };
        (all / self.device.len().max(1)).max(1)
    }

    /// Refuses devices that this executable or this machine does not have, or that are named twice.
    ///
    /// # Errors
    /// Names the device and what is missing.
    pub fn check_devices(&self) -> Result<(), EngineError> {
        for (i, &device) in self.device.iter().enumerate() {
            if matches!(device, Device::Cuda(_)) && self.device.iter().take(i).any(|&d| d == device) {
                let reason = "it is named twice; one engine fills a GPU".to_owned();
                return Err(EngineError::Unavailable { device: device.to_string(), reason });
            }
            device.check()?;
        }
        Ok(())
    }

    /// Backends, devices and instruction set, for the record of the run.
    pub fn describe_devices(&self) -> String {
        self.device.iter().map(|d| d.describe()).collect::<Vec<_>>().join(", ")
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
