//! `coordinator plan`: what a run will need and what is wrong with it, before anything starts. Nothing is written and nothing listens.

mod batch;
mod disk;
mod machine;
pub mod memory;
mod mistakes;
mod prompts;
mod remedies;
mod shapes;
#[cfg(test)]
mod tests;
mod text;
mod training;

pub use batch::{Batch, batch};
pub use disk::{Disk, disk};
pub use machine::{Machine, machine};
pub use memory::{Demand, Footprint, PromptSize};
pub use prompts::{Prompts, Spread};
pub use remedies::Remedy;
pub use shapes::{Blocks, Parts, Shapes, Vision};
pub use text::text;

use crate::prepare::RunRequest;
use quorum_core::config::{ObjectiveKind, RunConfig, TrainSection};
use quorum_data::Dataset;
use quorum_model::{Layout, ModelConfig, Processor};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use training::training;

/// Prompt length assumed where no prompt can be measured.
const ASSUMED_TOKENS: u64 = 1024;

/// What the plan is made for besides the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting<'a> {
    /// Rollout workers on this machine.
    pub workers: u64,
    /// Training records measured at most; 0 = all.
    pub sample: usize,
    /// Whether the executables of children must be there.
    pub launched: bool,
    /// Devices of the children; empty = the processor.
    pub devices: &'a [String],
}

/// The model in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelPlan {
    pub path: String,
    pub family: &'static str,
    /// Elements.
    pub parameters: u64,
    pub parts: Parts,
    pub trainable: u64,
    pub frozen: u64,
}

/// Memory of all processes against the machine's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryPlan {
    pub coordinator: Footprint,
    /// Each of `workers`.
    pub worker: Footprint,
    pub workers: u64,
    pub learner: Footprint,
    /// Bytes of all processes together.
    pub total: u64,
    pub machine: Machine,
    pub fits: bool,
    /// Changes that would help, cheapest first, each with the total it leads to.
    pub remedies: Vec<Remedy>,
    /// What the estimate was made for.
    pub demand: Demand,
}

/// Disk need against what is free.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskPlan {
    pub need: Disk,
    /// Bytes of the run directory at most.
    pub run_directory: u64,
    pub free: Option<u64>,
    pub fits: bool,
}

/// Everything `plan` says.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Plan {
    /// All that keeps a run from starting, one line each.
    pub mistakes: Vec<String>,
    /// What is worth knowing and stops nothing.
    pub notes: Vec<String>,
    pub model: Option<ModelPlan>,
    pub prompts: Option<Prompts>,
    /// Held-out questions of an evaluation.
    pub test_questions: u64,
    pub batch: Option<Batch>,
    pub memory: Option<MemoryPlan>,
    pub disk: Option<DiskPlan>,
}

/// A model's shapes.
pub(crate) struct Model {
    pub config: ModelConfig,
    pub layout: Arc<Layout>,
    pub shapes: Shapes,
    /// Its files hold bf16.
    pub stored_bf16: bool,
}

impl Model {
    pub fn new(config: ModelConfig, stored_bf16: bool) -> Self {
        let layout = Arc::new(Layout::of(&config));
        let shapes = Shapes::of(&config, &layout);
        Self { config, layout, shapes, stored_bf16 }
    }
}

/// What was found of a run's model and data.
pub(crate) struct Found {
    pub config: RunConfig,
    pub model: Option<Model>,
    pub processor: Option<Processor>,
    pub train: Option<Dataset>,
    pub test: Option<Dataset>,
}

/// Makes the plan. It always succeeds; what is wrong is in it.
pub fn plan(request: &RunRequest, setting: Setting) -> Plan {
    let mut plan = Plan::default();
    let found = mistakes::find(request, setting, &mut plan);
    let Found { config, model, processor, train, test, .. } = &found;
    if let (Some(processor), Some(train)) = (processor, train) {
        plan.prompts = Some(prompts::measure(config, processor, train, setting.sample));
    }
    let set_aside = plan.prompts.as_ref().map_or(0, |p| p.set_aside);
    let usable = train.as_ref().map_or(0, |t| t.len() as u64);
    if usable > 0 && plan.prompts.as_ref().is_some_and(|p| p.tokens.max == 0) {
        plan.mistakes.push(format!("data.train: none of {usable} records can be used; all {set_aside} are set aside"));
    }
    let all = test.as_ref().map_or(0, |t| t.len() as u64);
    plan.test_questions = match u64::from(config.eval.questions) {
        0 => all,
        n => n.min(all),
    };
    if usable > 0 {
        plan.batch = Some(batch(config, usable, plan.test_questions));
    }
    if let Some(model) = model {
        resources(&mut plan, &found, model, setting);
    }
    plan
}

fn resources(plan: &mut Plan, found: &Found, model: &Model, setting: Setting) {
    let (shapes, train) = (&model.shapes, &found.config.train);
    let training = match training(train, &model.config, &model.layout, model.stored_bf16) {
        Ok(training) => training,
        Err(reason) => return plan.mistakes.push(reason),
    };
    plan.model = Some(ModelPlan {
        path: found.config.model.path.clone(),
        family: model.config.family.model_type(),
        parameters: shapes.elements,
        parts: shapes.parts,
        trainable: training.trainable,
        frozen: training.frozen,
    });
    if plan.prompts.is_none() {
        plan.notes.push(format!("no prompt could be measured: {ASSUMED_TOKENS} tokens are assumed"));
    }
    let machine = machine();
    let demand = training.apply(&demand(plan, found, machine.cores, setting.workers));
    plan.memory = Some(memory_plan(model, train, &demand, setting.workers, machine));
    if let Some(batch) = &plan.batch {
        let c = &found.config;
        let (keep, every) = (u64::from(c.checkpoint.keep), c.checkpoint.every);
        let tokens = u64::from(c.rollout.max_new_tokens);
        let need = disk(shapes.elements, training.trainable, demand.spilled_bytes(), keep, every, batch, tokens);
        let free = disk::free(Path::new(&c.run.dir));
        let run_directory = need.run_directory();
        plan.disk = Some(DiskPlan { need, run_directory, free, fits: free.is_none_or(|f| f >= run_directory) });
    }
}

fn memory_plan(model: &Model, train: &TrainSection, demand: &Demand, workers: u64, machine: Machine) -> MemoryPlan {
    let processes = Processes::of(&model.shapes, demand);
    let total = processes.total(workers);
    let fits = total <= machine.available;
    MemoryPlan {
        coordinator: processes.coordinator,
        worker: processes.worker,
        workers,
        learner: processes.learner,
        total,
        machine,
        fits,
        remedies: if fits { Vec::new() } else { remedies::remedies(model, train, demand, workers, machine.available) },
        demand: demand.clone(),
    }
}

/// Footprints of one process of each kind.
#[derive(Debug, Clone, Copy)]
pub struct Processes {
    pub coordinator: Footprint,
    pub worker: Footprint,
    pub learner: Footprint,
}

impl Processes {
    /// By the memory model.
    pub fn of(shapes: &Shapes, demand: &Demand) -> Self {
        Self {
            coordinator: memory::coordinator(shapes, demand),
            worker: memory::worker(shapes, demand),
            learner: memory::learner(shapes, demand),
        }
    }

    /// Bytes of a machine that runs a coordinator, a learner and this many workers.
    pub fn total(&self, workers: u64) -> u64 {
        self.coordinator.total() + self.learner.total() + workers * self.worker.total()
    }
}

/// Settings and data; what is trained is filled in by [`training::Training::apply`].
fn demand(plan: &Plan, found: &Found, cores: u64, workers: u64) -> Demand {
    let c = &found.config;
    let (r, group) = (&c.rollout, u64::from(c.rollout.group_size.max(1)));
    let assumed = PromptSize { longest_tokens: ASSUMED_TOKENS, usual_tokens: ASSUMED_TOKENS, ..PromptSize::default() };
    let images: u64 = [&found.train, &found.test].into_iter().flatten().map(data_bytes).sum();
    Demand {
        reference: c.objective.kind == ObjectiveKind::Grpo && c.objective.beta > 0.0,
        gradient_batches: u64::from(c.optim.gradient_batches.max(1)),
        lanes: u64::from(c.learner.lanes.max(1)),
        learner_threads: if c.learner.threads == 0 { cores } else { u64::from(c.learner.threads) },
        worker_threads: cores.div_ceil(workers.max(1)).max(1),
        supervised: c.objective.kind == ObjectiveKind::Sft,
        prompts_per_step: u64::from(r.prompts_per_step.max(1)),
        group_size: group,
        train_size: if r.train_size == 0 { group } else { u64::from(r.train_size) },
        most_samples: if c.eval.enabled { group.max(u64::from(c.eval.samples)) } else { group },
        views: u64::from(c.view.count.max(1)),
        prompts_per_lease: u64::from(c.cluster.prompts_per_lease.max(1)),
        max_new_tokens: u64::from(r.max_new_tokens),
        prompt: plan.prompts.as_ref().filter(|p| p.tokens.max > 0).map_or(assumed, Prompts::size),
        data_bytes: images,
        ..Demand::default()
    }
}

/// Bytes of a data set in memory: encoded images, texts.
fn data_bytes(data: &Dataset) -> u64 {
    let text = |t: &Option<String>| t.as_ref().map_or(0, String::len);
    data.records()
        .iter()
        .map(|r| {
            let images: usize = r.images.iter().map(|i| i.bytes.len() + 64).sum();
            (images + r.question.len() + text(&r.answer) + text(&r.response) + 160) as u64
        })
        .sum()
}
