//! The arithmetic of Quorum: forward, backward, sampling, optimiser. Flat f32 slabs in, numbers out; no I/O, no clock.
//!
//! On the CPU ([`Device::Cpu`]) every output element of every kernel is a fixed chain of operations, independent of batch, threads and instruction set, so rollout
//! log-probs equal the training forward's bit for bit (D1–D3 of the architecture).

mod alloc;
mod block;
#[cfg(feature = "candle")]
pub mod candle;
mod device;
mod engine;
mod error;
mod families;
mod generate;
mod inspect;
mod kernels;
mod kv;
mod linear;
mod mlp;
mod model;
mod norm;
mod optim;
mod params;
mod pool;
mod qk_norm;
mod rope_table;
mod sampling;
mod store;
mod tape;
mod trainer;
mod types;

pub use alloc::tune_allocator;
pub use device::{Device, Devices};
pub use engine::{Engine, Loader};
pub use error::EngineError;
pub use inspect::VisionTrace;
pub use kernels::isa::instruction_set;
pub use kv::kv_usage_ratio;
pub use optim::SquareSum;
pub use quorum_core::types::{Finish, SampleKey, Sampling};
pub use trainer::{Objective, Trainer};
pub use types::{AdamW, GenRequest, OptimState, Pack, PackScores, PolicyDist, Sample, StepStats};
