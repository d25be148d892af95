//! Command line of the worker. Everything else comes from the coordinator at Join.

use crate::relay::RelayOptions;
use clap::Parser;
use quorum_core::client::{MemberFlags, cores};
use quorum_core::logging::LogSpec;
use quorum_engine::{Device, Devices, EngineError};
use std::path::PathBuf;

/// Generates and votes for a Quorum run; joins and leaves at any time.
#[derive(Debug, Clone, Parser)]
#[command(name = "rollout-worker", version)]
pub struct Options {
    #[command(flatten)]
    pub member: MemberFlags,
    /// Where to compute: cpu, candle-cpu or cuda:N; several are separated by commas and get an engine each, which share the leases;
    /// several joined with + (cuda:0+cuda:1) are one engine and hold a part of the model each.
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', default_value = "cpu")]
    pub device: Vec<Devices>,
    /// Only say whether this executable can compute on --device here: asked by the coordinator before a run begins.
    #[arg(long, hide = true)]
    pub check_device: bool,
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
    /// What is logged to stderr, e.g. info or quorum_rollout_worker=debug; with json in front (json,info) or alone as JSON lines.
    #[arg(long, value_name = "[json,]FILTER", default_value = "info")]
    pub log: LogSpec,
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
        for (i, devices) in self.device.iter().enumerate() {
            let before = |d: &&Device| self.device.iter().take(i).any(|other| other.all().contains(d));
            if let Some(device) = devices.all().iter().filter(|_| devices.is_cuda()).find(before) {
                let reason = "it is named twice; one engine fills a GPU".to_owned();
                return Err(EngineError::Unavailable { device: device.to_string(), reason });
            }
            devices.check()?;
        }
        Ok(())
    }

    /// Number of the first CUDA device, on which weights arrive by broadcast; 0 without any.
    pub fn first_device(&self) -> usize {
        self.device.iter().flat_map(|devices| devices.all()).find_map(|device| device.ordinal()).unwrap_or(0)
    }

    /// Backends, devices and instruction set, for the record of the run.
    pub fn describe_devices(&self) -> String {
        self.device.iter().map(|d| d.describe()).collect::<Vec<_>>().join(", ")
    }
}
