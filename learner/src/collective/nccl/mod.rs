//! Learner ranks that share sums over NCCL, one GPU each. What bounds every wait is in `quorum_core::nccl`.

mod operations;

use super::{CollectiveError, Patience};
use quorum_core::nccl::{BYTE, Communicator, at, new_id};
use std::time::Instant;

/// A rank of a NCCL group.
pub struct Nccl(Communicator);

impl Nccl {
    /// A new group's id, 128 bytes: rank 0 makes it and the coordinator hands it to the others.
    ///
    /// # Errors
    /// NCCL cannot be loaded or finds no network interface.
    pub fn new_id() -> Result<Vec<u8>, CollectiveError> {
        new_id()
    }

    /// Forms the group of `id` as `rank` of `world` with CUDA device number `device`; returns when all ranks have come.
    ///
    /// # Errors
    /// A rank has not come by the deadline, or library, device or id do not serve.
    pub fn form(
        id: &[u8],
        rank: usize,
        world: usize,
        device: usize,
        patience: Patience,
    ) -> Result<Self, CollectiveError> {
        Communicator::form(id, rank, world, device, patience).map(Self)
    }

    /// `all_gather` of stretches of equal length that lie one behind the other in the buffer, the own one already in place.
    fn gather(&mut self, operation: &str, start: Instant, buffer: u64, bytes: usize) -> Result<(), CollectiveError> {
        let own = at(buffer, self.0.rank() * bytes);
        self.0.call(operation, start, |nccl, communicator, stream| {
            // SAFETY: the buffer holds `world` stretches and stays until the stream is idle.
            unsafe { (nccl.all_gather)(own, at(buffer, 0), bytes, BYTE, communicator, stream) }
        })
    }

    /// One message of `mine.len()` bytes, the same on all ranks, from each.
    fn gather_equal(&mut self, operation: &str, start: Instant, mine: &[u8]) -> Result<Vec<u8>, CollectiveError> {
        let fail = |e| CollectiveError::failed(operation, start, e);
        let buffer = self.0.prepare(operation, start, self.0.world() * mine.len())?;
        self.0.device().upload(self.0.rank() * mine.len(), mine).map_err(fail)?;
        self.gather(operation, start, buffer, mine.len())?;
        let mut all = vec![0u8; self.0.world() * mine.len()];
        self.0.device().download(0, &mut all).map_err(fail)?;
        Ok(all)
    }
}
