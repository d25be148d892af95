//! How the shards of an engine add their activations: through the memory of the host, or over NCCL between GPUs.

#[cfg(all(feature = "cuda", feature = "nccl"))]
use super::nccl::Ring;
use super::team::Seat;
use crate::device::{Device, Devices};
use crate::error::EngineError;
use candle_core::Tensor;
use std::sync::Arc;

type Result<T> = std::result::Result<T, EngineError>;

/// The way between the devices of an engine.
pub enum Wires {
    /// Every shard adds all tensors in the order of the shards.
    Host,
    #[cfg(all(feature = "cuda", feature = "nccl"))]
    Nccl(Ring),
}

impl Wires {
    /// Between `devices`, nothing formed yet.
    pub fn new(devices: &Devices) -> Self {
        match devices.first() {
            #[cfg(all(feature = "cuda", feature = "nccl"))]
            Device::Cuda(_) if devices.count() > 1 => Self::Nccl(Ring::new(devices)),
            Device::Cpu | Device::CandleCpu | Device::Cuda(_) => Self::Host,
        }
    }

    /// Called by every shard at the start of a call: makes the way if it is not there or was cut.
    pub fn ready(&self, seat: Seat) -> Result<()> {
        match self {
            Self::Host => {
                let _ = seat;
                Ok(())
            }
            #[cfg(all(feature = "cuda", feature = "nccl"))]
            Self::Nccl(ring) => ring.form(seat),
        }
    }

    /// The sum of the shards' tensors.
    pub fn sum(&self, seat: Seat, x: Tensor) -> Result<Tensor> {
        match self {
            Self::Host => {
                let all = seat.meet(Arc::new(x))?;
                let tensors: Option<Vec<&Tensor>> = all.iter().map(|item| item.downcast_ref()).collect();
                let Some([first, others @ ..]) = tensors.as_deref() else {
                    return Err(EngineError::Device("the shards of a model lost step; please report this".into()));
                };
                Ok(others.iter().try_fold((*first).clone(), |sum, &x| sum + x)?)
            }
            #[cfg(all(feature = "cuda", feature = "nccl"))]
            Self::Nccl(ring) => ring.sum(seat, x),
        }
    }

    /// Ends sums under way on all devices.
    pub fn cut(&self) {
        match self {
            Self::Host => {}
            #[cfg(all(feature = "cuda", feature = "nccl"))]
            Self::Nccl(ring) => ring.cut(),
        }
    }
}
