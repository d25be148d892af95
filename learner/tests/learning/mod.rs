//! A learner of one or several ranks against a coordinator in the same process, on groups that a real worker sampled from the tiny fixture model.

#![allow(dead_code)]

#[path = "../../../rollout-worker/tests/support/mod.rs"]
pub mod support;
#[path = "../ranks/threads.rs"]
pub mod threads;

use quorum_core::client::JoinOptions;
use quorum_core::config::RunConfig;
use quorum_core::reward::RewardSource;
use quorum_learner::collective::{Collective, OneRank};
use quorum_learner::connection::Connection;
use quorum_learner::group::Group;
use quorum_learner::learner::Learner;
use quorum_learner::{LearnerError, Options, grpo_loop};
use quorum_proto::v1;
use quorum_rollout_worker::worker::{Stop, run};
use std::path::Path;
use support::{Fake, Running, checkpoint, config, fixture, grant, image, prompt};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

pub const IMAGES: [&str; 3] = ["img_56x56.png", "img_84x56.png", "img_56x56.png"];

/// Random rewards let a random model's groups teach something.
pub fn training() -> RunConfig {
    let mut config = config();
    config.rollout.reward = RewardSource::Random;
    config.optim.learning_rate = 1e-3;
    config
}

/// One finished run of the learner.
pub struct Outcome {
    pub result: Result<(), LearnerError>,
    pub commits: Vec<v1::CommitRequest>,
    pub fake: Fake,
}

impl Outcome {
    pub fn digest(&self, step: usize) -> &str {
        self.result.as_ref().unwrap();
        &self.commits[step].weights_digest
    }

    pub fn metric(&self, step: usize, name: &str) -> f64 {
        self.commits[step].metrics[name]
    }
}

pub fn new_runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Groups of version 0 for three prompts, sampled by a worker.
pub fn sample(config: &RunConfig) -> Vec<v1::BatchItem> {
    sample_on("cpu", config)
}

/// The same by a worker on that device.
pub fn sample_on(device: &str, config: &RunConfig) -> Vec<v1::BatchItem> {
    let runtime = new_runtime();
    let fake = fake(config);
    fake.inside().weights.insert(0, checkpoint().load_weights().unwrap());
    runtime.block_on(async {
        let running = fake.serve().await;
        for (slot, name) in IMAGES.iter().enumerate() {
            let grant = grant(config, slot as u64, slot as u32, 0, prompt(slot as u64, &image(name)));
            fake.inside().leases.push_back(grant);
        }
        let line = ["rollout-worker", "--coordinator", &running.url, "--threads", "1", "--device", device];
        let options = clap::Parser::parse_from(line);
        let worker = tokio::spawn(run(options, Stop::default()));
        fake.until(60, "three groups", |i| i.submissions.len() == 3).await;
        fake.inside().complete = true;
        worker.await.unwrap().unwrap();
    });
    let mut groups: Vec<v1::GroupMsg> =
        fake.inside().submissions.iter().map(|s| s.group.clone().expect(&s.failure)).collect();
    groups.sort_by_key(|g| g.slot);
    let paid = |mut group: v1::GroupMsg| {
        group.rewards = (0..group.completions.len()).map(|i| f32::from(i % 3 == 0)).collect();
        v1::BatchItem { prompt: Some(prompt(group.prompt, &image(IMAGES[group.slot as usize]))), group: Some(group) }
    };
    groups.into_iter().map(paid).collect()
}

pub fn fake(config: &RunConfig) -> Fake {
    let fake = Fake::new(config.clone(), checkpoint().side_files());
    for name in IMAGES {
        fake.blob(&image(name));
    }
    fake
}

pub fn head(step: u64, items: &[v1::BatchItem]) -> v1::BatchHead {
    v1::BatchHead { state: v1::BatchState::Ready.into(), step, items: items.len() as u32, ..Default::default() }
}

/// The same groups as if sampled in `step`.
pub fn at(step: u64, items: &[v1::BatchItem]) -> Vec<v1::BatchItem> {
    let mut items = items.to_vec();
    for group in items.iter_mut().filter_map(|i| i.group.as_mut()) {
        (group.step, group.version) = (step, step);
    }
    items
}

/// Runs a learner over `batches`, from `start` where it names a checkpoint.
pub fn learn(
    config: &RunConfig,
    run_dir: &Path,
    start: v1::LearnerStart,
    batches: Vec<(v1::BatchHead, Vec<v1::BatchItem>)>,
    threads: usize,
) -> Outcome {
    learn_together(config, run_dir, start, batches, vec![Box::new(OneRank)], threads)
}

/// The same with one rank in a thread for each of `ranks`. The result is that of the first rank that failed.
pub fn learn_together(
    config: &RunConfig,
    run_dir: &Path,
    start: v1::LearnerStart,
    batches: Vec<(v1::BatchHead, Vec<v1::BatchItem>)>,
    ranks: Vec<Box<dyn Collective + Send>>,
    threads: usize,
) -> Outcome {
    learn_on("cpu", config, run_dir, start, batches, ranks, threads)
}

/// The same on that device.
pub fn learn_on(
    device: &str,
    config: &RunConfig,
    run_dir: &Path,
    start: v1::LearnerStart,
    batches: Vec<(v1::BatchHead, Vec<v1::BatchItem>)>,
    ranks: Vec<Box<dyn Collective + Send>>,
    threads: usize,
) -> Outcome {
    let runtime = new_runtime();
    let fake = fake(config);
    {
        let mut inside = fake.inside();
        let (model_dir, run_dir) = (fixture("qwen2_5_vl").display().to_string(), run_dir.display().to_string());
        inside.learner = v1::LearnerStart { model_dir, run_dir, ..start };
        inside.batches = batches.into_iter().map(|(head, items)| (head.step, (head, items))).collect();
    }
    let running = runtime.block_on(fake.serve());
    let result = std::thread::scope(|scope| {
        let train = |ranks| scope.spawn(|| train(device, &runtime, &running, ranks, config, threads));
        let handles: Vec<_> = ranks.into_iter().map(train).collect();
        let results = handles.into_iter().map(|h| h.join().unwrap()).collect::<Vec<_>>();
        results.into_iter().find(Result::is_err).unwrap_or(Ok(()))
    });
    let commits = fake.inside().commits.clone();
    Outcome { result, commits, fake }
}

fn train(
    device: &str,
    runtime: &Runtime,
    running: &Running,
    ranks: Box<dyn Collective + Send>,
    config: &RunConfig,
    threads: usize,
) -> Result<(), LearnerError> {
    let threads = threads.to_string();
    let line = ["learner", "--coordinator", &running.url, "--threads", &threads, "--device", device];
    let options: Options = clap::Parser::parse_from(line);
    let join = JoinOptions {
        link: running.link(),
        role: v1::Role::Learner,
        caller_id: format!("learner-{}", ranks.rank()),
        run_id: String::new(),
        config_digest: String::new(),
        instruction_set: String::new(),
        metrics_address: String::new(),
        relay_address: String::new(),
        rank: ranks.rank() as u32,
        world: ranks.world() as u32,
        patience: options.member.join_patience(),
    };
    let connection = Connection::join(&join, &options, runtime.handle(), &CancellationToken::new())?;
    let mut group = Group::new(ranks, config.learner.lanes as usize);
    grpo_loop::run(&mut Learner::open(connection, &mut group, &options)?)
}

pub fn one_step(config: &RunConfig, items: &[v1::BatchItem], threads: usize) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    learn(config, dir.path(), v1::LearnerStart::default(), vec![(head(0, items), items.to_vec())], threads)
}
