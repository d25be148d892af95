//! Threads inside one matrix product, for models too large to give every thread a lane of its own. Rows are shared out, so no bit depends on it.

use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static THREADS: Cell<usize> = const { Cell::new(1) };
}

/// Multiply-adds below which starting a thread costs more than it saves.
const WORTH: usize = 1 << 24;

/// Runs `f` with up to `n` threads inside each large product that this thread computes.
pub fn with_threads<R>(n: usize, f: impl FnOnce() -> R) -> R {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            THREADS.set(self.0);
        }
    }
    let _restore = Restore(THREADS.replace(n.max(1)));
    f()
}

/// Calls `job(rows, their part of c)` for all of `0..rows`, cut at multiples of `unit` among the threads if `work` multiply-adds are worth it.
/// Rows of `c` lie `ld` apart; the last may be shorter.
pub fn share_rows(
    rows: usize,
    unit: usize,
    work: usize,
    c: &mut [f32],
    ld: usize,
    job: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let threads = THREADS.get().min(rows / unit);
    if threads <= 1 || work < WORTH {
        return job(0..rows, c);
    }
    let share = rows.div_ceil(threads).next_multiple_of(unit);
    std::thread::scope(|scope| {
        let mut rest = c;
        let mut at = 0;
        while at + share < rows {
            let (mine, others) = rest.split_at_mut(share * ld);
            let job = &job;
            scope.spawn(move || job(at..at + share, mine));
            (rest, at) = (others, at + share);
        }
        job(at..rows, rest);
    });
}

/// Cuts several slices of equal length alike among `threads` threads; `job` sees the same stretch of each.
pub fn share_slices<const N: usize>(threads: usize, slices: [&mut [f32]; N], job: impl Fn([&mut [f32]; N]) + Sync) {
    let n = slices[0].len();
    if threads <= 1 || n < WORTH / 16 {
        return job(slices);
    }
    let share = n.div_ceil(threads).next_multiple_of(16);
    std::thread::scope(|scope| {
        let mut rest = slices;
        loop {
            let last = rest[0].len() <= share;
            let cut = rest[0].len().min(share);
            let mut tails: [&mut [f32]; N] = std::array::from_fn(|_| &mut [][..]);
            let mut heads: [&mut [f32]; N] = std::array::from_fn(|_| &mut [][..]);
            for (i, s) in rest.into_iter().enumerate() {
                (heads[i], tails[i]) = s.split_at_mut(cut);
            }
            if last {
                return job(heads);
            }
            let job = &job;
            scope.spawn(move || job(heads));
            rest = tails;
        }
    });
}
