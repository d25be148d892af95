//! Which tensors learn: the *trainable* slab holds what gradients, optimiser, checkpoints and broadcasts are about, the *frozen* slab the rest.
//! Every tensor is in exactly one of them. Low-rank adapters are tensors of the trainable slab. A pure function of model and configuration.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::layout::{Entry, Layout};
use quorum_core::config::{Precision, TrainSection};
use quorum_core::seed::Stream;
use std::sync::Arc;

/// One of the two slabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Frozen,
    Trainable,
}

/// Low-rank adapters: y += scale · B·(A·x), A `[rank, in]`, B `[out, rank]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    pub rank: usize,
    pub alpha: f32,
    /// Last parts of the modules' names, e.g. `q_proj`.
    pub targets: Vec<String>,
}

impl Lora {
    /// alpha / rank.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

/// The two slabs of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Partition {
    pub frozen: Arc<Layout>,
    pub trainable: Arc<Layout>,
    pub lora: Option<Lora>,
    pub precision: Precision,
}

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

impl Partition {
    /// Everything learns, in f32.
    pub fn full(layout: Arc<Layout>) -> Self {
        Self { frozen: Arc::new(Layout::new([])), trainable: layout, lora: None, precision: Precision::F32 }
    }

    /// As configured. `layout` is the model's.
    ///
    /// # Errors
    /// A model on which the settings leave nothing to learn.
    pub fn of(config: &ModelConfig, layout: &Arc<Layout>, train: &TrainSection) -> Result<Self, ModelError> {
        if train.lora.rank > 0 {
            return Self::with_adapters(config, layout, train);
        }
        if train.freeze.is_empty() {
            return Ok(Self { precision: train.precision, ..Self::full(layout.clone()) });
        }
        let frozen = |e: &&Entry| train.freeze.iter().any(|p| p == part_of(config, &e.name));
        let trainable = layout_of(layout.entries().iter().filter(|e| !frozen(e)));
        if trainable.total() == 0 {
            let problem = format!("train.freeze = {:?} leaves nothing of this model to learn", train.freeze);
            return Err(ModelError::key("configuration", "train.freeze", problem));
        }
        let frozen = layout_of(layout.entries().iter().filter(frozen));
        Ok(Self { frozen, trainable, lora: None, precision: train.precision })
    }

    fn with_adapters(config: &ModelConfig, layout: &Arc<Layout>, train: &TrainSection) -> Result<Self, ModelError> {
        let rank = train.lora.rank as usize;
        let layers = config.text_name("layers.");
        let mut tensors = Vec::new();
        for e in layout.entries() {
            let Some(module) = e.name.strip_prefix(&layers).and(e.name.strip_suffix(".weight")) else { continue };
            let last = module.rsplit('.').next().unwrap_or_default();
            if let (true, [rows, columns]) = (train.lora.targets.iter().any(|t| t == last), e.shape.as_slice()) {
                tensors.push((format!("{module}{A}"), vec![rank, *columns]));
                tensors.push((format!("{module}{B}"), vec![*rows, rank]));
            }
        }
        if tensors.is_empty() {
            let problem = format!("names no layer of this model: {:?}", train.lora.targets);
            return Err(ModelError::key("configuration", "train.lora.targets", problem));
        }
        Ok(Self {
            frozen: layout.clone(),
            trainable: Arc::new(Layout::new(tensors)),
            lora: Some(Lora { rank, alpha: train.lora.alpha, targets: train.lora.targets.clone() }),
            precision: train.precision,
        })
    }

    /// The tensor of that hub name, and its slab.
    pub fn get(&self, name: &str) -> Option<(Part, &Entry)> {
        let trainable = self.trainable.get(name).map(|e| (Part::Trainable, e));
        trainable.or_else(|| self.frozen.get(name).map(|e| (Part::Frozen, e)))
    }

    /// The adapter (A, B) of the weight `name`.
    pub fn adapter(&self, name: &str) -> Option<(&Entry, &Entry)> {
        let module = name.strip_suffix(".weight").filter(|_| self.lora.is_some())?;
        Some((self.trainable.get(&format!("{module}{A}"))?, self.trainable.get(&format!("{module}{B}"))?))
    }

    /// Fresh adapters: A uniform in ±1/√in (Kaiming-uniform with a = √5, as PEFT's), B zero, so that the policy starts as the model is.
    /// The draw of a tensor depends on the seed, its name and its shape alone.
    pub fn fresh_adapters(&self, seed: u64) -> Vec<f32> {
        let mut slab = vec![0.0; self.trainable.total()];
        for e in self.trainable.entries().iter().filter(|e| e.name.ends_with(A)) {
            let bound = 1.0 / (e.shape.last().copied().unwrap_or(1).max(1) as f64).sqrt();
            let mut stream = Stream::named(&format!("initial weights of {}", e.name), &[seed]);
            for (i, x) in slab[e.range.clone()].iter_mut().enumerate() {
                *x = ((2.0 * stream.uniform(i as u64) - 1.0) * bound) as f32;
            }
        }
        slab
    }
}

/// The part of the model a tensor belongs to, as `train.freeze` names it.
fn part_of<'a>(config: &ModelConfig, name: &str) -> &'a str {
    if config.family.vision_prefix().is_some_and(|p| name.starts_with(p)) {
        "vision"
    } else if name == config.embedding_name() || name == config.head_name() {
        "embeddings"
    } else {
        "language"
    }
}

fn layout_of<'a>(entries: impl Iterator<Item = &'a Entry>) -> Arc<Layout> {
    Arc::new(Layout::new(entries.map(|e| (e.name.clone(), e.shape.clone()))))
}
