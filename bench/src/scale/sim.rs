//! A run in simulated time around the real state machine of the coordinator (`quorum_coordinator::state`): it grants, admits, records and commits; only
//! workers, learner, network and the time they take are made up.

use super::cost::{CHUNK, Job, Machines};
use anyhow::{Context, ensure};
use quorum_coordinator::state::{
    Admission, CommitVerdict, Grant, Member, Phase, Plan, PublishVerdict, Recovered, RunState,
};
use quorum_core::seed::Stream;
use quorum_proto::v1::Role;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What was seen.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Outcome {
    /// Simulated seconds of a step, mean.
    pub step_seconds: f64,
    /// Share of the workers' time in which they sampled.
    pub worker_busy: f64,
    pub coordinator_busy: f64,
    pub learner_busy: f64,
    /// Groups granted, and accepted: equal, or something was lost or counted twice.
    pub granted: u64,
    pub accepted: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    /// The worker asks for leases.
    Asks(u32),
    /// The call that brought this group has passed the coordinator.
    Arrives(u32, usize),
    /// The learner has published and commits.
    Commits,
}

/// Nanoseconds, so that events have a total order.
fn at(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

struct Sim<'a> {
    job: &'a Job,
    machines: &'a Machines,
    /// Spread of response lengths, as a share of the mean.
    spread: f64,
    state: RunState,
    queue: BinaryHeap<Reverse<(u64, u64, Happens)>>,
    order: u64,
    now: f64,
    /// The coordinator is one server: busy until.
    served: f64,
    coordinator: f64,
    sampling: f64,
    learning: f64,
    grants: Vec<Grant>,
    accepted: u64,
    waiting: Vec<u32>,
    ids: Vec<String>,
    /// When each worker holds the weights, after the version is in the coordinator.
    arrival: Vec<f64>,
    random: Stream,
    draws: u64,
}

/// Runs `steps` steps.
pub fn run(job: &Job, machines: &Machines, spread: f64, steps: u64) -> anyhow::Result<Outcome> {
    let workers = machines.workers as u32;
    let never = 1e12;
    let plan = Plan {
        steps,
        ranks: 1,
        leased_slots: job.prompts as u32,
        questions: 0,
        eval_every: 0,
        lease_seconds: never,
        heartbeat_seconds: never,
        join_seconds: never,
        step_seconds: never,
    };
    let mut state = RunState::new(plan, Recovered::default());
    let ids: Vec<String> = (0..workers).map(|w| format!("worker-{w}")).collect();
    for id in &ids {
        state.join(0.0, id, Member::new(Role::RolloutWorker, 0.0)).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    }
    state.join(0.0, "learner", Member::new(Role::Learner, 0.0)).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    state.published(0.0, 0, "version 0");
    let mut sim = Sim {
        job,
        machines,
        spread,
        state,
        queue: BinaryHeap::new(),
        order: 0,
        now: 0.0,
        served: 0.0,
        coordinator: 0.0,
        sampling: 0.0,
        learning: 0.0,
        grants: Vec::new(),
        accepted: 0,
        waiting: (0..workers).collect(),
        arrival: arrivals(job, machines),
        ids,
        random: Stream::named("scale", &[u64::from(workers)]),
        draws: 0,
    };
    sim.open();
    sim.drive(steps)?;
    let seconds = sim.now;
    Ok(Outcome {
        step_seconds: seconds / steps as f64,
        worker_busy: sim.sampling / (seconds * machines.workers),
        coordinator_busy: sim.coordinator / seconds,
        learner_busy: sim.learning / seconds,
        granted: sim.grants.len() as u64,
        accepted: sim.accepted,
    })
}

/// Seconds from the coordinator holding a version to each worker holding it: worker w is the w-th node of a tree filled level by level; a node sends
/// every chunk to all its children before the next one.
fn arrivals(job: &Job, m: &Machines) -> Vec<f64> {
    let (workers, fan_out) = (m.workers as usize, (m.fan_out as usize).max(1));
    let chunks = (job.weight_bytes / CHUNK).ceil().max(1.0);
    let chunk = job.weight_bytes / chunks;
    // First and last chunk of each node; the coordinator is node 0 and has them all.
    let (mut first, mut last) = (vec![0.0f64; workers + 1], vec![0.0f64; workers + 1]);
    for node in 1..=workers {
        let parent = (node - 1) / fan_out;
        let siblings = fan_out.min(workers - parent * fan_out) as f64;
        let place = ((node - 1) % fan_out + 1) as f64;
        first[node] = first[parent] + place * chunk / m.bandwidth;
        let own = first[node] + (chunks - 1.0) * siblings * chunk / m.bandwidth;
        last[node] = own.max(last[parent] + place * chunk / m.bandwidth);
    }
    last.split_off(1)
}

impl Sim<'_> {
    fn happens(&mut self, when: f64, what: Happens) {
        self.order += 1;
        self.queue.push(Reverse((at(when), self.order, what)));
    }

    /// The coordinator serves one call after the other; when this one is through.
    fn serve(&mut self, calls: f64) -> f64 {
        let takes = calls / self.machines.pairs;
        self.served = self.served.max(self.now) + takes;
        self.coordinator += takes;
        self.served
    }

    /// A step opens: whoever waits fetches the weights and asks.
    fn open(&mut self) {
        for w in std::mem::take(&mut self.waiting) {
            let when = self.now + self.arrival.get(w as usize).copied().unwrap_or(0.0);
            self.happens(when, Happens::Asks(w));
        }
    }

    fn drive(&mut self, steps: u64) -> anyhow::Result<()> {
        while let Some(Reverse((when, _, what))) = self.queue.pop() {
            self.now = self.now.max(when as f64 / 1e9);
            match what {
                Happens::Asks(w) => self.ask(w)?,
                Happens::Arrives(w, grant) => self.arrive(w, grant)?,
                Happens::Commits => self.commit()?,
            }
        }
        ensure!(
            self.state.committed() == steps,
            "the simulation stopped after {} of {steps} steps",
            self.state.committed()
        );
        Ok(())
    }

    fn ask(&mut self, w: u32) -> anyhow::Result<()> {
        let id = self.ids.get(w as usize).context("worker")?;
        let granted =
            self.state.grant(self.now, id, self.machines.lease as u32).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        if granted.is_empty() {
            self.waiting.push(w);
            return Ok(());
        }
        // Half a pair is the lease; the groups of one lease are decoded together and submitted together.
        let begins = self.serve(0.5 * granted.len() as f64);
        let takes: f64 = granted.iter().map(|_| self.machines.sample(self.job.samples * self.length())).sum();
        self.sampling += takes;
        for grant in granted {
            self.grants.push(grant);
            let number = self.grants.len() - 1;
            self.happens(begins + takes, Happens::Arrives(w, number));
        }
        self.happens(begins + takes, Happens::Asks(w));
        Ok(())
    }

    /// Mean tokens of the responses of one group.
    fn length(&mut self) -> f64 {
        self.draws += 1;
        self.job.response_tokens * (1.0 + self.spread * (2.0 * self.random.uniform(self.draws) - 1.0))
    }

    fn arrive(&mut self, w: u32, number: usize) -> anyhow::Result<()> {
        let (grant, id) = (*self.grants.get(number).context("grant")?, self.ids.get(w as usize).context("worker")?);
        let admitted = self.state.submit(self.now, id, grant.lease, grant.fence, grant.version);
        ensure!(admitted == Ok(Admission::Record), "{id}: {admitted:?} for {grant:?}");
        ensure!(self.state.recorded(self.now, grant.work), "{:?} was recorded twice", grant.work);
        self.accepted += 1;
        let durable = self.serve(0.5);
        if matches!(self.state.phase(), Phase::Train { .. }) {
            let (job, m) = (self.job, self.machines);
            let trains = job.prompts * m.train(job.samples * job.response_tokens);
            self.learning += trains;
            self.happens(durable + trains + job.weight_bytes / m.bandwidth, Happens::Commits);
        }
        Ok(())
    }

    fn commit(&mut self) -> anyhow::Result<()> {
        let step = self.state.committed();
        let digest = format!("version {}", step + 1);
        let publish = self.state.judge_publish(step + 1, &digest);
        ensure!(publish == PublishVerdict::Keep, "{publish:?}");
        self.state.published(self.now, step + 1, &digest);
        let verdict = self.state.judge_commit(step, step + 1, &digest);
        ensure!(verdict == CommitVerdict::Fresh, "{verdict:?}");
        self.state.commit(self.now, step, &digest);
        if self.state.phase() != Phase::Complete {
            self.open();
        }
        Ok(())
    }
}
