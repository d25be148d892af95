//! What learner ranks say to each other, behind one small trait. No algorithm of our own: every implementation hands the work to a library.
//!
//! All ranks make the same calls in the same order, each with arguments that fit the others'. A call ends with a result, or with an
//! error after its deadline or as soon as the run no longer wants this process; after an error the group is of no use and must form anew.

#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod one;

#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
#[cfg(feature = "nccl")]
pub use self::nccl::Nccl;
pub use one::OneRank;
pub use quorum_core::collective::{CollectiveError, Interrupt, Late, Patience};

use std::ops::Range;

/// Elements that are never split between two ranks; a multiple of what the optimiser's kernels take at once.
pub const BLOCK: usize = 4096;

/// The stretch of a slab of `total` elements that each of `world` ranks owns: whole blocks, equally many; the last owners get less or nothing.
pub fn shares(total: usize, world: usize) -> Vec<Range<usize>> {
    let share = total.div_ceil(BLOCK).div_ceil(world.max(1)) * BLOCK;
    (0..world).map(|rank| (rank * share).min(total)..((rank + 1) * share).min(total)).collect()
}

/// A group of ranks. Calls block until every rank has done its part.
pub trait Collective {
    /// "one", "mpi" or "nccl".
    fn transport(&self) -> &'static str;

    /// Number of this rank, below `world`.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// Sums `input` (the same length on every rank) over all ranks; `out` gets the stretch `ranges[rank]` of the sum.
    /// `ranges` holds one stretch a rank, the same on every rank, in order and without overlap. The order of addition is the library's.
    ///
    /// # Errors
    /// A rank is lost or late, or the arguments do not fit.
    fn reduce_scatter(
        &mut self,
        input: &[f32],
        ranges: &[Range<usize>],
        out: &mut [f32],
    ) -> Result<(), CollectiveError>;

    /// Brings every rank's stretch of `slab` to all ranks: `slab[ranges[r]]` becomes rank r's, everywhere.
    ///
    /// # Errors
    /// As for `reduce_scatter`.
    fn all_gather(&mut self, slab: &mut [f32], ranges: &[Range<usize>]) -> Result<(), CollectiveError>;

    /// `send[r]` goes to rank r, and `receive[r]` is what rank r sent here. Both hold one slice a rank; lengths are agreed on beforehand
    /// (what rank a sends to b is as long as what b receives from a; it may be empty). The own part is copied.
    ///
    /// # Errors
    /// As for `reduce_scatter`.
    fn all_to_all(&mut self, send: &[&[f32]], receive: &mut [&mut [f32]]) -> Result<(), CollectiveError>;

    /// A small message of each rank to all, of any lengths; the result is by rank, the own message included.
    ///
    /// # Errors
    /// As for `reduce_scatter`.
    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;

    /// Returns once every rank has come here; `name` says where in errors.
    ///
    /// # Errors
    /// As for `reduce_scatter`.
    fn barrier(&mut self, name: &str) -> Result<(), CollectiveError>;

    /// Ends the group so that no other rank waits for this one. Called once, after an error of any kind; must not block.
    fn abort(&mut self, why: &str);

    /// Whether this process can be part of a new group after the old one ended (otherwise it must be started anew).
    fn can_form_again(&self) -> bool;
}

/// Checks that `ranges` has one stretch a rank, in order, inside `total`.
///
/// # Errors
/// Says what does not fit.
pub fn check_ranges(
    operation: &'static str,
    ranges: &[Range<usize>],
    world: usize,
    total: usize,
) -> Result<(), CollectiveError> {
    let ordered = ranges.iter().all(|r| r.start <= r.end) && ranges.windows(2).all(|w| w[0].end <= w[1].start);
    if ranges.len() == world && ordered && ranges.last().is_some_and(|r| r.end <= total) {
        return Ok(());
    }
    let reason = format!("{} stretches for {world} ranks and {total} elements do not fit", ranges.len());
    Err(CollectiveError::Arguments { operation, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_the_slab_in_whole_blocks() {
        for total in [0, 1, 4095, 4096, 4097, 50_000, 1 << 20] {
            for world in 1..=9 {
                let ranges = shares(total, world);
                assert_eq!(ranges.len(), world);
                assert_eq!((ranges[0].start, ranges[world - 1].end), (0, total));
                assert!(ranges.windows(2).all(|w| w[0].end == w[1].start), "{ranges:?}");
                assert!(ranges.iter().all(|r| r.start % BLOCK == 0 || r.is_empty()), "{ranges:?}");
                assert!(check_ranges("test", &ranges, world, total).is_ok());
            }
        }
        assert_eq!(shares(4 * BLOCK, 4).iter().map(Range::len).collect::<Vec<_>>(), [BLOCK; 4]);
        assert!(check_ranges("test", &shares(100, 2), 3, 100).is_err());
        assert!(check_ranges("test", &shares(100, 2), 2, 99).is_err());
    }
}
