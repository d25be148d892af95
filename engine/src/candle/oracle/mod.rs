//! The models of the engine once more, from differentiable candle operations only: the oracle that hand-written gradients are tested
//! against.
//!
//! It is written to be obviously right and to share nothing with the backends: every completion is one whole sequence of its own
//! (image, prompt and completion run again each time), attention is a dense masked softmax, and patches are never permuted into windows.
//! It is no backend for training: it keeps every intermediate result and is several times slower.
//!
//! candle cuts the gradient silently in its fused operations (`RmsNorm::forward`, `softmax_last_dim`, `rope`, `sdpa`, …), so none of them
//! is used; `tests/candle_gradient.rs` checks that each tensor gets the gradient that finite differences predict.

mod decoder;
mod error;
mod model;
mod ops;
mod policy;
mod vision;
mod weights;

pub use error::CandleError;
pub use model::CandleModel;
