//! The run as a pure state machine: phases, tasks, leases, members. No tokio, no clock, no I/O; time comes in as seconds since the coordinator's start.
//!
//! It knows slots, not prompts: which row stands in a slot is a pure function of (seed, step, slot) and belongs to `material`.

mod board;
#[cfg(test)]
mod cases;
mod group;
mod late;
mod learner;
mod members;
mod phase;
#[cfg(test)]
mod props;
mod run;

pub use board::{Admission, Grant, Work};
pub use group::{Formation, Meeting};
pub use learner::{CommitVerdict, PublishVerdict};
pub use members::{Beat, Member, Refusal};
pub use phase::{MISSED_HEARTBEATS, Phase, Plan, Recovered};
pub use run::{Expired, Failure, RunState};

/// Seconds since the coordinator started.
pub type Seconds = f64;
