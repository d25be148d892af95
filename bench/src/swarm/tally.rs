//! What was answered to whom: every slot must be accepted once, and every accepted group must be in the ledger.

use anyhow::{Context, ensure};
use quorum_coordinator::ledger::Ledger;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Longest time without an accepted group.
const STILL: Duration = Duration::from_secs(60);

/// Latencies of one call.
#[derive(Default)]
pub struct Latency {
    micros: Vec<u32>,
    sorted: bool,
}

impl Latency {
    fn add(&mut self, d: Duration) {
        self.micros.push(u32::try_from(d.as_micros()).unwrap_or(u32::MAX));
        self.sorted = false;
    }

    /// Milliseconds below which the share `q` lies.
    pub fn ms(&mut self, q: f64) -> f64 {
        if !self.sorted {
            self.micros.sort_unstable();
            self.sorted = true;
        }
        let last = self.micros.len().saturating_sub(1);
        let at = ((self.micros.len() as f64 * q).ceil() as usize).saturating_sub(1).min(last);
        f64::from(self.micros.get(at).copied().unwrap_or(0)) / 1e3
    }
}

/// Everything seen.
#[derive(Default)]
pub struct Seen {
    pub lease: Latency,
    pub submit: Latency,
    pub errors: u64,
    pub resent: u64,
    pub duplicates: u64,
    /// Slots accepted more than once, or of which the learner saw two groups.
    pub double: u64,
    pub group_bytes: usize,
    pub wire_bytes: usize,
    accepted: u64,
    /// Accepted answers of each slot of each step.
    slots: Vec<u8>,
}

/// Shared by all workers.
pub struct Tally {
    seen: Mutex<Seen>,
    count: watch::Sender<u64>,
    prompts: u32,
}

impl Tally {
    pub fn new(steps: u64, prompts: u32) -> Self {
        let seen = Seen { slots: vec![0; steps as usize * prompts as usize], ..Seen::default() };
        Self { seen: Mutex::new(seen), count: watch::Sender::new(0), prompts }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease call brought something after `took`; `None` = it had waited for a step to open.
    pub fn leased(&self, took: Option<Duration>, bytes: usize) {
        let mut seen = self.lock();
        seen.wire_bytes += bytes;
        if let Some(took) = took {
            seen.lease.add(took);
        }
    }

    pub fn accepted(&self, step: u64, slot: u32, took: Duration, group_bytes: usize, wire_bytes: usize) {
        let mut seen = self.lock();
        seen.submit.add(took);
        seen.group_bytes = seen.group_bytes.max(group_bytes);
        seen.wire_bytes += wire_bytes;
        seen.accepted += 1;
        let place = step as usize * self.prompts as usize + slot as usize;
        let twice = seen.slots.get_mut(place).is_none_or(|n| {
            *n = n.saturating_add(1);
            *n > 1
        });
        seen.double += u64::from(twice);
        let accepted = seen.accepted;
        drop(seen);
        self.count.send_replace(accepted);
    }

    pub fn resent(&self) {
        self.lock().resent += 1;
    }

    pub fn duplicate(&self) {
        self.lock().duplicates += 1;
    }

    pub fn error(&self) {
        self.lock().errors += 1;
    }

    /// Waits until `wanted` groups are accepted.
    pub async fn wait(&self, wanted: u64) -> anyhow::Result<u64> {
        let mut count = self.count.subscribe();
        let mut moved = Instant::now();
        loop {
            let have = *count.borrow_and_update();
            if have >= wanted {
                return Ok(have);
            }
            let changed = tokio::time::timeout(Duration::from_secs(1), count.changed()).await;
            match changed {
                Ok(_) => moved = Instant::now(),
                Err(_) => ensure!(
                    moved.elapsed() < STILL,
                    "no group was accepted for {STILL:?}; {have} of {wanted} are, {} calls failed",
                    self.lock().errors
                ),
            }
        }
    }

    /// Slots that the learner was given, once each.
    pub fn learned(&self, slots: &[u32]) {
        let distinct: BTreeSet<u32> = slots.iter().copied().collect();
        self.lock().double += (slots.len() - distinct.len()) as u64;
    }

    /// (groups that stand in the ledger twice, groups that were accepted and do not stand in it).
    pub fn against_ledger(&self, dir: &Path) -> anyhow::Result<(u64, u64)> {
        let path = dir.join("ledger.db");
        let history = Ledger::inspect(&path).with_context(|| path.display().to_string())?;
        let committed = history.committed();
        let open: BTreeSet<(u64, u32)> = history.open_groups.iter().copied().collect();
        let double = (history.open_groups.len() - open.len()) as u64;
        let seen = self.lock();
        let missing = seen.slots.iter().enumerate().filter(|(i, n)| {
            let (step, slot) = (*i as u64 / u64::from(self.prompts), *i as u32 % self.prompts);
            **n > 0 && step >= committed && !open.contains(&(step, slot))
        });
        Ok((double, missing.count() as u64))
    }

    pub fn finish(&self) -> Seen {
        std::mem::take(&mut *self.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn double_counts_and_percentiles_are_seen() {
        let tally = Tally::new(1, 4);
        let ms = Duration::from_millis;
        (1..=100).for_each(|i| tally.leased(Some(ms(i)), 1));
        tally.accepted(0, 2, ms(1), 10, 10);
        tally.accepted(0, 3, ms(1), 10, 10);
        assert_eq!(tally.lock().double, 0);
        tally.accepted(0, 2, ms(1), 10, 10);
        tally.learned(&[0, 1, 1]);
        let mut seen = tally.finish();
        assert_eq!(seen.double, 2);
        assert_eq!((seen.lease.ms(0.5), seen.lease.ms(0.99), seen.lease.ms(1.0)), (50.0, 99.0, 100.0));
    }
}
