//! Sections of the configuration with their defaults. Every key says its unit.

use serde::{Deserialize, Serialize};

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunSection {
    /// Seed of data order, samples, views and random rewards.
    pub seed: u64,
    /// Training steps (policy versions).
    pub steps: u64,
    /// Run directory; empty = `runs/<time>-<seed>`. Not part of the digest.
    pub dir: String,
    /// `s3://BUCKET/PREFIX`: every checkpoint is copied there, with ledger and evaluations; empty = nowhere. Not part of the digest.
    pub mirror: String,
}

impl Default for RunSection {
    fn default() -> Self {
        Self { seed: 1, steps: 100, dir: String::new(), mirror: String::new() }
    }
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// Hugging Face checkpoint directory. Not part of the digest: the content hash of its files is recorded with the run instead.
    pub path: String,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self { path: "assets/model".into() }
    }
}

/// A switch that may be left to the chat template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    /// As the template has it.
    #[default]
    Template,
    On,
    Off,
}

/// `[template]`: choices of the run in the checkpoint's chat template.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TemplateSection {
    /// System turn before every prompt; empty = as the template has it (some have a default one).
    pub system: String,
    /// `enable_thinking` of Qwen3's templates.
    pub thinking: Thinking,
}

/// Where image placeholders stand in a question.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagePlacement {
    /// As the text has them, one `<image>` an image; a text without any gets all images before it.
    #[default]
    FirstIfNone,
    /// The text must hold one `<image>` an image.
    AsWritten,
    /// All images go before the text, wherever it has them.
    First,
}

/// What is taken out of an answer cell. A cell without it counts as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerForm {
    /// The whole cell.
    #[default]
    AsWritten,
    /// What stands in the last `<answer>…</answer>`.
    Tagged,
    /// What stands in the last `\boxed{…}`.
    Boxed,
    /// What follows the last `####`.
    AfterHashes,
    /// The letter of the choice (of those the template shows) that equals the cell.
    Letter,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Training questions: a file, a directory, or `DIR#SPLIT`. Not part of the digest: the content hash is recorded instead.
    pub train: String,
    /// Answers of the training questions, read only by `reward.source = "ground_truth"`. Empty = none.
    pub train_labels: String,
    /// Labelled questions for `coordinator`'s evaluation before and after. Empty = no evaluation.
    pub test: String,
    /// Layout of a published data set, which sets the keys below that are not set explicitly. Empty = none.
    pub preset: String,
    /// Column with the question. In every column key `a|b` is the first of these that the file has, and "none" is no column.
    pub question_column: String,
    /// Column with the image or list of images; with none the data is text.
    pub image_column: String,
    /// Column with the answer, where there is one.
    pub answer_column: String,
    /// Column with a worked response, for `objective.kind = "sft"`.
    pub response_column: String,
    /// Column with a name for each record.
    pub id_column: String,
    pub image_placement: ImagePlacement,
    /// Question as shown: `{question}` and `{COLUMN}` are filled in; a list becomes lines `(A) …`; a line of empty columns alone is left out.
    pub template: String,
    /// Appended to every question. "method" = the method's suffix.
    pub suffix: String,
    pub answer_form: AnswerForm,
    /// Directory that image paths are relative to and may not leave. Empty = that of the data. Not part of the digest.
    pub image_root: String,
    /// Images with more pixels are refused.
    pub max_image_pixels: u64,
    /// Encoded images with more bytes are refused.
    pub max_image_bytes: u64,
    /// Records with more bytes of text are refused.
    pub max_record_bytes: u64,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            train: "assets/data/unlabelled.parquet".into(),
            train_labels: String::new(),
            test: "assets/data/test.parquet".into(),
            preset: String::new(),
            question_column: "problem|question|query".into(),
            image_column: "images|image|decoded_image|file_name|file_names|none".into(),
            answer_column: "answer|none".into(),
            response_column: "response|solution|none".into(),
            id_column: "id|pid|none".into(),
            image_placement: ImagePlacement::FirstIfNone,
            template: "{question}".into(),
            suffix: String::new(),
            answer_form: AnswerForm::AsWritten,
            image_root: String::new(),
            max_image_pixels: 64 << 20,
            max_image_bytes: 32 << 20,
            max_record_bytes: 4 << 20,
        }
    }
}

/// `[rollout]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutSection {
    /// Prompts a step.
    pub prompts_per_step: u32,
    /// Responses a prompt: the vote pool.
    pub group_size: u32,
    /// Responses a prompt that are trained on (the first ones); 0 = all.
    pub train_size: u32,
    /// Sampling temperature; also the temperature of the policy distribution.
    pub temperature: f32,
    /// Nucleus mass; 1 = off. Below 1 the importance ratio is biased: log-probs are those of the whole distribution.
    pub top_p: f32,
    /// 0 = off.
    pub top_k: u32,
    /// Tokens.
    pub max_new_tokens: u32,
    /// Records whose prompt has more tokens are set aside; 0 = as many as the model's positions allow.
    pub max_prompt_tokens: u32,
    /// Where rewards come from.
    pub reward: crate::reward::RewardSource,
}

impl Default for RolloutSection {
    fn default() -> Self {
        Self {
            prompts_per_step: 128,
            group_size: 8,
            train_size: 0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            max_new_tokens: 48,
            max_prompt_tokens: 0,
            reward: crate::reward::RewardSource::Majority,
        }
    }
}

/// `[view]`: light augmentation; sample i of a group is drawn from view `i % count`, view 0 being the image as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ViewSection {
    /// Views a prompt; 1 = the image as it is.
    pub count: u32,
    /// Largest shift, as a share of the side.
    pub shift: f32,
    /// Largest rotation, degrees.
    pub rotate: f32,
    /// Largest relative change of scale.
    pub scale: f32,
    /// Largest relative change of contrast.
    pub contrast: f32,
}

impl Default for ViewSection {
    fn default() -> Self {
        Self { count: 1, shift: 0.04, rotate: 8.0, scale: 0.08, contrast: 0.1 }
    }
}

/// What the learner maximises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveKind {
    /// Clipped group-relative policy optimisation.
    #[default]
    Grpo,
    /// Supervised fine-tuning on `data.response_column`; needs no rollout worker.
    Sft,
}

/// Over what the loss is averaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossMean {
    /// Over all tokens of the gradient batch.
    Token,
    /// 1/|o_i| inside each sequence, then over sequences (the paper).
    #[default]
    Sequence,
}

/// `[objective]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveSection {
    pub kind: ObjectiveKind,
    /// Lower clip of the ratio: 1 − ε_low.
    pub epsilon_low: f32,
    /// Upper clip of the ratio: 1 + ε_high.
    pub epsilon_high: f32,
    /// Bound c on the loss of negative advantages; 0 = off.
    pub dual_clip: f32,
    /// Weight β of KL(π‖π_ref), k3; 0 = no reference model is kept.
    pub beta: f32,
    pub loss_mean: LossMean,
    /// Added to the standard deviation of the group's rewards.
    pub advantage_epsilon: f32,
    /// Divide advantages by the group's standard deviation.
    pub scale_advantages: bool,
    /// Leave groups whose samples are all paid alike out of the batch: they have no advantage, and without this flag
    /// they still count in the loss mean and, with β > 0, in the KL term.
    pub skip_flat_groups: bool,
}

impl Default for ObjectiveSection {
    fn default() -> Self {
        Self {
            kind: ObjectiveKind::Grpo,
            epsilon_low: 0.2,
            epsilon_high: 0.3,
            dual_clip: 3.0,
            beta: 0.01,
            loss_mean: LossMean::Sequence,
            advantage_epsilon: 1e-6,
            scale_advantages: true,
            skip_flat_groups: false,
        }
    }
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    #[default]
    Constant,
    /// Linearly to 0 at `run.steps`.
    Linear,
    /// Half a cosine to 0 at `run.steps`.
    Cosine,
}

/// `[optim]`: AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimSection {
    pub learning_rate: f32,
    pub schedule: Schedule,
    /// Steps over which the rate rises linearly from 0.
    pub warmup_steps: u64,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub weight_decay: f32,
    /// Largest global gradient norm; 0 = no clipping.
    pub grad_clip: f32,
    /// Optimiser steps a training step; the prompts of the step are split into this many gradient batches.
    pub gradient_batches: u32,
}

impl Default for OptimSection {
    fn default() -> Self {
        Self {
            learning_rate: 5e-5,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            grad_clip: 1.0,
            gradient_batches: 1,
        }
    }
}

/// `[eval]`: held-out accuracy on `data.test`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSection {
    /// Evaluate before the first and after the last step.
    pub enabled: bool,
    /// Also every this many steps; 0 = never.
    pub every: u64,
    /// First questions of the test set; 0 = all.
    pub questions: u32,
    /// Responses a question for `mean`, `mean_t03` and `vote`.
    pub samples: u32,
    /// Temperature of `mean` and `vote`.
    pub temperature: f32,
    /// Temperature of `mean_t03`.
    pub cool_temperature: f32,
}

impl Default for EvalSection {
    fn default() -> Self {
        Self { enabled: true, every: 0, questions: 0, samples: 8, temperature: 1.0, cool_temperature: 0.3 }
    }
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Steps between checkpoints; the last step always makes one.
    pub every: u64,
    /// Newest checkpoints kept; at least 2.
    pub keep: u32,
    /// Megabytes of responses (texts, tokens, log-probs) of learned steps that stay in the ledger to be looked at; older ones are dropped first.
    /// Votes and rewards always stay, and so does what a restart would need.
    pub texts_mb: u64,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every: 10, keep: 2, texts_mb: 256 }
    }
}

/// `[cluster]`: addresses, deadlines, safety. Not part of the digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// gRPC address.
    pub listen: String,
    /// HTTP address (`/metrics`, `/healthz`, status).
    pub http: String,
    /// Seconds until an unanswered lease is given to another worker.
    pub lease_seconds: f64,
    /// Seconds between heartbeats of a worker; after 5 missed ones it is lost.
    pub heartbeat_seconds: f64,
    /// Seconds to wait for a worker or the learner to join before the run fails and names who is missing.
    pub join_seconds: f64,
    /// Seconds the learner may take for one step before the run fails and names it.
    pub step_seconds: f64,
    /// Prompts a worker holds at once.
    pub prompts_per_lease: u32,
    /// Largest gRPC message, bytes.
    pub max_message_bytes: usize,
    /// PEM files; both set = TLS.
    pub tls_cert: String,
    pub tls_key: String,
    /// CA that workers and learner trust, PEM; empty = none (plain text).
    pub tls_ca: String,
    /// CA that must have signed the certificate of every caller, PEM; empty = callers need no certificate.
    pub tls_client_ca: String,
    /// Certificate and key, PEM, that processes started by `--workers` show; needed with `tls_client_ca`.
    pub tls_member_cert: String,
    pub tls_member_key: String,
    /// File with the shared token; empty = none.
    pub token_file: String,
    /// Allows addresses beyond loopback without TLS and token.
    pub insecure: bool,
    /// Workers that one worker, or the coordinator, hands new weights on to at a time; 0 = all get them from the coordinator.
    pub relay_fanout: u32,
    /// Seconds without a sign of life from a relay until its next source is asked.
    pub relay_seconds: f64,
    /// Send followers what changed since the version before, where that is less.
    pub weight_delta: bool,
    /// Seconds that the learner and the workers of one fabric may take to form a group for new weights; the bytes have their time beside it. A round
    /// that takes longer is given up for the stream of chunks.
    pub broadcast_seconds: f64,
}

impl Default for ClusterSection {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7070".into(),
            http: "127.0.0.1:7071".into(),
            lease_seconds: 120.0,
            heartbeat_seconds: 2.0,
            join_seconds: 60.0,
            step_seconds: 1800.0,
            prompts_per_lease: 16,
            max_message_bytes: 64 << 20,
            tls_cert: String::new(),
            tls_key: String::new(),
            tls_ca: String::new(),
            tls_client_ca: String::new(),
            tls_member_cert: String::new(),
            tls_member_key: String::new(),
            token_file: String::new(),
            insecure: false,
            relay_fanout: 4,
            relay_seconds: 5.0,
            weight_delta: false,
            broadcast_seconds: 20.0,
        }
    }
}

/// How the ranks of a learner group add their gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Each rank folds its own lanes, then the library's reduce-scatter: least traffic; the bits depend on the number of ranks.
    #[default]
    Fast,
    /// All lanes travel and are added in lane order: the bits of one rank, whatever the number of ranks.
    Fixed,
}

/// `[learner]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearnerSection {
    /// Gradient slabs summed in fixed order; part of what determines the bits (D3).
    pub lanes: u32,
    /// Threads of one rank; 0 = one a core. Not part of the digest: it never changes a bit.
    pub threads: u32,
    /// Learner processes that share a step, at most one a lane. Part of the digest only with `reduction = "fast"` and more than one.
    pub ranks: u32,
    /// How ranks add their gradients.
    pub reduction: Reduction,
}

impl Default for LearnerSection {
    fn default() -> Self {
        Self { lanes: 8, threads: 0, ranks: 1, reduction: Reduction::Fast }
    }
}
