//! The engine on a candle device: the same plan, batches and objective as the `cpu` backend, on tensors that live on a GPU (or, for
//! tests, on the CPU). Forward and backward are explicit; candle's automatic differentiation takes no part, so nothing is kept that the
//! backward pass does not read, and frozen weights cost no gradient.
//!
//! Several devices may compute one model: `holdings` says what each of them holds, `team` runs them side by side, `wires` adds their activations.
//!
//! A decoding step (`step`) keeps its shapes and its memory from token to token; on a GPU it is recorded once and repeated (`recording`, `graphs`).
//!
//! `ops` is the seam for fused kernels: plain candle operations stand behind every function of it. What is not promised here is bit
//! equality between batches: a device picks its kernels by shape. `oracle` is an independent model by automatic differentiation.

mod attention;
mod backend;
#[cfg(test)]
mod bf16_tests;
mod block;
mod draw;
#[cfg(feature = "cuda")]
pub mod fused;
mod generate;
#[cfg(feature = "cuda")]
mod graphs;
mod head;
mod holdings;
mod kv;
mod layers;
mod merger;
mod model;
#[cfg(all(feature = "cuda", feature = "nccl"))]
mod nccl;
mod ops;
mod oracle;
#[cfg(any(feature = "cuda", test))]
mod recording;
mod rows;
mod shard;
mod step;
mod store;
mod team;
mod vision;
mod wires;

pub(crate) use backend::{Backend, BackendFiller};
pub use oracle::{CandleError, CandleModel};
pub(crate) use shard::Call;
