//! Devices that compute one model together, a thread each: they meet to add activations and to hear what the first one drew. A shard that
//! fails, panics or does not come ends the call of all of them with an error that names it.

use super::wires::Wires;
use crate::device::Devices;
use crate::error::EngineError;
use candle_core::Tensor;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, EngineError>;
type Item = Arc<dyn Any + Send + Sync>;

/// How long the shards may compute without meeting.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a shard looks for the others before it sleeps: sums of a decoding step are microseconds apart on GPUs.
const SPIN: Duration = Duration::from_micros(50);

/// The devices of one engine.
pub struct Team {
    devices: Devices,
    patience: Duration,
    wires: Wires,
    /// One call at a time: the shards of two would wait for one another, and a step being recorded would take in the other's work.
    calls: Mutex<()>,
    state: Mutex<State>,
    /// A round is complete, or the call ends early.
    met: Condvar,
    /// A shard is done.
    done: Condvar,
    /// Complete rounds and early ends.
    turns: AtomicU64,
}

/// One call.
#[derive(Default)]
struct State {
    /// What came in this round, by shard.
    items: Vec<Option<Item>>,
    /// Everything of the last complete round.
    given: Arc<Vec<Item>>,
    rounds: u64,
    finished: Vec<bool>,
    /// Goes up whenever a shard comes or is done.
    progress: u64,
    /// Why the call ends early: a shard failed, or the first one refused on behalf of all.
    ended: Option<EngineError>,
}

/// A shard's place in a call.
#[derive(Clone, Copy)]
pub struct Seat<'a> {
    team: &'a Team,
    rank: usize,
}

impl Team {
    /// The shards of an engine on `devices`.
    pub fn new(devices: Devices) -> Self {
        Self::with_patience(devices, PATIENCE)
    }

    fn with_patience(devices: Devices, patience: Duration) -> Self {
        let wires = Wires::new(&devices);
        let (state, calls) = (Mutex::default(), Mutex::default());
        let (met, done, turns) = (Condvar::new(), Condvar::new(), AtomicU64::new(0));
        Self { devices, patience, wires, calls, state, met, done, turns }
    }

    fn world(&self) -> usize {
        self.devices.count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` as every shard, each on a thread of its own; results in their order. A single shard runs on this thread.
    ///
    /// # Errors
    /// What the first shard refused on behalf of all, or which shard failed or did not come, and why.
    pub fn run<R: Send>(&self, work: impl Fn(Seat) -> Result<R> + Sync) -> Result<Vec<R>> {
        let world = self.world();
        let _one = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if world == 1 {
            return Ok(vec![work(Seat { team: self, rank: 0 })?]);
        }
        let items = (0..world).map(|_| None).collect();
        *self.state() = State { items, finished: vec![false; world], ..State::default() };
        let shard = &|rank| {
            let seat = Seat { team: self, rank };
            let whole = || self.wires.ready(seat).and_then(|()| work(seat));
            let result = catch_unwind(AssertUnwindSafe(whole))
                .unwrap_or_else(|panic| Err(EngineError::Thread(crate::engine::panic_text(&*panic))));
            let result = result.map_err(|error| self.end(self.named(rank, &error)));
            let mut state = self.state();
            state.finished[rank] = true;
            state.progress += 1;
            self.done.notify_all();
            result.ok()
        };
        let results = std::thread::scope(|scope| {
            let start = |rank| {
                let thread = std::thread::Builder::new().name(format!("shard-{rank}"));
                let none = |error: &std::io::Error| {
                    self.end(self.named(rank, &EngineError::Thread(error.to_string())));
                    self.state().finished[rank] = true;
                };
                thread.spawn_scoped(scope, move || shard(rank)).inspect_err(none).ok()
            };
            let threads: Vec<_> = (0..world).map(start).collect();
            self.watch();
            threads.into_iter().map(|t| t?.join().ok().flatten()).collect::<Option<Vec<R>>>()
        });
        let ended = std::mem::take(&mut *self.state()).ended;
        match (results, ended) {
            (Some(results), None) => Ok(results),
            (_, ended) => Err(ended.unwrap_or_else(|| EngineError::Thread("a shard left without a result".into()))),
        }
    }

    /// Waits until every shard is done; ends the call where none of them goes on.
    fn watch(&self) {
        let (mut seen, mut since) = (0, Instant::now());
        let mut state = self.state();
        while state.finished.iter().any(|done| !done) {
            if state.progress != seen {
                (seen, since) = (state.progress, Instant::now());
            }
            if since.elapsed() >= self.patience && state.ended.is_none() {
                let absent = |s: &State, rank: usize| !s.finished[rank] && s.items[rank].is_none();
                let late: Vec<usize> = (0..self.world()).filter(|&rank| absent(&state, rank)).collect();
                drop(state);
                self.end(self.late(&late));
                state = self.state();
            }
            let tick = (self.patience / 8).max(Duration::from_millis(1));
            state = self.done.wait_timeout(state, tick).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the call of all shards because one of them failed, unless it has been ended.
    fn end(&self, why: EngineError) {
        if self.refuse(why) {
            // Sums may wait on a device for one that does not come.
            self.wires.cut();
        }
    }

    /// Ends the call of all shards with that error; false if it has been ended.
    fn refuse(&self, why: EngineError) -> bool {
        let mut state = self.state();
        let new = state.ended.is_none();
        state.ended.get_or_insert(why);
        drop(state);
        self.turns.fetch_add(1, Ordering::Release);
        self.met.notify_all();
        new
    }

    fn name(&self, rank: usize) -> String {
        format!("shard {rank} of {}", self.devices)
    }

    fn named(&self, rank: usize, error: &EngineError) -> EngineError {
        let name = self.name(rank);
        match error {
            EngineError::Thread(why) => EngineError::Thread(format!("{name}: {why}")),
            EngineError::Device(why) => EngineError::Device(format!("{name}: {why}")),
            other => EngineError::Device(format!("{name}: {other}")),
        }
    }

    fn late(&self, ranks: &[usize]) -> EngineError {
        let names: Vec<String> = ranks.iter().map(|&rank| self.name(rank)).collect();
        let who = if names.is_empty() { "every shard".into() } else { names.join(" and ") };
        EngineError::Device(format!("{who} did not come to a sum for {:.1} s", self.patience.as_secs_f64()))
    }
}

impl Seat<'_> {
    /// Whether this is the shard that draws and answers for all.
    pub fn first(&self) -> bool {
        self.rank == 0
    }

    /// Its number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many shards there are.
    pub fn world(&self) -> usize {
        self.team.world()
    }

    /// What every shard brings, in their order. All shards call this in the same order of calls.
    pub(super) fn meet(&self, mine: Item) -> Result<Arc<Vec<Item>>> {
        let team = self.team;
        let mut state = team.state();
        if let Some(why) = &state.ended {
            return Err(why.clone());
        }
        let (round, turn) = (state.rounds, team.turns.load(Ordering::Acquire));
        state.items[self.rank] = Some(mine);
        state.progress += 1;
        if state.items.iter().all(Option::is_some) {
            state.given = Arc::new(state.items.iter_mut().filter_map(Option::take).collect());
            state.rounds += 1;
            team.turns.fetch_add(1, Ordering::Release);
            team.met.notify_all();
            return Ok(state.given.clone());
        }
        drop(state);
        let start = Instant::now();
        while team.turns.load(Ordering::Acquire) == turn && start.elapsed() < SPIN {
            std::hint::spin_loop();
        }
        let mut state = team.state();
        // `watch` ends what takes too long.
        while state.rounds == round {
            if let Some(why) = &state.ended {
                return Err(why.clone());
            }
            state = team.met.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state.given.clone())
    }

    /// The sum of the shards' tensors, the same bits for all of them.
    pub fn sum(&self, x: Tensor) -> Result<Tensor> {
        if self.world() == 1 { Ok(x) } else { self.team.wires.sum(*self, x) }
    }

    /// What the first shard makes, for all of them. Its error is that of the call, without blame on a shard.
    pub fn share<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        if self.world() == 1 {
            return make().map(Arc::new);
        }
        let mine: Item = match self.first().then(make) {
            Some(Ok(made)) => Arc::new(made),
            Some(Err(why)) => {
                self.team.refuse(why.clone());
                return Err(why);
            }
            None => Arc::new(()),
        };
        let all = self.meet(mine)?;
        let first = all.first().cloned().and_then(|item| item.downcast::<T>().ok());
        first.ok_or_else(|| EngineError::Device("the shards of a model lost step; please report this".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn team(n: usize, milliseconds: u64) -> Team {
        let devices = vec!["candle-cpu"; n].join("+").parse().unwrap();
        Team::with_patience(devices, Duration::from_millis(milliseconds))
    }

    fn tensor(x: f32) -> Tensor {
        Tensor::new(&[x, 1.0], &Device::Cpu).unwrap()
    }

    /// Many short sums and words of the first shard, in turn.
    fn talk(seat: Seat) -> Result<f32> {
        let mut at = 1.0;
        for round in 0..200u32 {
            let sum = seat.sum(tensor(at * (seat.rank() + 1) as f32))?.to_vec1::<f32>()?;
            assert_eq!(sum, [at * 10.0, 4.0]);
            at = *seat.share(|| Ok((round % 7 + 1) as f32))?;
        }
        Ok(at)
    }

    #[test]
    fn shards_add_and_follow_the_first() {
        assert_eq!(team(4, 60_000).run(talk).unwrap(), [4.0; 4]);
    }

    #[test]
    fn a_shard_that_fails_or_panics_ends_the_call_of_all_and_is_named() {
        let team = team(4, 60_000);
        let start = Instant::now();
        let fails = team.run(|seat| match seat.rank() {
            2 => Err(EngineError::Device("out of memory".into())),
            _ => talk(seat),
        });
        let error = fails.unwrap_err().to_string();
        assert!(error.contains("shard 2 of candle-cpu+candle-cpu") && error.contains("out of memory"), "{error}");
        let panics = team.run(|seat| {
            assert!(seat.rank() != 3, "a defect");
            talk(seat)
        });
        let error = panics.unwrap_err().to_string();
        assert!(error.contains("shard 3 of") && error.contains("a defect"), "{error}");
        // What the first one refuses is nobody's fault, and the next call begins anew.
        let refused = team.run(|seat| seat.share(|| Err::<(), _>(EngineError::Cancelled)).map(|_| ()));
        assert_eq!(refused.unwrap_err(), EngineError::Cancelled);
        assert_eq!(team.run(talk).unwrap(), [4.0; 4]);
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_shard_that_does_not_come_is_named_at_the_deadline() {
        let left = AtomicU64::new(0);
        let late = team(2, 200).run(|seat| {
            if seat.rank() == 1 {
                // Until the other one has given up.
                while left.load(Ordering::Acquire) == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                return Ok(());
            }
            let result = seat.sum(tensor(1.0)).map(|_| ());
            left.store(1, Ordering::Release);
            result
        });
        let error = late.unwrap_err().to_string();
        assert!(error.contains("shard 1 of") && error.contains("did not come"), "{error}");
    }
}
