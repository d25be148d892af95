//! Requests and results of the engine. Plain data, no arithmetic.

use quorum_core::types::{Finish, SampleKey, Sampling};
use quorum_model::EncodedPrompt;

/// The policy distribution: softmax of logits / temperature over the vocabulary minus `forbidden`.
///
/// The same function serves π, π_old and π_ref. Temperature 0 (greedy decoding) gives log-probs at temperature 1.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyDist {
    /// Divides the logits; 0 is read as 1.
    pub temperature: f32,
    /// Token ids with probability zero. Ids outside the vocabulary are ignored.
    pub forbidden: Vec<u32>,
    /// Token ids that end a response.
    pub stop: Vec<u32>,
}

impl PolicyDist {
    /// The plain softmax of the model: temperature 1, nothing forbidden, no stop token.
    pub fn unmasked() -> Self {
        Self { temperature: 1.0, forbidden: Vec::new(), stop: Vec::new() }
    }
}

/// One prompt and the samples wanted of it.
#[derive(Debug, Clone)]
pub struct GenRequest<'a> {
    /// Image and prompt tokens; encoded and prefilled once.
    pub prompt: &'a EncodedPrompt,
    /// One response a key.
    pub samples: Vec<SampleKey>,
    /// How tokens are drawn (`sampling.temperature` 0 = greedy).
    pub sampling: Sampling,
    /// Distribution whose log-probs are reported, forbidden and stop tokens.
    pub policy: PolicyDist,
}

/// One sampled response.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Token ids, the stop token included if one was drawn.
    pub tokens: Vec<u32>,
    /// Policy log-prob (nats) of each token.
    pub logprobs: Vec<f32>,
    pub finish: Finish,
}

/// One prompt and the completions that branch off it.
#[derive(Debug, Clone)]
pub struct Pack<'a> {
    /// Image and prompt tokens, run once.
    pub prompt: &'a EncodedPrompt,
    /// Token ids of each completion; an empty one is allowed and scores nothing.
    pub completions: Vec<&'a [u32]>,
}

/// Scores of one pack, in the order of its completions and their tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PackScores {
    /// Policy log-prob (nats) of each completion token.
    pub logprobs: Vec<Vec<f32>>,
    /// Entropy (nats) of the policy distribution at each completion token.
    pub entropy: Vec<Vec<f32>>,
}

/// AdamW settings; decay applies to all parameters, bias correction as in torch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Decoupled weight decay; multiplied by the learning rate.
    pub weight_decay: f32,
    /// Largest global gradient norm; larger gradients are scaled down. `f32::INFINITY` = off.
    pub max_grad_norm: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: 1.0 }
    }
}

/// What an optimiser step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Whether the gradient was scaled down.
    pub clipped: bool,
    /// False: the gradient held NaN or infinity, and neither weights nor moments were changed.
    pub finite: bool,
}

/// Borrowed optimiser state, for checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct OptimState<'a> {
    /// First moments, a slab.
    pub m: &'a [f32],
    /// Second moments, a slab.
    pub v: &'a [f32],
    /// Steps taken.
    pub t: u64,
}
