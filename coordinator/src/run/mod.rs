//! The run actor: one task owns state and ledger handle; everything else talks to it through `Handle`.

mod actor;
mod command;
mod durable;
mod event;
mod gauges;
mod leases;
mod pace;
mod preempt;
mod recover;
mod status;
mod steps;
mod works;

pub use actor::{Parts, plan_of, start};
pub use command::{Answer, Batch, Committing, Handle, Head, Joined, RunEnd, status_of};
pub use event::{Event, Observer};
pub(crate) use leases::group_row;
pub use recover::{Recovery, recover, supervised_per_step};
