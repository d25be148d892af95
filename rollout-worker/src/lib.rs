//! The rollout worker: lease → generate → vote → submit, following the policy's versions. Training and the ledger are others' business.

pub mod arrivals;
pub mod engine_actor;
pub mod error;
#[cfg(feature = "nccl")]
pub mod follow;
pub mod generator;
pub mod images;
pub mod load;
pub mod metrics;
pub mod model;
pub mod options;
pub mod relay;
pub mod submit;
pub mod weights;
pub mod worker;

pub use error::WorkerError;
pub use options::Options;
pub use worker::run;
