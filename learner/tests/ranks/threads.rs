//! Ranks as threads of one process, for tests: everybody puts a message on the table and takes everybody's.

use quorum_learner::collective::{Collective, CollectiveError, Patience};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

type Message = Arc<Vec<Vec<u8>>>;

/// The table: messages by call number and rank.
#[derive(Default)]
struct Table {
    calls: Mutex<HashMap<u64, Vec<Option<Message>>>>,
    bell: Condvar,
}

/// One rank.
pub struct Threads {
    rank: usize,
    world: usize,
    call: u64,
    table: Arc<Table>,
    patience: Patience,
}

impl Threads {
    /// All ranks of a world.
    pub fn world(world: usize, deadline: Duration) -> Vec<Self> {
        let table = Arc::new(Table::default());
        let rank = |rank| Self { rank, world, call: 0, table: table.clone(), patience: Patience::new(deadline) };
        (0..world).map(rank).collect()
    }

    fn meet(&mut self, operation: &str, mine: Vec<Vec<u8>>) -> Result<Vec<Message>, CollectiveError> {
        self.call += 1;
        let started = Instant::now();
        let mut calls = self.table.calls.lock().unwrap();
        calls.remove(&(self.call - 2.min(self.call)));
        calls.entry(self.call).or_insert_with(|| vec![None; self.world])[self.rank] = Some(Arc::new(mine));
        self.table.bell.notify_all();
        loop {
            let told = &calls[&self.call];
            if told.iter().all(Option::is_some) {
                return Ok(told.iter().flatten().cloned().collect());
            }
            let late = || (0..self.world).filter(|r| told[*r].is_none()).collect();
            self.patience.check(operation, started, late)?;
            calls = self.table.bell.wait_timeout(calls, Duration::from_millis(5)).unwrap().0;
        }
    }
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

impl Collective for Threads {
    fn transport(&self) -> &'static str {
        "threads"
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
        let mine = ranges.iter().map(|r| bytes(&input[r.clone()])).collect();
        out.fill(0.0);
        for message in self.meet("reduce_scatter", mine)? {
            out.iter_mut().zip(numbers(&message[self.rank])).for_each(|(o, x)| *o += x);
        }
        Ok(())
    }

    fn all_gather(&mut self, slab: &mut [f32], ranges: &[Range<usize>]) -> Result<(), CollectiveError> {
        let mine = vec![bytes(&slab[ranges[self.rank].clone()])];
        for (message, range) in self.meet("all_gather", mine)?.iter().zip(ranges) {
            slab[range.clone()].copy_from_slice(&numbers(&message[0]));
        }
        Ok(())
    }

    fn all_to_all(&mut self, send: &[&[f32]], receive: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
        let mine = send.iter().map(|s| bytes(s)).collect();
        for (message, to) in self.meet("all_to_all", mine)?.iter().zip(receive) {
            to.copy_from_slice(&numbers(&message[self.rank]));
        }
        Ok(())
    }

    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(self.meet("all_gather_bytes", vec![mine.to_vec()])?.iter().map(|m| m[0].clone()).collect())
    }

    fn barrier(&mut self, name: &str) -> Result<(), CollectiveError> {
        self.meet(name, Vec::new()).map(|_| ())
    }

    fn abort(&mut self, _why: &str) {}

    fn can_form_again(&self) -> bool {
        true
    }
}
