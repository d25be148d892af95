//! Ranks over MPI: the library's non-blocking collectives, polled under a deadline. Buffers that the library still writes to after a call was given
//! up are never freed, and a group that broke ends its processes: MPI has no way back.

mod waiting;

use super::{Collective, CollectiveError, Patience, check_ranges};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi::{self, MPI_Comm};
use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::time::{Duration, Instant};
use waiting::watchdog;

/// Elements of all ranks together that travel in one call of the library.
const STAGE: usize = 1 << 22;
/// Time to leave together.
const FAREWELL: Duration = Duration::from_secs(10);

/// The world of an `mpirun` or `srun`.
pub struct Mpi {
    universe: ManuallyDrop<Universe>,
    comm: MPI_Comm,
    rank: usize,
    world: usize,
    patience: Patience,
    /// Calls so far: ranks that are in different ones find out.
    calls: u64,
    /// A call was given up; the library may still be at work on it.
    broken: bool,
}

impl Mpi {
    /// Joins the world of this process, which must be rank `rank` of `world`.
    ///
    /// # Errors
    /// The process was not started by mpirun or srun, or as another rank.
    pub fn form(rank: usize, world: usize, patience: Patience) -> Result<Self, CollectiveError> {
        let started = Instant::now();
        let failed = |reason: String| CollectiveError::Failed {
            operation: "MPI_Init".into(),
            seconds: started.elapsed().as_secs_f64(),
            reason,
        };
        let guard = watchdog(patience.deadline, "MPI_Init: other ranks are late or lost");
        let universe = mpi::initialize_with_threading(Threading::Funneled);
        drop(guard);
        let (universe, _) = universe.ok_or_else(|| failed("it was called before in this process".into()))?;
        // SAFETY: MPI is initialised; the out-pointers are valid for one integer each.
        let (comm, found) = unsafe {
            let comm = ffi::RSMPI_COMM_WORLD;
            ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN);
            let (mut rank, mut size): (c_int, c_int) = (0, 0);
            ffi::MPI_Comm_rank(comm, &mut rank);
            ffi::MPI_Comm_size(comm, &mut size);
            (comm, (rank as usize, size as usize))
        };
        let universe = ManuallyDrop::new(universe);
        let mut mpi = Self { universe, comm, rank, world, patience, calls: 0, broken: found != (rank, world) };
        if mpi.broken {
            let (is, of) = found;
            let reason = format!("MPI counts this process as rank {is} of {of}, not {rank} of {world}");
            mpi.abort(&failed(format!("{reason}; start all ranks with one mpirun or srun")).to_string());
        }
        Ok(mpi)
    }
}

fn counts(lengths: impl Iterator<Item = usize>) -> (Vec<c_int>, Vec<c_int>) {
    let mut at = 0;
    let of = |n: usize| {
        at += n as c_int;
        (n as c_int, at - n as c_int)
    };
    lengths.map(of).unzip()
}

/// The part of a stretch that travels in one call: `STAGE` elements are shared among the ranks.
fn cut(range: &Range<usize>, at: usize, piece: usize) -> Range<usize> {
    (range.start + at).min(range.end)..(range.start + at + piece).min(range.end)
}

impl Collective for Mpi {
    fn transport(&self) -> &'static str {
        "mpi"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn reduce_scatter(
        &mut self,
        input: &[f32],
        ranges: &[Range<usize>],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        const CALL: &str = "reduce_scatter";
        check_ranges(CALL, ranges, self.world, input.len())?;
        let started = Instant::now();
        self.roll_call(CALL, started)?;
        let piece = (STAGE / self.world).max(1);
        let longest = ranges.iter().map(Range::len).max().unwrap_or(0);
        let mut send = Vec::new();
        for at in (0..longest).step_by(piece) {
            send.clear();
            for range in ranges {
                send.extend_from_slice(input.get(cut(range, at, piece)).unwrap_or_default());
            }
            let (lengths, _) = counts(ranges.iter().map(|r| cut(r, at, piece).len()));
            let own = lengths.get(self.rank).map_or(0, |n| *n as usize);
            let (back, sum) =
                self.staged(CALL, started, send, own, vec![lengths], |s, r, t, comm, request| unsafe {
                    // SAFETY: the buffers hold the sum of the lengths, and the own length, f32 values; they live until the request completes.
                    ffi::MPI_Ireduce_scatter(s, r, t[0], ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, comm, request)
                })?;
            send = back;
            if let Some(to) = out.get_mut(at.min(longest)..at + own) {
                to.copy_from_slice(&sum);
            }
        }
        Ok(())
    }

    fn all_gather(&mut self, slab: &mut [f32], ranges: &[Range<usize>]) -> Result<(), CollectiveError> {
        const CALL: &str = "all_gather";
        check_ranges(CALL, ranges, self.world, slab.len())?;
        let started = Instant::now();
        self.roll_call(CALL, started)?;
        let piece = (STAGE / self.world).max(1);
        let longest = ranges.iter().map(Range::len).max().unwrap_or(0);
        for at in (0..longest).step_by(piece) {
            let parts: Vec<Range<usize>> = ranges.iter().map(|r| cut(r, at, piece)).collect();
            let (lengths, places) = counts(parts.iter().map(Range::len));
            let mine = parts.get(self.rank).and_then(|r| slab.get(r.clone())).unwrap_or_default().to_vec();
            let (own, total) = (mine.len() as c_int, parts.iter().map(Range::len).sum());
            let tables = vec![lengths, places];
            let (_, all) = self.staged(CALL, started, mine, total, tables, |s, r, t, comm, request| unsafe {
                let kind = ffi::RSMPI_FLOAT;
                // SAFETY: as in `reduce_scatter`; lengths and places describe the receiving buffer.
                ffi::MPI_Iallgatherv(s, own, kind, r, t[0], t[1], kind, comm, request)
            })?;
            let mut rest = all.as_slice();
            for part in parts {
                let (theirs, others) = rest.split_at_checked(part.len()).unwrap_or_default();
                if let Some(to) = slab.get_mut(part) {
                    to.copy_from_slice(theirs);
                }
                rest = others;
            }
        }
        Ok(())
    }

    fn all_to_all(&mut self, send: &[&[f32]], receive: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
        const CALL: &str = "all_to_all";
        let started = Instant::now();
        let longest = send.iter().map(|s| s.len()).chain(receive.iter().map(|r| r.len())).max().unwrap_or(0);
        if send.len() != self.world || receive.len() != self.world || longest.saturating_mul(self.world) > 1 << 30 {
            let reason = format!("{} slices of at most {longest} for {} ranks", send.len(), self.world);
            return Err(CollectiveError::Arguments { operation: CALL, reason });
        }
        self.roll_call(CALL, started)?;
        let (out, out_at) = counts(send.iter().map(|s| s.len()));
        let (back, back_at) = counts(receive.iter().map(|r| r.len()));
        let total = receive.iter().map(|r| r.len()).sum();
        let tables = vec![out, out_at, back, back_at];
        let (_, all) = self.staged(CALL, started, send.concat(), total, tables, |s, r, t, comm, request| unsafe {
            let kind = ffi::RSMPI_FLOAT;
            // SAFETY: as in `reduce_scatter`; lengths and places describe both buffers.
            ffi::MPI_Ialltoallv(s, t[0], t[1], kind, r, t[2], t[3], kind, comm, request)
        })?;
        let mut rest = all.as_slice();
        for to in receive {
            let (theirs, others) = rest.split_at_checked(to.len()).unwrap_or_default();
            to.copy_from_slice(theirs);
            rest = others;
        }
        Ok(())
    }

    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        const CALL: &str = "all_gather_bytes";
        let started = Instant::now();
        self.roll_call(CALL, started)?;
        let (_, lengths) = self.staged(
            CALL,
            started,
            vec![mine.len() as u64],
            self.world,
            Vec::new(),
            |s, r, _, comm, request| unsafe {
                let kind = ffi::RSMPI_UINT64_T;
                // SAFETY: one word out, one a rank back.
                ffi::MPI_Iallgather(s, 1, kind, r, 1, kind, comm, request)
            },
        )?;
        let total = lengths.iter().sum::<u64>();
        if total > i32::MAX as u64 {
            let reason = format!("messages of {total} bytes together, more than 2 GiB");
            return Err(CollectiveError::Arguments { operation: CALL, reason });
        }
        let (sizes, places) = counts(lengths.iter().map(|n| *n as usize));
        let tables = vec![sizes.clone(), places];
        let (_, all) =
            self.staged(CALL, started, mine.to_vec(), total as usize, tables, |s, r, t, comm, request| unsafe {
                let kind = ffi::RSMPI_UINT8_T;
                // SAFETY: as in `all_gather`.
                ffi::MPI_Iallgatherv(s, mine.len() as c_int, kind, r, t[0], t[1], kind, comm, request)
            })?;
        let mut rest = all.as_slice();
        let mut out = Vec::with_capacity(self.world);
        for size in sizes {
            let (theirs, others) = rest.split_at_checked(size as usize).unwrap_or_default();
            out.push(theirs.to_vec());
            rest = others;
        }
        Ok(out)
    }

    fn barrier(&mut self, name: &str) -> Result<(), CollectiveError> {
        self.all_gather_bytes(name.as_bytes()).map(|_| ())
    }

    fn abort(&mut self, why: &str) {
        quorum_core::logging::fail(why);
        // SAFETY: MPI is initialised; the call ends this process and asks mpirun to end the others.
        unsafe { ffi::MPI_Abort(self.comm, 1) };
        std::process::exit(1);
    }

    fn can_form_again(&self) -> bool {
        false
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let _guard = watchdog(FAREWELL, "MPI_Finalize: other ranks are late or lost");
        if self.broken {
            // Leaving in the middle of a call: the library would wait for it.
            // SAFETY: as in `abort`.
            unsafe { ffi::MPI_Abort(self.comm, 1) };
            std::process::exit(1);
        }
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.universe) };
    }
}
