//! What the coordinator hands over for one step, read into sequences with advantages, and its order: slots ascending, views ascending, samples ascending.

use crate::error::LearnerError;
use quorum_core::advantage::{AdvantageRule, advantages};
use quorum_core::config::{ObjectiveKind, RunConfig};
use quorum_core::reward::RewardSource;
use quorum_core::types::{Completion, Finish};
use quorum_core::vote::VoteRecord;
use quorum_core::wire::WireError;
use quorum_model::EncodedPrompt;
use quorum_proto::v1;
use std::ops::Range;

/// One step's prompts and groups.
#[derive(Debug, Clone)]
pub struct Batch {
    pub step: u64,
    /// Weights digest that a replayed step must end with; empty = not a replay.
    pub expected_digest: String,
    /// Make a checkpoint after this step.
    pub checkpoint: bool,
    /// In slot order.
    pub items: Vec<Item>,
}

/// One prompt with what is trained on it.
#[derive(Debug, Clone)]
pub struct Item {
    pub prompt: v1::PromptSpec,
    pub use_: Use,
    /// Sample order; empty unless `use_` is `Train` or `Flat`.
    pub sequences: Vec<Sequence>,
}

/// What a group is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Rewards differ.
    Train,
    /// All advantages are 0: only the KL term can teach anything.
    Flat,
    /// The vote pays nobody, or the prompt was quarantined.
    Dropped,
}

/// One trained completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    pub view: u32,
    pub tokens: Vec<u32>,
    /// Log-probs the worker reported, nats.
    pub sampler: Vec<f32>,
    pub advantage: f32,
    pub truncated: bool,
}

/// Sequences of one prompt drawn from one view: the engine runs the prompt once for all of them.
#[derive(Debug, Clone)]
pub struct TrainPack {
    /// Position of the prompt in the step.
    pub slot: usize,
    pub prompt: EncodedPrompt,
    pub sequences: Vec<Sequence>,
}

impl Batch {
    /// Reads the messages of a batch.
    ///
    /// # Errors
    /// Messages that do not form one batch of that step in slot order.
    pub fn read(head: &v1::BatchHead, items: Vec<v1::BatchItem>, config: &RunConfig) -> Result<Self, LearnerError> {
        let step = head.step;
        let broken = |reason: String| LearnerError::Batch { step, reason };
        if items.len() != head.items as usize {
            return Err(broken(format!("{} groups arrived, {} were promised", items.len(), head.items)));
        }
        let mut read = Vec::with_capacity(items.len());
        for (slot, item) in items.into_iter().enumerate() {
            let (Some(prompt), Some(group)) = (item.prompt, item.group) else {
                return Err(broken(format!("item {slot} lacks its prompt or group")));
            };
            if (group.step, group.slot as usize, group.prompt) != (step, slot, prompt.row) {
                return Err(broken(format!("item {slot} is slot {} of step {}", group.slot, group.step)));
            }
            // Synchronous mode: a step is trained on samples of its own version only (INV-3).
            if group.version != step && config.objective.kind == ObjectiveKind::Grpo && !group.completions.is_empty() {
                return Err(broken(format!("slot {slot} was sampled by version {}", group.version)));
            }
            let (use_, sequences) = sequences(group, config)?;
            read.push(Item { prompt, use_, sequences });
        }
        Ok(Self { step, expected_digest: head.expected_digest.clone(), checkpoint: head.checkpoint, items: read })
    }

    /// Whether the step was committed before a crash.
    pub fn is_replay(&self) -> bool {
        !self.expected_digest.is_empty()
    }
}

/// The trained sequences of a group, with advantages over exactly these.
fn sequences(group: v1::GroupMsg, config: &RunConfig) -> Result<(Use, Vec<Sequence>), WireError> {
    let supervised = config.objective.kind == ObjectiveKind::Sft;
    if group.completions.is_empty() || (!supervised && vote_drops(&group, config.rollout.reward)?) {
        return Ok((Use::Dropped, Vec::new()));
    }
    if group.rewards.len() != group.completions.len() {
        return Err(WireError(format!(
            "group has {} completions but {} rewards",
            group.completions.len(),
            group.rewards.len()
        )));
    }
    let limit = config.rollout.train_size as usize;
    let trained = if limit == 0 || supervised { group.completions.len() } else { limit.min(group.completions.len()) };
    let advantages = if supervised {
        vec![1.0; trained]
    } else {
        advantages(group.rewards.get(..trained).unwrap_or_default(), &AdvantageRule::from(&config.objective))
    };
    let use_ = if advantages.iter().all(|a| *a == 0.0) { Use::Flat } else { Use::Train };
    let mut out = Vec::with_capacity(trained);
    for (completion, advantage) in group.completions.into_iter().zip(advantages) {
        let c = Completion::try_from(completion)?;
        out.push(Sequence {
            view: c.view,
            tokens: c.tokens,
            sampler: c.logprobs,
            advantage,
            truncated: c.finish == Finish::Length,
        });
    }
    Ok((use_, out))
}

/// Whether the vote pays nobody, for the sources that pay by vote.
fn vote_drops(group: &v1::GroupMsg, source: RewardSource) -> Result<bool, WireError> {
    if !matches!(source, RewardSource::Majority | RewardSource::Soft) {
        return Ok(false);
    }
    let vote: VoteRecord =
        serde_json::from_str(&group.vote_json).map_err(|e| WireError(format!("vote record: {e}")))?;
    Ok(!vote.outcome.pays())
}

/// Cuts packs into `parts` gradient batches at fixed slots: part k holds the slots `k·n/parts ..(k+1)·n/parts` of the step's `n` prompts.
#[derive(Debug, Clone)]
pub struct Packs {
    /// In slot, then view order; flat groups are left out where nothing can be learned from them.
    pub packs: Vec<TrainPack>,
    /// Prompts in the step.
    pub prompts: usize,
    /// Slot and length of every sequence that counts in the loss mean, whether computed or not.
    pub counted: Vec<(usize, usize)>,
}

/// One gradient batch: which slots and which packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub slots: Range<usize>,
    pub packs: Range<usize>,
}

/// The gradient batches of a step that hold anything to compute.
pub fn gradient_batches(packs: &Packs, parts: u32) -> Vec<Part> {
    let parts = parts.max(1) as usize;
    let cut = |k: usize| k * packs.prompts / parts;
    (0..parts)
        .map(|k| {
            let slots = cut(k)..cut(k + 1);
            let first = packs.packs.partition_point(|p| p.slot < slots.start);
            let end = packs.packs.partition_point(|p| p.slot < slots.end);
            Part { slots, packs: first..end }
        })
        .filter(|part| !part.packs.is_empty())
        .collect()
}
