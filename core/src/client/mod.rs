//! The gRPC client that rollout worker and learner share: connecting, joining, heartbeats, fetching blobs and weights. It knows no model and does no training.

mod cache;
mod error;
mod fetch;
mod heartbeat;
mod link;
mod machine;
mod metrics_page;
mod session;

pub use cache::ByteCache;
pub use error::ClientError;
pub use fetch::{Weights, fetch_blob, fetch_frozen, fetch_weights};
pub use heartbeat::{Cancellations, Heartbeat, Pulse, Vitals};
pub use link::{Auth, Link, LinkOptions};
pub use machine::{cores, shutdown_signal};
pub use metrics_page::start_metrics;
pub use session::{JoinOptions, Session};
