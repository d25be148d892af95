//! Domain types that cross crate borders: keys of samples, sampling settings, completions, groups, votes.

use serde::{Deserialize, Serialize};

/// What a lease asks for. Part of every random key, so that evaluation never replays training samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A group of a training step.
    Train,
    /// Held-out evaluation, one deterministic answer a question.
    EvalGreedy,
    /// Held-out evaluation, sampled answers at the policy's temperature.
    EvalSampled,
    /// Held-out evaluation, sampled answers at a low temperature.
    EvalCool,
}

/// Names one sample of the whole run; together with weights and prompt it determines the response (D1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SampleKey {
    /// `run.seed`.
    pub seed: u64,
    pub purpose: Purpose,
    /// Training step, or the step after which an evaluation runs.
    pub step: u64,
    /// Row of the prompt in its data set.
    pub prompt: u64,
    /// Index inside the group, `0..group_size`.
    pub sample: u32,
    /// 0 = the image as it is; k > 0 = its k-th augmented view.
    pub view: u32,
}

/// How tokens are drawn. Log-probs always are those of the policy distribution (temperature, forbidden tokens), before top-p / top-k.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 means greedy (log-probs then at temperature 1).
    pub temperature: f32,
    /// Nucleus mass in (0, 1]; 1 = off.
    pub top_p: f32,
    /// Number of most likely tokens kept; 0 = off.
    pub top_k: u32,
    /// Upper limit of response tokens, the stop token included.
    pub max_new_tokens: u32,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// A stop token was drawn (it is the last token).
    Stop,
    /// The length limit was reached.
    Length,
}

/// One sampled response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    pub sample: u32,
    pub view: u32,
    /// Token ids, the stop token included if one was drawn.
    pub tokens: Vec<u32>,
    /// One policy log-prob (nats) a token.
    pub logprobs: Vec<f32>,
    pub finish: Finish,
    /// Decoded without special tokens.
    pub text: String,
}

/// All responses to one prompt of one step, with their vote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    pub step: u64,
    /// Position inside the step, `0..prompts_per_step`: the canonical order.
    pub slot: u32,
    /// Row of the prompt in its data set.
    pub prompt: u64,
    /// Policy version that sampled it.
    pub version: u64,
    pub completions: Vec<Completion>,
    pub vote: crate::vote::VoteRecord,
    /// Paid reward of each completion.
    pub rewards: Vec<f32>,
}
