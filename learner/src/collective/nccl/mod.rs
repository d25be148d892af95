//! Learner ranks that share sums over NCCL, one GPU each. What bounds every wait is in `quorum_core::nccl`.

mod operations;

use super::CollectiveError;
use quorum_core::nccl::{BYTE, Communicator, at};
use std::time::Instant;

/// A rank of a NCCL group that is formed.
pub struct Nccl(pub Communicator);

impl Nccl {
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
