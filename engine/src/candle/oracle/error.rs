//! What can go wrong in the candle models: a request or checkpoint that does not fit, or candle itself (device, memory, operation).

use crate::error::EngineError;

/// Errors of the candle models; the weights are never changed by a call, failed or not.
#[derive(Debug, thiserror::Error)]
pub enum CandleError {
    /// The same complaints about layouts, slabs and requests as the `cpu` backend's.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// candle refused an operation or a device.
    #[error("candle: {0}; check that the device has enough memory and supports the data type")]
    Candle(#[from] candle_core::Error),
}

impl CandleError {
    pub(super) fn request(problem: impl Into<String>) -> Self {
        Self::Engine(EngineError::Request(problem.into()))
    }

    pub(super) fn shape(problem: impl Into<String>) -> Self {
        Self::Engine(EngineError::Shape(problem.into()))
    }
}
