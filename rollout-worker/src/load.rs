//! How busy the engines of this worker are, counted where the work passes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of this process, as the metrics it is shown by.
pub static LOAD: Load = Load::new();

/// Counts of samples waiting and running, and the time in which anything ran.
#[derive(Debug)]
pub struct Load {
    waiting: AtomicUsize,
    running: AtomicUsize,
    busy: Mutex<Busy>,
}

#[derive(Debug)]
struct Busy {
    /// Batches running now, and since when there is one.
    batches: usize,
    since: Option<Instant>,
    before: Duration,
}

impl Load {
    const fn new() -> Self {
        let busy = Busy { batches: 0, since: None, before: Duration::ZERO };
        Self { waiting: AtomicUsize::new(0), running: AtomicUsize::new(0), busy: Mutex::new(busy) }
    }

    /// A batch of `samples` waits for an engine.
    pub fn queued(&self, samples: usize) {
        self.waiting.fetch_add(samples, Ordering::Relaxed);
    }

    /// An engine took it.
    pub fn began(&self, samples: usize) {
        self.waiting.fetch_sub(samples, Ordering::Relaxed);
        self.running.fetch_add(samples, Ordering::Relaxed);
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.batches += 1;
        busy.since.get_or_insert_with(Instant::now);
    }

    /// It is done, or was given up.
    pub fn ended(&self, samples: usize) {
        self.running.fetch_sub(samples, Ordering::Relaxed);
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.batches = busy.batches.saturating_sub(1);
        if busy.batches == 0
            && let Some(since) = busy.since.take()
        {
            busy.before += since.elapsed();
        }
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Time in which at least one batch ran, until now.
    pub fn busy(&self) -> Duration {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.before + busy.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_engines_at_once_are_busy_once() {
        let load = Load::new();
        load.queued(4);
        load.queued(2);
        assert_eq!((load.waiting(), load.running(), load.busy()), (6, 0, Duration::ZERO));
        let start = Instant::now();
        load.began(4);
        load.began(2);
        std::thread::sleep(Duration::from_millis(20));
        load.ended(2);
        assert_eq!((load.waiting(), load.running()), (0, 4));
        load.ended(4);
        let (busy, wall) = (load.busy(), start.elapsed());
        assert!(busy >= Duration::from_millis(20) && busy <= wall, "{busy:?} of {wall:?}");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(load.busy(), busy, "an idle engine adds nothing");
    }
}
