//! The learner: receives batches, maximises the objective, publishes policy versions, commits steps. Start reading at `grpo_loop`.

pub mod batch;
#[cfg(feature = "nccl")]
pub mod broadcast;
pub mod checkpoint;
pub mod collective;
pub mod connection;
pub mod encode;
pub mod error;
pub mod group;
pub mod grpo_loop;
pub mod learner;
pub mod losses;
pub mod metrics;
pub mod objective;
mod open;
pub mod options;
pub mod publish;
pub mod reference;
pub mod schedule;
pub mod share;
pub mod transport;
pub mod zero;

pub use error::LearnerError;
pub use options::Options;
