//! Weights between safetensors files and flat f32 slabs. Not about what the tensors mean: that is the engine's.

mod init;
mod names;
mod read;
mod write;

pub use init::random_weights;
pub use read::{load_model, load_safetensors, load_slabs};
pub use write::{SaveDtype, save_safetensors, save_slabs};
pub(crate) use write::{ShardLimit, write_model};
