//! The engine on a candle device: the same plan, batches and objective as the `cpu` backend, on tensors that live on a GPU (or, for
//! tests, on the CPU). Forward and backward are explicit; candle's automatic differentiation takes no part, so nothing is kept that the
//! backward pass does not read, and frozen weights cost no gradient.
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
mod head;
mod kv;
mod layers;
mod merger;
mod model;
mod ops;
mod oracle;
mod rows;
mod store;
mod vision;

pub(crate) use backend::{Backend, BackendFiller};
pub use oracle::{CandleError, CandleModel};
