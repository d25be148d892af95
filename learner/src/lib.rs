//! The learner: receives batches, maximises the objective, publishes policy versions, commits steps. Start reading at `grpo_loop`.

pub mod batch;
pub mod checkpoint;
pub mod connection;
pub mod encode;
pub mod error;
pub mod grpo_loop;
pub mod learner;
pub mod metrics;
pub mod objective;
mod open;
pub mod options;
pub mod publish;
pub mod reference;
pub mod schedule;

pub use error::LearnerError;
pub use options::Options;
