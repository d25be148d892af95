//! The gRPC client that rollout worker and learner share: connecting, joining, heartbeats, fetching blobs and weights. It knows no model and does no training.

mod announced;
mod cache;
mod error;
mod fetch;
mod flags;
mod heartbeat;
mod incoming;
mod link;
mod locate;
mod machine;
mod metrics_page;
mod page;
mod ready;
mod session;
mod transfer;

pub use cache::ByteCache;
pub use error::{ClientError, RUN_FAILED};
pub use fetch::{Both, Fetched, Weights, fetch_blob, fetch_frozen, fetch_weights, report_frozen};
pub use flags::{Credentials, MemberFlags, seconds};
pub use heartbeat::{Cancellations, Heartbeat, Pulse, Vitals};
pub use incoming::Incoming;
pub use link::{Auth, Link, LinkOptions};
pub use locate::{Delivery, Stream};
pub use machine::{cores, shutdown_signal};
pub use metrics_page::{PageOptions, start_metrics};
pub use ready::{is_ready, set_ready};
pub use session::{JoinOptions, Session};
pub use transfer::Sink;
