//! The tasks of the current phase and the leases on them. Fences rise with every grant, over restarts too; only the newest fence of a task can be answered (INV-5).

use super::Seconds;
use super::phase::FAILURES_TO_QUARANTINE;
use quorum_core::Purpose;
use std::collections::{BTreeSet, HashMap, HashSet};

/// One unit of leased work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Work {
    pub purpose: Purpose,
    /// Training step, or the version under evaluation.
    pub step: u64,
    pub slot: u32,
}

/// A lease handed out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grant {
    pub lease: u64,
    pub fence: u64,
    pub work: Work,
    pub version: u64,
    /// Seconds the holder has.
    pub seconds: f64,
}

/// What becomes of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The newest holder answers: make it durable, then call `recorded`.
    Record,
    /// The same lease was answered before; `durable` tells whether that answer already is.
    Duplicate {
        durable: bool,
    },
    StaleFence(String),
    StaleVersion(String),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum TaskState {
    Pending,
    Leased(u64),
    /// Answered, not durable yet.
    Recording,
    Done,
}

#[derive(Debug, Clone)]
struct Task {
    work: Work,
    state: TaskState,
    fence: u64,
    /// (holder, reason) of each try.
    failures: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
struct Lease {
    task: usize,
    fence: u64,
    holder: String,
    deadline: Seconds,
}

/// Tasks, leases and the memory of answered leases.
#[derive(Debug)]
pub(super) struct Board {
    version: u64,
    tasks: Vec<Task>,
    index: HashMap<Work, usize>,
    pending: BTreeSet<usize>,
    leases: HashMap<u64, Lease>,
    open: usize,
    /// Leases answered in this phase and the one before, so that a repeated answer is known.
    answered: [HashMap<u64, Work>; 2],
    next_lease: u64,
    next_fence: u64,
}

impl Board {
    /// Lease ids and fences of a later epoch are higher than all of an earlier one.
    pub(super) fn new(epoch: u64) -> Self {
        let base = epoch << 40;
        Self {
            version: 0,
            tasks: Vec::new(),
            index: HashMap::new(),
            pending: BTreeSet::new(),
            leases: HashMap::new(),
            open: 0,
            answered: [HashMap::new(), HashMap::new()],
            next_lease: base + 1,
            next_fence: base + 1,
        }
    }

    /// Replaces the tasks; those in `done` need no lease.
    pub(super) fn load(&mut self, works: Vec<Work>, version: u64, done: &HashSet<Work>) {
        let previous = std::mem::take(&mut self.answered[0]);
        self.answered[1] = previous;
        self.version = version;
        self.leases.clear();
        self.pending.clear();
        self.tasks = works
            .into_iter()
            .map(|work| {
                let state = if done.contains(&work) { TaskState::Done } else { TaskState::Pending };
                Task { work, state, fence: 0, failures: Vec::new() }
            })
            .collect();
        self.index = self.tasks.iter().enumerate().map(|(i, t)| (t.work, i)).collect();
        self.pending = (0..self.tasks.len()).filter(|&i| self.tasks[i].state == TaskState::Pending).collect();
        self.open = self.pending.len();
    }

    /// Tasks that are not durable yet.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn leased(&self) -> usize {
        self.leases.len()
    }

    /// Grants up to `capacity` pending tasks in canonical order. Unless the holder is alone, a task that it could not answer is left to another.
    pub(super) fn grant(
        &mut self,
        now: Seconds,
        holder: &str,
        capacity: usize,
        seconds: f64,
        alone: bool,
    ) -> Vec<Grant> {
        let tried = |i: &&usize| self.tasks[**i].failures.iter().any(|(by, _)| by == holder);
        let chosen: Vec<usize> = self.pending.iter().filter(|i| alone || !tried(i)).copied().take(capacity).collect();
        chosen
            .into_iter()
            .map(|i| {
                self.pending.remove(&i);
                let (lease, fence) = (self.next_lease, self.next_fence);
                self.next_lease += 1;
                self.next_fence += 1;
                let task = &mut self.tasks[i];
                task.fence = fence;
                task.state = TaskState::Leased(lease);
                let held = Lease { task: i, fence, holder: holder.to_owned(), deadline: now + seconds };
                self.leases.insert(lease, held);
                Grant { lease, fence, work: task.work, version: self.version, seconds }
            })
            .collect()
    }

    /// The work of a live or answered lease.
    pub(super) fn work_of(&self, lease: u64) -> Option<Work> {
        let live = self.leases.get(&lease).map(|l| self.tasks[l.task].work);
        live.or_else(|| self.answered.iter().find_map(|a| a.get(&lease).copied()))
    }

    /// Judges an answer and, if it counts, takes the task out of the leases.
    pub(super) fn submit(&mut self, holder: &str, lease: u64, fence: u64, version: u64) -> Admission {
        if let Some(work) = self.answered.iter().find_map(|a| a.get(&lease)) {
            let recording = self.index.get(work).is_some_and(|&i| self.tasks[i].state == TaskState::Recording);
            return Admission::Duplicate { durable: !recording };
        }
        let Some(held) = self.leases.get(&lease) else {
            return Admission::StaleFence(format!("lease {lease} has ended; its prompt was given to another worker"));
        };
        if held.fence != fence || held.holder != holder {
            return Admission::StaleFence(format!(
                "lease {lease} belongs to {} under fence {}",
                held.holder, held.fence
            ));
        }
        if version != self.version {
            return Admission::StaleVersion(format!("version {version} was used, the lease asks for {}", self.version));
        }
        let task = held.task;
        self.leases.remove(&lease);
        self.tasks[task].state = TaskState::Recording;
        self.answered[0].insert(lease, self.tasks[task].work);
        Admission::Record
    }

    /// Books a failure: the task is open again, or given up for the reasons returned. A worker may be what is wrong, not the prompt: unless it is
    /// alone, another one must have failed too.
    pub(super) fn fail(&mut self, lease: u64, holder: &str, reason: &str, alone: bool) -> Option<Vec<String>> {
        let work = *self.answered[0].get(&lease)?;
        let i = *self.index.get(&work)?;
        let task = &mut self.tasks[i];
        task.failures.push((holder.to_owned(), reason.to_owned()));
        let by_another = task.failures.iter().any(|(by, _)| by != holder);
        if task.failures.len() >= FAILURES_TO_QUARANTINE && (alone || by_another) {
            return Some(task.failures.iter().map(|(_, reason)| reason.clone()).collect());
        }
        task.state = TaskState::Pending;
        self.pending.insert(i);
        None
    }

    /// The answer is durable. False if it already was, or is of no current task.
    pub(super) fn recorded(&mut self, work: Work) -> bool {
        let Some(task) = self.index.get(&work).and_then(|&i| self.tasks.get_mut(i)) else { return false };
        if task.state != TaskState::Recording {
            return false;
        }
        task.state = TaskState::Done;
        self.open -= 1;
        true
    }

    /// Takes back the leases for which `ended` holds; returns (lease, holder) of each.
    pub(super) fn take_back(&mut self, ended: impl Fn(u64, &str, Seconds) -> bool) -> Vec<(u64, String)> {
        let mut ids: Vec<u64> =
            self.leases.iter().filter(|(id, l)| ended(**id, &l.holder, l.deadline)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.into_iter()
            .filter_map(|id| {
                let lease = self.leases.remove(&id)?;
                self.tasks[lease.task].state = TaskState::Pending;
                self.pending.insert(lease.task);
                Some((id, lease.holder))
            })
            .collect()
    }

    /// Gives every lease more time.
    pub(super) fn extend(&mut self, seconds: Seconds) {
        self.leases.values_mut().for_each(|l| l.deadline += seconds);
    }

    /// Live leases of a holder.
    #[cfg(test)]
    pub(super) fn held_by<'a>(&'a self, holder: &'a str) -> impl Iterator<Item = u64> + 'a {
        self.leases.iter().filter(move |(_, l)| l.holder == holder).map(|(id, _)| *id)
    }

    /// How many live leases each holder has.
    pub(super) fn held(&self) -> HashMap<&str, usize> {
        self.leases.values().fold(HashMap::new(), |mut held, lease| {
            *held.entry(lease.holder.as_str()).or_default() += 1;
            held
        })
    }

    /// Everyone who holds a lease, in order.
    pub(super) fn holders(&self) -> BTreeSet<String> {
        self.leases.values().map(|l| l.holder.clone()).collect()
    }

    /// True if every task is in exactly the place its state says. For tests and debug assertions.
    #[cfg(test)]
    pub(super) fn consistent(&self) -> bool {
        let open = self.tasks.iter().filter(|t| t.state != TaskState::Done).count();
        open == self.open
            && self.tasks.iter().enumerate().all(|(i, t)| match t.state {
                TaskState::Pending => self.pending.contains(&i),
                TaskState::Leased(l) => {
                    !self.pending.contains(&i) && self.leases.get(&l).is_some_and(|x| x.task == i && x.fence == t.fence)
                }
                TaskState::Recording | TaskState::Done => {
                    !self.pending.contains(&i) && self.leases.values().all(|l| l.task != i)
                }
            })
    }
}
