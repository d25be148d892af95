//! What can go wrong in the engine. Every message names the thing and says what to do.

use thiserror::Error;

/// Errors of the engine; none of them leaves weights, gradients or moments half changed.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum EngineError {
    /// The layout lacks a tensor that the configuration needs, or it has another shape.
    #[error(
        "tensor {name} should have shape {expected:?} but the layout has {found}; check that config.json belongs to these weights"
    )]
    Tensor { name: String, expected: Vec<usize>, found: String },
    /// A shape that the kernels do not support.
    #[error("unsupported model shape: {0}")]
    Shape(String),
    /// The slab handed in does not belong to the layout.
    #[error("{what} has {found} elements but the layout has {expected}; load it with the same checkpoint")]
    SlabLength { what: &'static str, found: usize, expected: usize },
    /// A prompt, completion or sampling setting that cannot be used.
    #[error("bad request: {0}")]
    Request(String),
    /// Arithmetic left the finite numbers.
    #[error(
        "not a finite number in {0}; the weights are damaged or training diverged: go back to an older checkpoint or lower the learning rate"
    )]
    NotFinite(String),
    /// The caller's cancel function said so.
    #[error("cancelled by the caller")]
    Cancelled,
    /// A processor without the needed instructions.
    #[error("this processor has no AVX2 and FMA instructions, which the cpu backend needs; run on x86-64-v3 or newer")]
    Processor,
    /// A backend that this executable or this machine does not have.
    #[error("device {device} cannot be used: {reason}")]
    Unavailable { device: String, reason: String },
    /// The device refused an operation: out of memory, lost, or a defect of the backend.
    #[error("the device failed: {0}; if it is out of memory, lower rollout or learner batch sizes or use more devices")]
    Device(String),
    /// A worker thread ended abnormally (a defect of the engine).
    #[error("an engine thread ended abnormally: {0}; please report this with the prompt that caused it")]
    Thread(String),
}

#[cfg(feature = "candle")]
impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        Self::Device(text.lines().next().unwrap_or_default().to_owned())
    }
}
