//! Command line of the worker. Everything else comes from the coordinator at Join.

use crate::relay::RelayOptions;
use clap::Parser;
use quorum_core::client::{MemberFlags, cores};
use quorum_engine::{Device, EngineError};
use std::path::PathBuf;

/// Generates and votes for a Quorum run; joins and leaves at any time.
#[derive(Debug, Clone, Parser)]
#[command(name = "rollout-worker", version)]
pub struct Options {
    #[command(flatten)]
    pub member: MemberFlags,
    /// Where to compute: cpu, candle-cpu or cuda:N; several are separated by commas and get an engine each, which share the leases.
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', default_value = "cpu")]
    pub device: Vec<Device>,
    /// Threads of the engines together; 0 = one a core. Never changes a result.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Name of this worker, stable over reconnects.
    #[arg(long, value_name = "NAME", env = "QUORUM_ID")]
    pub id: Option<String>,
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
    /// Log filter, e.g. info or quorum_rollout_worker=debug.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log: String,
}

impl Options {
    /// How weights are handed on.
    pub fn relay(&self) -> RelayOptions {
        let (listen, dir) = (self.relay.clone(), self.relay_dir.clone());
        RelayOptions { listen, dir, link: self.member.link(), insecure: self.member.insecure }
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
}
