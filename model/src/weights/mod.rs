//! Weights between safetensors files and flat f32 slabs. Not about what the tensors mean: that is the engine's.

mod files;
mod init;
mod names;
mod raw;
mod read;
mod write;

pub use init::random_weights;
pub use raw::RawTensor;
pub use read::{StoredWeights, load_model, load_safetensors, load_slabs};
pub use write::{SaveDtype, save_safetensors, save_slabs};
pub(crate) use write::{ShardLimit, Tensor, Values, write_model, write_sharded};
