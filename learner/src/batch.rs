//! What the coordinator hands over for one step, read into sequences with advantages, and its order: slots ascending, views ascending, samples ascending.

use crate::error::LearnerError;
use crate::share::Share;
use quorum_core::advantage::{AdvantageRule, advantages};
use quorum_core::config::{ObjectiveKind, RunConfig};
use quorum_core::reward::RewardSource;
use quorum_core::types::{Completion, Finish};
use quorum_core::vote::VoteRecord;
use quorum_core::wire::WireError;
use quorum_model::EncodedPrompt;
use quorum_proto::v1;
use std::collections::BTreeSet;
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

/// What a step asks to compute, known on every rank before anything is encoded.
#[derive(Debug, Clone, Default)]
pub struct Outline {
    /// Slot and view of every pack, in slot, then view order; flat groups are left out where nothing can be learned from them.
    pub packs: Vec<(usize, u32)>,
    /// Prompts in the step.
    pub prompts: usize,
    /// Slot and length of every sequence that counts in the loss mean, whether computed or not.
    pub counted: Vec<(usize, usize)>,
}

/// The part of a step that one rank computes.
#[derive(Debug, Clone)]
pub struct Packs {
    /// Of this rank, in slot, then view order.
    pub packs: Vec<TrainPack>,
    pub outline: Outline,
    /// The gradient batches of the step that hold anything to compute, on whichever rank.
    pub parts: Vec<Part>,
}

/// One gradient batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub slots: Range<usize>,
    /// Packs of all ranks, counted as in the outline.
    pub packs: Range<usize>,
    /// Those of this rank, counted as in its `Packs`; may be empty.
    pub own: Range<usize>,
}

/// The gradient batches of a step: part k holds the slots `k·n/parts ..(k+1)·n/parts` of the step's `n` prompts. One without packs is left out.
pub fn gradient_batches(outline: &Outline, parts: u32, share: Share) -> Vec<Part> {
    let parts = parts.max(1) as usize;
    let cut = |k: usize| k * outline.prompts / parts;
    let mut own = 0;
    (0..parts)
        .map(|k| {
            let slots = cut(k)..cut(k + 1);
            let first = outline.packs.partition_point(|(slot, _)| *slot < slots.start);
            let end = outline.packs.partition_point(|(slot, _)| *slot < slots.end);
            let start = own;
            own += (0..end - first).filter(|i| share.owns(*i)).count();
            Part { slots, packs: first..end, own: start..own }
        })
        .filter(|part| !part.packs.is_empty())
        .collect()
}

/// Slot and view of the packs of this rank, in order: a pack goes by its place in its gradient batch.
pub fn own_packs(outline: &Outline, parts: &[Part], share: Share) -> BTreeSet<(usize, u32)> {
    let of = |part: &Part| outline.packs.get(part.packs.clone()).unwrap_or_default().iter().enumerate();
    parts.iter().flat_map(of).filter(|(i, _)| share.owns(*i)).map(|(_, pack)| *pack).collect()
}
