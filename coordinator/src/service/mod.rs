//! The network face of a run: gRPC services over the run actor, and the HTTP page. No decisions are made here.

mod auth;
mod cluster;
mod http;
mod learner;
mod listen;
mod look;
mod observe;
mod page;
mod poll;
mod rollout;
mod server;
mod weights;

pub use listen::{ListenError, Sockets, addresses, bind};
pub use server::{ServeError, Server, serve};

use crate::material::Material;
use crate::run::Handle;
use crate::weights::WeightStore;
use std::sync::Arc;

/// What the services share; cheap to clone.
#[derive(Clone)]
pub struct Shared {
    pub run: Handle,
    pub material: Arc<Material>,
    pub weights: WeightStore,
    pub run_id: String,
    pub epoch: u64,
}
