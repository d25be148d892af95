//! Peak memory of each process as a function of shapes and settings: what it allocates, by purpose. Pure; upper estimates where a run decides
//! (lengths, how packs fall together). A benchmark compares it with measured peaks, so every term names the buffer it stands for.

use super::shapes::{Blocks, Shapes, padded};
use serde::Serialize;

/// Bytes of an f32.
const F32: u64 = 4;
/// Rows that small packs or prompts are run together in (`engine`: BATCH_ROWS, PREFILL_ROWS).
const ROWS: u64 = 384;
/// Logits held at once, elements (`engine` head: CHUNK), and the fewest rows of a chunk.
const LOGITS: u64 = 1 << 23;
const LEAST_LOGIT_ROWS: u64 = 12;
/// Depth of a block of the gradient product (`engine` gemm: KC).
const DEPTH: u64 = 256;
/// Policy versions a coordinator keeps (`weights.rs`), and a worker holds (`rollout-worker/src/weights.rs`).
const VERSIONS: u64 = 2;
/// Bytes of a version beyond which a coordinator keeps it in a file (`weights.rs`: LARGE).
const SPILLED: u64 = 256 << 20;
/// Encoded images a process keeps, bytes (`rollout-worker` images, `learner` connection).
const WORKER_CACHE: u64 = 256 << 20;
const LEARNER_CACHE: u64 = 512 << 20;
/// Elements of a slab beyond which workers hold one version, and engines the panels of one (`rollout-worker` weights, `engine` pool: LARGE).
const LARGE: u64 = 1 << 26;
/// Panels made for one backward product, elements (`engine` linear: BLOCK).
const PRODUCT: u64 = 1 << 18;
/// Executable, runtime and thread stacks; and the tokenizer, by entry of the vocabulary: measured.
const BASE: u64 = 30 << 20;
const TOKEN: u64 = 480;

/// Lengths of prompts. `usual` is the median.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PromptSize {
    pub longest_tokens: u64,
    pub usual_tokens: u64,
    pub longest_patches: u64,
    pub usual_patches: u64,
}

/// Settings and data that memory depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Demand {
    /// Elements that learn, adapters included.
    pub trainable: u64,
    /// Elements of the panels of their matrices, and bytes of one.
    pub panels: u64,
    pub panel_bytes: u64,
    /// Bytes of everything that does not learn, as it is held: matrices as panels, vectors in f32.
    pub frozen_bytes: u64,
    /// Gradients reach the vision tower.
    pub vision_trained: bool,
    /// A reference policy is scored (β > 0).
    pub reference: bool,
    /// Optimiser steps a training step; with several, π_old is scored too.
    pub gradient_batches: u64,
    pub lanes: u64,
    pub learner_threads: u64,
    pub worker_threads: u64,
    /// Block activations are recomputed instead of kept.
    pub checkpointing: bool,
    pub supervised: bool,
    pub prompts_per_step: u64,
    /// Responses a prompt: sampled, trained, and at most (evaluation included).
    pub group_size: u64,
    pub train_size: u64,
    pub most_samples: u64,
    pub views: u64,
    pub prompts_per_lease: u64,
    pub max_new_tokens: u64,
    pub prompt: PromptSize,
    /// Encoded training and test data, bytes.
    pub data_bytes: u64,
}

/// Bytes of one process by purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Slabs of policy versions: what learns.
    pub weights: u64,
    /// Their matrices once more, in the order the matrix kernel reads.
    pub panels: u64,
    /// What does not learn.
    pub frozen: u64,
    pub gradients: u64,
    /// Adam's two moments.
    pub optimizer: u64,
    /// Start weights for the KL term.
    pub reference: u64,
    pub kv: u64,
    /// Buffers of forward and backward passes.
    pub activations: u64,
    /// Data sets, images, prompts, samples.
    pub data: u64,
    pub base: u64,
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { weights, panels, frozen, gradients, optimizer, reference, kv, activations, data, base } = *self;
        [weights, panels, frozen, gradients, optimizer, reference, kv, activations, data, base].iter().sum()
    }
}

impl Demand {
    fn trainable_bytes(&self) -> u64 {
        self.trainable * F32
    }

    /// Bytes of a published version.
    pub fn wire_bytes(&self) -> u64 {
        self.trainable * self.panel_bytes
    }

    /// Bytes of the run directory that published versions take while it runs.
    pub fn spilled_bytes(&self) -> u64 {
        if self.wire_bytes() > SPILLED { (VERSIONS + 1) * self.wire_bytes() } else { 0 }
    }

    fn all_panels(&self) -> u64 {
        versions(self.panels) * self.panels * self.panel_bytes
    }

    /// Rows of the responses of the largest training pack: those drawn from one view of a prompt.
    fn branch_rows(&self) -> u64 {
        let branches = if self.supervised { 1 } else { self.train_size.div_ceil(self.views.max(1)) };
        branches * self.max_new_tokens
    }

    /// (rows, patches) of the largest batch of small packs, or of the largest pack.
    fn batch(&self, pack_rows: u64) -> (u64, u64) {
        let together = (ROWS / self.prompt.usual_tokens.max(1)).max(1);
        (pack_rows.max(ROWS), self.prompt.longest_patches.max(together * self.prompt.usual_patches))
    }

    /// Tokens, log-probs and texts of one step's samples.
    fn samples(&self) -> u64 {
        self.prompts_per_step * self.group_size * self.max_new_tokens * 16
    }
}

/// Versions of a slab, or of its panels, that a process holds.
fn versions(elements: u64) -> u64 {
    if elements > LARGE { 1 } else { VERSIONS }
}

/// One block's own results on `n` rows: `block::Activations` without its input and middle.
fn passing(b: &Blocks, n: u64) -> u64 {
    let raw = if b.qk_norm { n * (b.heads + b.kv_heads) * (b.head_dim + 1) } else { 0 };
    4 * n + n * b.qkv() + raw + 2 * b.heads * n + n * b.attended() + n * b.up
}

/// Kept for the backward pass of a tower on `n` rows (`tape::Tape`): all of every block, or only its input, or nothing.
fn kept(b: &Blocks, n: u64, reached: bool, checkpointing: bool) -> u64 {
    let states = 2 * n * b.width;
    match (reached, checkpointing) {
        (false, _) => passing(b, n),
        (true, false) => b.count * (passing(b, n) + states),
        (true, true) => b.count * n * b.width + passing(b, n) + states + n * b.width,
    }
}

/// Of one block alone, on `n` rows: `block::BlockScratch`; the longest run of rows is packed once more for attention.
fn scratch(b: &Blocks, n: u64, backward: bool) -> u64 {
    let packed = 2 * padded(n) * b.head_dim;
    let forward = n * (b.width + b.ffn) + packed;
    if !backward {
        return forward;
    }
    let wide = b.up.max(b.qkv());
    let products = PRODUCT.max(padded(wide.max(b.width)) * DEPTH);
    forward + n * (b.width + wide + b.ffn.max(b.attended())) + products + packed
}

/// The vision tower's own buffers on `n` patches: `vision::VisionBuffers`.
fn vision_buffers(s: &Shapes, n: u64, backward: bool) -> u64 {
    let Some(v) = &s.vision else { return 0 };
    let units = n / v.merge.max(1);
    let forward = n * (v.patch + 2 * v.blocks.width) + v.mergers * units * (2 * v.merged + 2 * v.out);
    forward + if backward { n * v.blocks.width + 2 * units * v.merged } else { 0 }
}

/// Head rows `m`: normed states and one chunk of logits and probabilities.
fn head(s: &Shapes, m: u64, backward: bool) -> u64 {
    let chunk = (LOGITS / s.vocab.max(1)).max(LEAST_LOGIT_ROWS).min(m.max(1));
    let states = if backward { 4 } else { 2 };
    // The gradient product packs a chunk's states once more.
    let packed = if backward { padded(s.text.width) * chunk.min(DEPTH) } else { 0 };
    m * s.text.width * states + 2 * chunk * s.vocab + packed
}

/// One thread's workspace for a training pass, elements.
fn training_workspace(s: &Shapes, d: &Demand) -> u64 {
    let (n, patches) = d.batch(d.prompt.longest_tokens + d.branch_rows());
    let stream = 2 * n * s.text.width;
    // Only the last row of a prompt predicts something, and every row of a response.
    let head_rows = n - d.prompt.longest_tokens.min(n) + 1;
    let text = kept(&s.text, n, true, d.checkpointing) + stream + head(s, head_rows, true);
    let tower = d.vision_trained;
    let vision = s.vision.map_or(0, |v| kept(&v.blocks, patches, tower, d.checkpointing));
    let scratches = s.vision.map_or(0, |v| scratch(&v.blocks, patches, tower)).max(scratch(&s.text, n, true));
    text + vision + vision_buffers(s, patches, tower) + scratches
}

/// One thread's workspace for a pass without gradients, elements.
fn scoring_workspace(s: &Shapes, d: &Demand, pack_rows: u64, head_rows: u64) -> u64 {
    let (n, patches) = d.batch(pack_rows);
    let one = |b: &Blocks, n: u64| passing(b, n) + scratch(b, n, false);
    let text = one(&s.text, n) + n * s.text.width + head(s, head_rows, false);
    text + s.vision.map_or(0, |v| one(&v.blocks, patches)) + vision_buffers(s, patches, false)
}

/// Encoded images of `prompts` prompts in all their views, bytes: pixels as patches.
fn encoded(s: &Shapes, d: &Demand, prompts: u64) -> u64 {
    let patch = s.vision.map_or(0, |v| v.patch);
    let usual = prompts.saturating_sub(1) * d.prompt.usual_patches + d.prompt.longest_patches;
    usual * patch * F32 * d.views.max(1) + prompts * d.views.max(1) * d.prompt.longest_tokens * 24
}

/// Keys and values of one lease batch, bytes: a prefix a (prompt, view), and each sample's own tokens.
fn kv(s: &Shapes, d: &Demand) -> u64 {
    let b = &s.text;
    let prefix = padded(d.prompt.longest_tokens) * b.head_dim + padded(b.head_dim) * d.prompt.longest_tokens;
    let own = padded(d.max_new_tokens.saturating_sub(1).max(1)) * (b.head_dim + padded(b.head_dim));
    let rows = d.prompts_per_lease * d.most_samples;
    F32 * b.count * b.kv_heads * (d.prompts_per_lease * d.views.max(1) * prefix + rows * own)
}

/// What every process needs before it has a model.
fn base(s: &Shapes) -> u64 {
    BASE + s.vocab * TOKEN
}

/// The coordinator: data sets, published versions and the one being uploaded; never the model itself.
pub fn coordinator(s: &Shapes, d: &Demand) -> Footprint {
    // What does not learn is streamed from the model's files and never held.
    let held = if d.wire_bytes() > SPILLED { 0 } else { (VERSIONS + 1) * d.wire_bytes() };
    Footprint { weights: held, data: d.data_bytes + 2 * d.samples(), base: base(s), ..Footprint::default() }
}

/// One rollout worker.
pub fn worker(s: &Shapes, d: &Demand) -> Footprint {
    let prefill = scoring_workspace(s, d, d.prompt.longest_tokens, 1);
    let rows = d.prompts_per_lease * d.most_samples;
    let b = &s.text;
    let share = rows.div_ceil(d.worker_threads.max(1));
    let decode = rows * (2 * b.width + b.qkv() + b.attended() + b.up + b.ffn);
    Footprint {
        weights: versions(d.trainable) * d.trainable_bytes(),
        panels: d.all_panels(),
        frozen: d.frozen_bytes,
        kv: kv(s, d),
        activations: F32 * (d.worker_threads * (prefill + head(s, share, false)) + decode),
        data: encoded(s, d, d.prompts_per_lease) + d.data_bytes.min(WORKER_CACHE),
        base: base(s),
        ..Footprint::default()
    }
}

/// The learner.
pub fn learner(s: &Shapes, d: &Demand) -> Footprint {
    // A lane without a pack is never touched.
    let lanes = d.lanes.min(d.prompts_per_step.div_ceil(d.gradient_batches.max(1)) * d.views.max(1)).max(1);
    let busy = d.learner_threads.min(lanes).max(1);
    let rows = d.prompt.longest_tokens + d.branch_rows();
    let scored = d.reference || (d.gradient_batches > 1 && !d.supervised);
    let scoring = if scored { scoring_workspace(s, d, rows, d.branch_rows().max(ROWS)) } else { 0 };
    // Workspaces are shared: a thread that scored uses the same one to train. More threads score than there are lanes.
    let idle = if scored { d.learner_threads - busy.min(d.learner_threads) } else { 0 };
    Footprint {
        weights: d.trainable_bytes(),
        panels: d.all_panels(),
        frozen: d.frozen_bytes,
        gradients: lanes * d.trainable_bytes(),
        optimizer: 2 * d.trainable_bytes(),
        reference: if d.reference { d.trainable_bytes() } else { 0 },
        activations: F32 * (busy * training_workspace(s, d).max(scoring) + idle * scoring),
        data: encoded(s, d, d.prompts_per_step) + d.data_bytes.min(LEARNER_CACHE) + 4 * d.samples(),
        base: base(s),
        ..Footprint::default()
    }
}
