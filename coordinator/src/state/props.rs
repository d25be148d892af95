//! Attacks on the state machine: random interleavings of joins, losses, late and repeated answers, failures, learner ranks that die, and coordinators
//! that crash.

use super::*;
use proptest::prelude::*;
use quorum_core::Purpose;
use quorum_proto::v1::Role;
use std::collections::{BTreeMap, HashMap, HashSet};

const WORKERS: [&str; 3] = ["w0", "w1", "w2"];
pub(super) const LEARNER: &str = "l";
pub(super) const RANKS: [&str; 3] = ["l", "l1", "l2"];

pub(super) fn plan() -> Plan {
    Plan {
        steps: 3,
        ranks: 1,
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
    /// Some rank; so below.
    LearnerJoin(usize),
    LearnerMeet(usize),
    LearnerStep,
    LearnerLeave(usize),
    /// Another process claims a rank.
    Intruder(usize),
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
        4 => (0..RANKS.len()).prop_map(Op::LearnerJoin),
        6 => (0..RANKS.len()).prop_map(Op::LearnerMeet),
        6 => Just(Op::LearnerStep),
        1 => (0..RANKS.len()).prop_map(Op::LearnerLeave),
        1 => (0..RANKS.len()).prop_map(Op::Intruder),
        1 => Just(Op::Crash),
    ]
}

const ID: &[u8] = b"id";

pub(super) fn meeting(rank: usize, world: usize) -> Meeting {
    let collective_id = if rank == 0 { ID.into() } else { bytes::Bytes::new() };
    Meeting { rank: rank as u32, world: world as u32, transport: "nccl".into(), collective_id }
}

pub(super) fn digest(version: u64) -> String {
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
    /// Version that each rank holds, if it takes part as far as it knows.
    learners: Vec<Option<u64>>,
    highest_fence: u64,
}

impl World {
    fn new(ranks: usize) -> Self {
        let recovered = Recovered { epoch: 1, ..Recovered::default() };
        Self {
            state: RunState::new(Plan { ranks: ranks as u32, ..plan() }, recovered),
            now: 0.0,
            epoch: 1,
            grants: Vec::new(),
            writing: Vec::new(),
            durable: HashMap::new(),
            digests: BTreeMap::new(),
            committed: 0,
            learners: vec![None; ranks],
            highest_fence: 0,
        }
    }

    fn apply(&mut self, op: &Op) {
        let before = (self.state.committed(), self.state.served());
        let generation = self.state.generation();
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
            Op::LearnerJoin(r) => self.learner_join(r % self.learners.len()),
            Op::LearnerMeet(r) => self.learner_meet(r % self.learners.len()),
            Op::LearnerStep => self.learner_step(),
            Op::LearnerLeave(r) => self.learner_leave(r % self.learners.len()),
            Op::Intruder(r) => self.intruder(r % self.learners.len()),
            Op::Crash => return self.crash(),
        }
        // INV-4: nothing goes back inside an epoch.
        assert!(self.state.committed() >= before.0 && self.state.served() >= before.1);
        assert!(self.state.generation() >= generation);
        assert!(self.state.board.consistent());
        if self.learners.len() > 1 && self.state.group_formed() && self.committed < plan().steps {
            assert_eq!(self.state.members.learners().count(), self.learners.len(), "a formed group is whole");
        }
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

    fn learner_join(&mut self, r: usize) {
        let formed = self.state.group_formed();
        let member = Member { rank: r as u32, ..Member::new(Role::Learner, self.now) };
        self.state.join(self.now, RANKS[r], member).unwrap();
        // It starts from a checkpoint: here always the one of step 0 or 2.
        self.learners[r] = Some(if self.committed >= 2 { 2 } else { 0 });
        if formed && self.learners.len() > 1 && self.state.needs_learner() {
            assert_eq!(self.state.members.learners().count(), 1, "the others of a formed group are fenced");
        }
    }

    fn learner_meet(&mut self, r: usize) {
        let Some(version) = self.learners[r] else { return };
        let world = self.learners.len();
        match self.state.form_group(self.now, RANKS[r], meeting(r, world)) {
            Ok(Formation::Ready { members, collective_id }) => {
                assert_eq!(
                    (members, collective_id),
                    (RANKS[..world].iter().map(|s| s.to_string()).collect(), ID.into())
                );
                assert!(self.learners.iter().all(|l| *l == Some(version)), "all start alike: {:?}", self.learners);
            }
            Ok(Formation::Pending { missing }) => assert!(!missing.is_empty() && !missing.contains(&(r as u32))),
            Ok(Formation::Refused(reason)) => panic!("an honest rank is refused: {reason}"),
            Err(_) => self.learners[r] = None,
        }
    }

    fn learner_leave(&mut self, r: usize) {
        self.state.remove(self.now, RANKS[r]);
        self.learners[r] = None;
    }

    fn intruder(&mut self, r: usize) {
        let generation = self.state.generation();
        let held = self.state.members.rank(r as u32).is_some();
        let member = Member { rank: r as u32, ..Member::new(Role::Learner, self.now) };
        if held {
            assert!(matches!(self.state.join(self.now, "other", member), Err(Refusal::Forbidden(_))));
            assert_eq!(self.state.generation(), generation, "whoever is refused changes nothing");
        }
    }

    fn publish(&mut self) {
        let Some(version) = self.learners[0] else { return };
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
        let Some(step) = self.learners[0] else { return };
        if !self.state.group_formed() && self.state.needs_learner() {
            assert!(self.state.touch_first(self.now, LEARNER).is_err(), "nobody trains alone");
            return;
        }
        for (learner, id) in self.learners.iter_mut().zip(RANKS) {
            if self.state.touch_learner(self.now, id, step).is_err() {
                *learner = None;
            }
        }
        if self.learners.iter().any(Option::is_none) {
            return;
        }
        for id in &RANKS[1..self.learners.len()] {
            assert!(self.state.touch_first(self.now, id).is_err(), "rank 0 alone speaks for all");
        }
        self.state.touch_first(self.now, LEARNER).unwrap();
        self.publish();
        let open = self.state.phase() == Phase::Train { step };
        if step >= plan().steps || !(step < self.committed || open) {
            assert_ne!(self.state.judge_commit(step, step + 1, &digest(step + 1)), CommitVerdict::Fresh);
            return;
        }
        if open {
            let slots: HashSet<u32> = self.groups_of(step).collect();
            assert_eq!(slots.len(), 4, "INV-2: a batch is whole");
        }
        self.learners.iter_mut().for_each(|l| *l = Some(step + 1));
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
        let ranks = self.learners.len();
        self.learners = vec![None; ranks];
        let open = |w: &&Work| w.purpose != Purpose::Train || w.step == self.committed;
        let recovered = Recovered {
            digests: self.digests.clone(),
            committed: self.committed,
            done: self.durable.keys().filter(open).copied().collect(),
            epoch: self.epoch,
        };
        self.state = RunState::new(Plan { ranks: ranks as u32, ..plan() }, recovered);
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
            for r in 0..self.learners.len() {
                if self.learners[r].is_none() || self.state.touch_rank(self.now, RANKS[r]).is_err() {
                    self.learner_join(r);
                }
            }
            for r in 0..self.learners.len() {
                self.learner_meet(r);
            }
            self.learner_step();
        }
        panic!("the run does not end: {:?} {:?}", self.state.phase(), self.state.counts());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_keeps_the_invariants_and_ends(ranks in 1..4usize, ops in prop::collection::vec(op(), 0..250)) {
        let mut world = World::new(ranks);
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
