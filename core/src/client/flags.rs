//! Flags that the executables share: how a coordinator is found and convinced, how long it is waited for, where a process shows its metrics.

use super::{LinkOptions, PageOptions};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// What convinces a coordinator, and by what it is recognised.
#[derive(Debug, Clone, Args)]
pub struct Credentials {
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
}

impl Credentials {
    /// The way to the coordinator at `url`.
    pub fn link(&self, url: String) -> LinkOptions {
        LinkOptions {
            url,
            token_file: self.token_file.clone(),
            tls_ca: self.tls_ca.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
        }
    }
}

/// What every process that joins a run takes.
#[derive(Debug, Clone, Args)]
pub struct MemberFlags {
    /// gRPC address of the coordinator, e.g. http://127.0.0.1:7070.
    #[arg(long, value_name = "URL", env = "QUORUM_COORDINATOR", required_unless_present = "coordinator_file")]
    pub coordinator: Option<String>,
    /// File in which the coordinator says where it is, RUN_DIR/endpoints.json on a shared file system; waited for, and read again at reconnects.
    #[arg(long, value_name = "PATH", env = "QUORUM_COORDINATOR_FILE", conflicts_with = "coordinator")]
    pub coordinator_file: Option<PathBuf>,
    /// Join this run only.
    #[arg(long, value_name = "RUN_ID", default_value = "")]
    pub run: String,
    #[command(flatten)]
    pub credentials: Credentials,
    /// Address of the page for Prometheus and probes. Beyond this machine it needs --tls-cert, --tls-key and --token-file, or --insecure.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub metrics: String,
    /// Allow addresses beyond this machine without TLS and token.
    #[arg(long)]
    pub insecure: bool,
    /// What this process's GPU reaches the learner's by: workers that give the same name as the learner take new weights from it by NCCL broadcast
    /// (with several devices: on the first). Needs an executable with NCCL.
    #[arg(long, value_name = "NAME", env = "QUORUM_FABRIC", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub fabric: Option<String>,
    /// Seconds to wait for a coordinator at the start.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub join_seconds: f64,
    /// Seconds to wait for a coordinator that went away.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    pub reconnect_seconds: f64,
}

impl MemberFlags {
    /// How to reach the coordinator.
    pub fn link(&self) -> LinkOptions {
        self.credentials.link(LinkOptions::address(self.coordinator.as_deref(), self.coordinator_file.as_deref()))
    }

    /// Where the page for Prometheus and probes listens.
    pub fn page(&self) -> PageOptions {
        PageOptions { listen: self.metrics.clone(), link: self.link(), insecure: self.insecure }
    }

    /// Refuses a fabric that this executable, or CUDA device number `device` of this machine, cannot serve.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check_fabric(&self, device: usize) -> Result<(), String> {
        let Some(name) = &self.fabric else { return Ok(()) };
        #[cfg(feature = "nccl")]
        let served = crate::nccl::usable(device);
        #[cfg(not(feature = "nccl"))]
        let served = Err::<(), _>(format!(
            "this executable has no NCCL for device {device}: build it with --features cuda,nccl"
        ));
        served.map_err(|reason| format!("--fabric {name}: {reason}"))
    }

    pub fn join_patience(&self) -> Duration {
        seconds(self.join_seconds)
    }

    pub fn reconnect_patience(&self) -> Duration {
        seconds(self.reconnect_seconds)
    }
}

/// A flag in seconds; a minute for what is no length of time.
pub fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(60))
}
