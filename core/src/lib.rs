//! What all processes of Quorum share, without I/O: the configuration, domain types, answers and votes, advantages and objectives, seeds, the wire mapping.

pub mod advantage;
pub mod answer;
#[cfg(feature = "client")]
pub mod client;
pub mod collective;
pub mod config;
pub mod delta;
pub mod digest;
pub mod host;
#[cfg(feature = "client")]
pub mod logging;
pub mod metric;
#[cfg(feature = "nccl")]
pub mod nccl;
pub mod objective;
pub mod reward;
pub mod seed;
#[cfg(feature = "tls")]
pub mod tls;
pub mod token;
pub mod types;
pub mod verdict;
pub mod vote;
pub mod wire;

pub use config::{ConfigError, RunConfig};
pub use types::{Completion, Finish, Group, Purpose, SampleKey, Sampling};
