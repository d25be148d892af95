//! What a run is about: questions, images, labels and the model's side files. Which row stands in a slot is decided here, as a pure function of configuration and data.

use crate::state::Work;
use quorum_core::config::{ObjectiveKind, RunConfig};
use quorum_core::types::{Completion, Finish, Group, Purpose, Sampling};
use quorum_core::{answer, vote};
use quorum_data::{Dataset, Record, SetAside};
use quorum_model::{FrozenSource, Processor};
use quorum_proto::v1;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Steps whose order is kept, so that a lease does not shuffle the data set again.
const ORDERS_KEPT: usize = 4;

/// The model as far as the coordinator handles it.
#[derive(Default)]
pub struct Model {
    /// Everything but the weights.
    pub side_files: BTreeMap<String, Vec<u8>>,
    /// Bytes of a published version: the trainable slab.
    pub slab_bytes: u64,
    /// What does not learn, streamed from the model's files.
    pub frozen: Option<Frozen>,
    /// Needed by SFT alone.
    pub processor: Option<Processor>,
}

/// The frozen weights of a run.
#[derive(Clone)]
pub struct Frozen {
    pub source: Arc<FrozenSource>,
    /// SHA-256 of their stream.
    pub digest: String,
}

/// Everything workers and learner ask for.
pub struct Material {
    pub config: RunConfig,
    pub config_toml: String,
    pub config_digest: String,
    train: Dataset,
    test: Option<Dataset>,
    model: Model,
    model_files: Vec<v1::SideFile>,
    /// Images and side files by BLAKE3.
    blobs: HashMap<String, Arc<[u8]>>,
    orders: Mutex<Vec<(u64, Arc<[usize]>)>>,
}

/// A question that is asked for but is not there: a mistake of the caller.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct NoSuchWork(String);

impl Material {
    /// Puts the parts together; `train` has labels already if the rewards need them.
    pub fn new(config: RunConfig, config_toml: String, train: Dataset, test: Option<Dataset>, model: Model) -> Self {
        let mut blobs = HashMap::new();
        for data in std::iter::once(&train).chain(&test) {
            for image in data.records().iter().flat_map(|r| &r.images) {
                blobs.insert(image.hash(), image.bytes.clone());
            }
        }
        let mut model_files = Vec::new();
        for (name, bytes) in &model.side_files {
            let hash = blake3::hash(bytes).to_hex().to_string();
            blobs.insert(hash.clone(), Arc::from(bytes.as_slice()));
            model_files.push(v1::SideFile { name: name.clone(), hash, bytes: bytes.len() as u64 });
        }
        let config_digest = quorum_core::config::digest(&config);
        Self { config, config_toml, config_digest, train, test, model, model_files, blobs, orders: Mutex::default() }
    }

    /// An image or side file by content hash.
    pub fn blob(&self, hash: &str) -> Option<Arc<[u8]>> {
        self.blobs.get(hash).cloned()
    }

    /// Names, hashes and sizes of the model's side files.
    pub fn model_files(&self) -> &[v1::SideFile] {
        &self.model_files
    }

    /// The weights that do not learn.
    pub fn frozen(&self) -> Option<&Frozen> {
        self.model.frozen.as_ref()
    }

    /// Bytes of a published version.
    pub fn slab_bytes(&self) -> u64 {
        self.model.slab_bytes
    }

    /// Usable training questions.
    pub fn train_len(&self) -> usize {
        self.train.len()
    }

    /// The digest of what is shown of the training data: [`Dataset::shown_digest`].
    pub fn shown_digest(&self) -> String {
        self.train.shown_digest()
    }

    /// Records of the data that are not used, with the name of their set.
    pub fn set_aside(&self) -> impl Iterator<Item = (&'static str, &SetAside)> {
        let train = self.train.set_aside().iter().map(|s| ("train", s));
        train.chain(self.test.iter().flat_map(|t| t.set_aside()).map(|s| ("test", s)))
    }

    /// Set, sort of reason and number of the records that are not used.
    pub fn set_aside_by_kind(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let of = |set, data: &Dataset| data.set_aside_by_kind().iter().map(move |(&kind, &n)| (set, kind, n)).collect();
        let train: Vec<_> = of("train", &self.train);
        train.into_iter().chain(self.test.iter().flat_map(move |test| of("test", test)))
    }

    /// How many of the training and of the test data are not used.
    pub fn set_aside_counts(&self) -> (u64, u64) {
        (self.train.set_aside_count(), self.test.as_ref().map_or(0, Dataset::set_aside_count))
    }

    /// Where the questions of a purpose come from.
    pub fn file_of(&self, purpose: Purpose) -> &Path {
        match (purpose, &self.test) {
            (Purpose::Train, _) | (_, None) => self.train.path(),
            (_, Some(test)) => test.path(),
        }
    }

    /// Questions of an evaluation; 0 = none.
    pub fn questions(&self) -> u32 {
        let limit = self.config.eval.questions;
        let all = self.test.as_ref().map_or(0, |t| u32::try_from(t.len()).unwrap_or(u32::MAX));
        if limit == 0 { all } else { all.min(limit) }
    }

    /// Indices into the training data of the prompts of `step`, slot by slot.
    fn order(&self, step: u64) -> Arc<[usize]> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(s, _)| *s == step) {
            return order.clone();
        }
        let per_step = self.config.rollout.prompts_per_step as usize;
        let order: Arc<[usize]> =
            quorum_data::prompts_of_step(self.config.run.seed, step, per_step, self.train.len()).into();
        if orders.len() >= ORDERS_KEPT {
            orders.remove(0);
        }
        orders.push((step, order.clone()));
        order
    }

    /// The record in a slot.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn record(&self, work: Work) -> Result<&Record, NoSuchWork> {
        let slot = work.slot as usize;
        let found = match work.purpose {
            Purpose::Train => self.order(work.step).get(slot).and_then(|&i| self.train.get(i)),
            _ => self.test.as_ref().filter(|_| work.slot < self.questions()).and_then(|t| t.get(slot)),
        };
        found.ok_or_else(|| NoSuchWork(format!("there is no slot {slot} in step {} for {:?}", work.step, work.purpose)))
    }

    /// A training question by its row, which is how the ledger names it.
    pub fn training_record(&self, row: u64) -> Option<&Record> {
        self.train.by_row(row)
    }

    /// The prompt in a slot as it goes over the wire.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn prompt(&self, work: Work) -> Result<v1::PromptSpec, NoSuchWork> {
        let record = self.record(work)?;
        let text = quorum_data::prompt(&record.question, &self.config.data.suffix);
        Ok(v1::PromptSpec { row: record.row, text, images: record.images.iter().map(|i| i.hash()).collect() })
    }

    /// (sample, view) of every response a lease of this purpose asks for.
    pub fn samples(&self, purpose: Purpose) -> Vec<(u32, u32)> {
        match purpose {
            Purpose::Train => {
                (0..self.config.rollout.group_size).map(|i| (i, i % self.config.view.count.max(1))).collect()
            }
            Purpose::EvalGreedy => vec![(0, 0)],
            Purpose::EvalSampled | Purpose::EvalCool => (0..self.config.eval.samples).map(|i| (i, 0)).collect(),
        }
    }

    /// How a lease of this purpose samples.
    pub fn sampling(&self, purpose: Purpose) -> Sampling {
        let (rollout, eval) = (&self.config.rollout, &self.config.eval);
        let plain =
            |temperature| Sampling { temperature, top_p: 1.0, top_k: 0, max_new_tokens: rollout.max_new_tokens };
        match purpose {
            Purpose::Train => Sampling {
                temperature: rollout.temperature,
                top_p: rollout.top_p,
                top_k: rollout.top_k,
                max_new_tokens: rollout.max_new_tokens,
            },
            Purpose::EvalGreedy => plain(0.0),
            Purpose::EvalSampled => plain(eval.temperature),
            Purpose::EvalCool => plain(eval.cool_temperature),
        }
    }

    /// Whether batches come from the data itself.
    pub fn supervised(&self) -> bool {
        self.config.objective.kind == ObjectiveKind::Sft
    }

    /// Views take turns over slots and steps, so that a record is seen as it is and augmented.
    fn supervised_view(&self, work: Work) -> u32 {
        let count = u64::from(self.config.view.count.max(1));
        ((work.step + u64::from(work.slot)) % count) as u32
    }

    /// The group that supervised training puts in a slot: one worked response, paid 1.
    ///
    /// # Errors
    /// The slot, its response or the tokenizer is missing.
    pub fn supervised_group(&self, work: Work) -> Result<Group, NoSuchWork> {
        let record = self.record(work)?;
        let missing = |what: &str| NoSuchWork(format!("data.train, row {}: {what}", record.row));
        let text = record.response.clone().ok_or_else(|| missing("no response"))?;
        let processor = self.model.processor.as_ref().ok_or_else(|| missing("no tokenizer to encode its response"))?;
        let mut tokens = processor.encode_text(&text).map_err(|e| missing(&e.to_string()))?;
        tokens.extend(processor.stop_tokens().first());
        let answers = [answer::extract(&text, &self.config.vote.extract)];
        Ok(Group {
            step: work.step,
            slot: work.slot,
            prompt: record.row,
            version: work.step,
            completions: vec![Completion {
                sample: 0,
                view: self.supervised_view(work),
                logprobs: vec![0.0; tokens.len()],
                tokens,
                finish: Finish::Stop,
                text,
            }],
            vote: vote::vote(&answers, &self.config.vote),
            rewards: vec![1.0],
        })
    }
}
