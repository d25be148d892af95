//! Attacks on the state machine: random interleavings of joins, losses, late and repeated answers, failures, learners that die, and coordinators that crash.

use super::*;
use proptest::prelude::*;
use quorum_core::Purpose;
use quorum_proto::v1::Role;
use std::collections::{BTreeMap, HashMap, HashSet};

const WORKERS: [&str; 3] = ["w0", "w1", "w2"];
const LEARNER: &str = "l";

fn plan() -> Plan {
    Plan {
        steps: 3,
        leased_slots: 4,
        questions: 2,
        eval_every: 2,
        lease_seconds: 10.0,
        heartbeat_seconds: 1.0,
        join_seconds: 60.0,
        step_seconds: 60.0,
    }
}

#[derive(Debug, Clone)]
enum Op {
    Join(usize),
    Beat(usize),
    Leave(usize),
    Grant(usize, u32),
    /// Any lease ever granted, by any worker.
    Submit(usize, usize),
    Fail(usize, usize),
    /// The oldest write becomes durable.
    Durable,
    Tick(f64),
    LearnerJoin,
    LearnerStep,
    LearnerLeave,
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let w = 0..WORKERS.len();
    prop_oneof![
        2 => w.clone().prop_map(Op::Join),
        2 => w.clone().prop_map(Op::Beat),
        1 => w.clone().prop_map(Op::Leave),
        6 => (w.clone(), 0u32..4).prop_map(|(w, n)| Op::Grant(w, n)),
        8 => (w.clone(), 0usize..40).prop_map(|(w, n)| Op::Submit(w, n)),
        1 => (w, 0usize..40).prop_map(|(w, n)| Op::Fail(w, n)),
        8 => Just(Op::Durable),
        3 => (0.0f64..4.0).prop_map(Op::Tick),
        1 => Just(Op::LearnerJoin),
        6 => Just(Op::LearnerStep),
        1 => Just(Op::LearnerLeave),
        1 => Just(Op::Crash),
    ]
}

fn digest(version: u64) -> String {
    format!("digest-{version}")
}

/// The world around the state: a ledger that holds what is durable, and everyone's memory of leases.
struct World {
    state: RunState,
    now: f64,
    epoch: u64,
    grants: Vec<(usize, Grant)>,
    /// Answers under way to the ledger.
    writing: Vec<Work>,
    /// The ledger: groups of the open step and evaluations, committed steps, quarantine counts as an answer.
    durable: HashMap<Work, u32>,
    digests: BTreeMap<u64, String>,
    committed: u64,
    /// What the present learner holds, if one is joined.
    learner: Option<u64>,
    highest_fence: u64,
}

impl World {
    fn new() -> Self {
        let recovered = Recovered { epoch: 1, ..Recovered::default() };
        Self {
            state: RunState::new(plan(), recovered),
            now: 0.0,
            epoch: 1,
            grants: Vec::new(),
            writing: Vec::new(),
            durable: HashMap::new(),
            digests: BTreeMap::new(),
            committed: 0,
            learner: None,
            highest_fence: 0,
        }
    }

    fn apply(&mut self, op: &Op) {
        let before = (self.state.committed(), self.state.served());
        match *op {
            Op::Join(w) => {
                self.state.join(self.now, WORKERS[w], Member::new(Role::RolloutWorker, self.now)).unwrap();
            }
            Op::Beat(w) => drop(self.state.heartbeat(self.now, WORKERS[w], 0, 0.0, 0)),
            Op::Leave(w) => drop(self.state.remove(self.now, WORKERS[w])),
            Op::Grant(w, n) => self.grant(w, n),
            Op::Submit(w, i) => self.submit(w, i),
            Op::Fail(w, i) => self.fail(w, i),
            Op::Durable => self.durable_one(),
            Op::Tick(dt) => {
                self.now += dt;
                self.tick();
            }
            Op::LearnerJoin => self.learner_join(),
            Op::LearnerStep => self.learner_step(),
            Op::LearnerLeave => {
                self.state.remove(self.now, LEARNER);
                self.learner = None;
            }
            Op::Crash => return self.crash(),
        }
        // INV-4: nothing goes back inside an epoch.
        assert!(self.state.committed() >= before.0 && self.state.served() >= before.1);
        assert!(self.state.board.consistent());
    }

    fn grant(&mut self, w: usize, n: u32) {
        let Ok(grants) = self.state.grant(self.now, WORKERS[w], n) else { return };
        for g in grants {
            assert!(g.fence > self.highest_fence, "fences rise, over restarts too");
            self.highest_fence = g.fence;
            // INV-3: synchronous means no lag at all.
            assert_eq!(g.version, self.committed);
            assert_eq!(g.work.step, self.committed);
            assert!(!self.durable.contains_key(&g.work), "what is durable is not leased again");
            self.grants.push((w, g));
        }
    }

    /// Worker `w` answers some lease, whoever's it was.
    fn submit(&mut self, w: usize, i: usize) {
        let Some(&(holder, g)) = self.recent(i) else { return };
        let counts = self.state.counts();
        match self.state.submit(self.now, WORKERS[w], g.lease, g.fence, g.version) {
            Ok(Admission::Record) => {
                assert_eq!(holder, w);
                assert!(
                    !self.writing.contains(&g.work) && !self.durable.contains_key(&g.work),
                    "INV-1: one answer a task"
                );
                self.writing.push(g.work);
            }
            // INV-5: everything else changes nothing.
            Ok(_) | Err(_) => assert_eq!(self.state.counts(), counts),
        }
    }

    fn fail(&mut self, w: usize, i: usize) {
        let Some(&(_, g)) = self.recent(i) else { return };
        let counts = self.state.counts();
        match self.state.fail(self.now, WORKERS[w], g.lease, g.fence, "no image") {
            Ok(Failure::Quarantine(reasons)) => {
                assert!(reasons.len() >= 2);
                self.writing.push(g.work);
            }
            Ok(Failure::Requeued) => {}
            Ok(Failure::Ignored) | Err(_) => assert_eq!(self.state.counts(), counts),
        }
    }

    fn recent(&self, i: usize) -> Option<&(usize, Grant)> {
        self.grants.len().checked_sub(1 + i).and_then(|at| self.grants.get(at))
    }

    fn durable_one(&mut self) {
        if self.writing.is_empty() {
            return;
        }
        let work = self.writing.remove(0);
        *self.durable.entry(work).or_default() += 1;
        assert_eq!(self.durable[&work], 1, "INV-1: written once");
        assert!(self.state.recorded(self.now, work));
    }

    fn tick(&mut self) {
        self.state.tick(self.now);
        let (_, _, leased, _) = self.state.counts();
        // INV-7: whoever holds a lease was heard of, and none is older than its time.
        let held: usize = WORKERS.iter().map(|w| self.state.holds(w).len()).sum();
        assert_eq!(held, leased);
        let overdue = self.state.board.take_back(|_, _, deadline| deadline < self.now);
        assert!(overdue.is_empty());
    }

    fn learner_join(&mut self) {
        if self.state.join(self.now, LEARNER, Member::new(Role::Learner, self.now)).is_ok() {
            // It starts from a checkpoint: here always the one of step 0 or 2.
            self.learner = Some(if self.committed >= 2 { 2 } else { 0 });
            self.publish();
        }
    }

    fn publish(&mut self) {
        let Some(version) = self.learner else { return };
        let wrong = self.state.judge_publish(version, "other bits");
        if self.digests.contains_key(&version) {
            assert!(matches!(wrong, PublishVerdict::Diverged(_)), "INV-8: known versions keep their bits");
        }
        match self.state.judge_publish(version, &digest(version)) {
            PublishVerdict::Keep => {
                if version == 0 {
                    self.digests.insert(0, digest(0));
                }
                self.state.published(self.now, version, &digest(version));
            }
            PublishVerdict::Known => {}
            other => panic!("an honest learner is refused: {other:?}"),
        }
    }

    /// Trains the next step if its batch is there: a replay, or the open one.
    fn learner_step(&mut self) {
        let Some(step) = self.learner else { return };
        if self.state.touch_learner(self.now, LEARNER).is_err() {
            self.learner = None;
            return;
        }
        let open = self.state.phase() == Phase::Train { step };
        if step >= plan().steps || !(step < self.committed || open) {
            assert_ne!(self.state.judge_commit(step, step + 1, &digest(step + 1)), CommitVerdict::Fresh);
            return;
        }
        if open {
            let slots: HashSet<u32> = self.groups_of(step).collect();
            assert_eq!(slots.len(), 4, "INV-2: a batch is whole");
        }
        self.learner = Some(step + 1);
        self.publish();
        match self.state.judge_commit(step, step + 1, &digest(step + 1)) {
            CommitVerdict::Fresh => {
                assert!(open);
                self.digests.insert(step + 1, digest(step + 1));
                self.committed += 1;
                self.state.commit(self.now, step, &digest(step + 1));
            }
            CommitVerdict::Replayed => assert!(!open),
            other => panic!("an honest commit is refused: {other:?}"),
        }
        // Said twice is said once.
        assert_eq!(self.state.judge_commit(step, step + 1, &digest(step + 1)), CommitVerdict::Replayed);
        assert_eq!(self.state.committed(), self.committed);
    }

    fn groups_of(&self, step: u64) -> impl Iterator<Item = u32> + '_ {
        self.durable.keys().filter(move |w| w.purpose == Purpose::Train && w.step == step).map(|w| w.slot)
    }

    /// INV-10: only what is durable survives.
    fn crash(&mut self) {
        self.epoch += 1;
        self.writing.clear();
        self.learner = None;
        let open = |w: &&Work| w.purpose != Purpose::Train || w.step == self.committed;
        let recovered = Recovered {
            digests: self.digests.clone(),
            committed: self.committed,
            done: self.durable.keys().filter(open).copied().collect(),
            epoch: self.epoch,
        };
        self.state = RunState::new(plan(), recovered);
        assert_eq!(self.state.committed(), self.committed);
        assert_eq!(self.state.served(), None);
    }

    /// Everyone behaves from now on: the run must end.
    fn settle(&mut self) {
        for _ in 0..200 {
            if self.state.phase() == Phase::Complete {
                return;
            }
            self.now += 0.5;
            self.tick();
            for w in 0..WORKERS.len() {
                if self.state.touch(self.now, WORKERS[w]).is_err() {
                    self.apply(&Op::Join(w));
                }
                self.grant(w, 2);
            }
            for i in 0..self.grants.len().min(12) {
                let holder = self.recent(i).map_or(0, |g| g.0);
                self.submit(holder, i);
            }
            while !self.writing.is_empty() {
                self.durable_one();
            }
            if self.learner.is_none() || self.state.touch_learner(self.now, LEARNER).is_err() {
                self.state.remove(self.now, LEARNER);
                self.learner_join();
            }
            self.learner_step();
        }
        panic!("the run does not end: {:?} {:?}", self.state.phase(), self.state.counts());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_keeps_the_invariants_and_ends(ops in prop::collection::vec(op(), 0..250)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
        }
        world.settle();
        // INV-1 over the whole run: every prompt of every step once, every question of every evaluation once.
        prop_assert!(world.durable.values().all(|n| *n == 1));
        for step in 0..3 {
            prop_assert_eq!(world.groups_of(step).count(), 4);
        }
        let evaluated = |v: u64| world.durable.keys().filter(|w| w.purpose != Purpose::Train && w.step == v).count();
        prop_assert_eq!([0, 1, 2, 3].map(evaluated), [6, 0, 6, 6]);
        prop_assert_eq!(world.digests.len(), 4);
    }
}

fn ready() -> RunState {
    let mut s = RunState::new(Plan { questions: 0, ..plan() }, Recovered { epoch: 1, ..Recovered::default() });
    s.join(0.0, LEARNER, Member::new(Role::Learner, 0.0)).unwrap();
    s.published(0.0, 0, &digest(0));
    s.join(0.0, "w0", Member::new(Role::RolloutWorker, 0.0)).unwrap();
    s
}

#[test]
fn an_overdue_lease_goes_to_another_worker_and_its_first_holder_is_told() {
    let mut s = ready();
    let first = s.grant(0.0, "w0", 1).unwrap()[0];
    s.touch(9.0, "w0").unwrap();
    s.touch(9.0, LEARNER).unwrap();
    assert_eq!(s.tick(10.5).deadline, 1);
    assert_eq!(s.heartbeat(10.5, "w0", 0, 0.0, 0).unwrap().cancelled, [first.lease]);
    s.join(10.5, "w1", Member::new(Role::RolloutWorker, 10.5)).unwrap();
    let second = s.grant(10.5, "w1", 1).unwrap()[0];
    assert_eq!(second.work, first.work);
    assert!(second.fence > first.fence);
    let late = s.submit(10.6, "w0", first.lease, first.fence, 0).unwrap();
    assert!(matches!(late, Admission::StaleFence(_)), "{late:?}");
    assert_eq!(s.submit(10.7, "w1", second.lease, second.fence, 0).unwrap(), Admission::Record);
    assert_eq!(s.submit(10.7, "w1", second.lease, second.fence, 0).unwrap(), Admission::Duplicate { durable: false });
    assert!(s.recorded(10.8, second.work));
    assert_eq!(s.submit(10.9, "w1", second.lease, second.fence, 0).unwrap(), Admission::Duplicate { durable: true });
}

#[test]
fn a_prompt_is_given_up_only_when_two_workers_failed_or_there_is_but_one() {
    let mut s = ready();
    s.join(0.0, "w1", Member::new(Role::RolloutWorker, 0.0)).unwrap();
    let first = s.grant(0.0, "w0", 1).unwrap()[0];
    assert_eq!(s.fail(0.0, "w0", first.lease, first.fence, "no image").unwrap(), Failure::Requeued);
    // Not to the same worker again while there is another one.
    let others = s.grant(0.0, "w0", 9).unwrap();
    assert_eq!(others.len(), 3);
    assert!(others.iter().all(|g| g.work != first.work));
    let second = s.grant(0.0, "w1", 9).unwrap()[0];
    assert_eq!(second.work, first.work);
    let given_up = s.fail(0.0, "w1", second.lease, second.fence, "no image").unwrap();
    assert_eq!(given_up, Failure::Quarantine(vec!["no image".into(), "no image".into()]));

    let mut s = ready();
    for expected in [Failure::Requeued, Failure::Quarantine(vec!["bad".into(), "bad".into()])] {
        let g = s.grant(0.0, "w0", 1).unwrap()[0];
        assert_eq!(s.fail(0.0, "w0", g.lease, g.fence, "bad").unwrap(), expected);
    }
}

#[test]
fn whoever_is_silent_is_lost_with_its_process() {
    let mut s = ready();
    s.join(0.0, "w7", Member { pid: 4711, ..Member::new(Role::RolloutWorker, 0.0) }).unwrap();
    s.touch(4.0, "w0").unwrap();
    s.touch(4.0, LEARNER).unwrap();
    assert!(s.tick(5.0).members.is_empty());
    // If nobody could be heard, nobody was silent.
    s.forgive(2.0);
    assert!(s.tick(6.5).members.is_empty());
    assert_eq!(s.tick(7.5).members, [("w7".to_owned(), 4711)]);
}

#[test]
fn whoever_is_late_is_named() {
    let s = RunState::new(plan(), Recovered::default());
    assert!(s.late(59.0, &[]).is_none());
    assert!(s.late(61.0, &[]).unwrap().contains("start one with `learner"));
    let children = [("learner-0".to_owned(), 71), ("worker-0".to_owned(), 72)];
    assert!(s.late(61.0, &children).unwrap().contains("late: `learner-0` (process 71); see its log"));
    let mut s = ready();
    s.remove(1.0, "w0");
    assert!(s.late(62.0, &[]).unwrap().contains("no rollout worker"));
    assert!(s.late(62.0, &children).unwrap().contains("late: `worker-0` (process 72)"));
    let mut s = ready();
    s.join(0.0, "w9", Member { pid: 99, ..Member::new(Role::RolloutWorker, 0.0) }).unwrap();
    assert!(s.late(51.0, &[]).unwrap().contains("`w0`, `w9` (process 99), none asks for work"));
    s.grant(0.0, "w9", 1).unwrap();
    assert!(s.late(51.0, &[]).unwrap().contains("late: `w9` (process 99)"));
    let mut s = ready();
    for g in s.grant(0.0, "w0", 9).unwrap() {
        s.submit(0.0, "w0", g.lease, g.fence, 0).unwrap();
        s.recorded(0.0, g.work);
    }
    assert_eq!(s.phase(), Phase::Train { step: 0 });
    assert!(s.late(61.0, &[]).unwrap().contains("learner `l`"));
}
