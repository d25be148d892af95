//! The run actor: one task owns state and ledger handle; everything else talks to it through `Handle`.

mod actor;
mod command;
mod event;
mod leases;
mod recover;
mod status;
mod steps;

pub use actor::{Parts, plan_of, start};
pub use command::{Answer, Batch, Committing, Handle, Head, Joined, RunEnd};
pub use event::{Event, Observer};
pub use recover::{Recovery, recover};
