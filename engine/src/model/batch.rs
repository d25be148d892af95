//! Rows of several packs as one ragged batch: which token sits where, what it may see, which rows predict which tokens.

use super::plan::Plan;
use crate::error::EngineError;
use crate::kernels::packs::{PackRows, Run};
use crate::rope_table::RopeTable;
use quorum_model::{EncodedImage, EncodedPrompt};

/// A token to be scored: `completions[completion][at]` of a pack, predicted by some row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub pack: usize,
    pub completion: usize,
    pub at: usize,
    pub token: u32,
}

/// A row whose logits are needed, with the range of its targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadRow {
    pub row: usize,
    pub targets: std::ops::Range<usize>,
}

/// A ragged batch. Packs lie one after another: prefix rows, then those rows of each completion that predict something.
#[derive(Default)]
pub struct Batch<'a> {
    pub ids: Vec<u32>,
    pub packs: Vec<PackRows>,
    /// Rotary tables \[rows, head_dim / 2\].
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    pub images: Vec<&'a EncodedImage>,
    /// Rows whose embedding is a merged vision token, in order.
    pub image_rows: Vec<usize>,
    pub head_rows: Vec<HeadRow>,
    pub targets: Vec<Target>,
}

impl<'a> Batch<'a> {
    /// Adds one pack; `completions` may be empty (prefill).
    pub fn push(&mut self, plan: &Plan, rope: &RopeTable, prompt: &'a EncodedPrompt, completions: &[&[u32]]) {
        let pack = self.packs.len();
        let prefix = Run { start: self.ids.len(), len: prompt.ids.len() };
        for (i, &id) in prompt.ids.iter().enumerate() {
            if plan.vision.is_some() && Some(id) == plan.config.image_token_id {
                self.image_rows.push(self.ids.len());
            }
            let p = [prompt.positions[0][i], prompt.positions[1][i], prompt.positions[2][i]];
            self.row(rope, id, p);
        }
        self.images.extend(&prompt.images);
        let mut branches = Vec::new();
        let first = self.targets.len();
        for (c, tokens) in completions.iter().enumerate() {
            self.targets.extend(tokens.first().map(|&token| Target { pack, completion: c, at: 0, token }));
        }
        if self.targets.len() > first {
            self.head_rows.push(HeadRow { row: prefix.start + prefix.len - 1, targets: first..self.targets.len() });
        }
        for (c, tokens) in completions.iter().enumerate() {
            let start = self.ids.len();
            for (t, pair) in tokens.windows(2).enumerate() {
                let n = self.targets.len();
                self.targets.push(Target { pack, completion: c, at: t + 1, token: pair[1] });
                self.head_rows.push(HeadRow { row: self.ids.len(), targets: n..n + 1 });
                self.row(rope, pair[0], [prompt.next_position + t as i32; 3]);
            }
            if self.ids.len() > start {
                branches.push(Run { start, len: self.ids.len() - start });
            }
        }
        self.packs.push(PackRows { prefix: Some(prefix), branches });
    }

    fn row(&mut self, rope: &RopeTable, id: u32, position: [i32; 3]) {
        self.ids.push(id);
        rope.extend(position, &mut self.cos, &mut self.sin);
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }
}

/// Rows that a pack will occupy.
pub fn pack_len(prompt: &EncodedPrompt, completions: &[&[u32]]) -> usize {
    prompt.ids.len() + completions.iter().map(|c| c.len().saturating_sub(1)).sum::<usize>()
}

/// Largest position a pack of completions of `longest` tokens reaches, or what is wrong with the prompt.
pub fn check_prompt(plan: &Plan, prompt: &EncodedPrompt, longest: usize) -> Result<i32, EngineError> {
    let bad = |m: String| Err(EngineError::Request(m));
    let n = prompt.ids.len();
    if n == 0 {
        return bad("the prompt has no tokens; it needs at least one to predict from".into());
    }
    if prompt.positions.iter().any(|p| p.len() != n) {
        return bad(format!("the prompt has {n} tokens but {} positions", prompt.positions[0].len()));
    }
    let vocab = plan.config.text.vocab_size;
    if let Some(id) = prompt.ids.iter().find(|&&id| id as usize >= vocab) {
        return bad(format!("prompt token {id} is outside the vocabulary of {vocab}; use this model's tokenizer"));
    }
    let pads = prompt.ids.iter().filter(|&&id| Some(id) == plan.config.image_token_id).count();
    match &plan.vision {
        None if !prompt.images.is_empty() => {
            return bad("the prompt has images but the model has no vision tower".into());
        }
        None => {}
        Some(v) => {
            let unit = v.config.spatial_merge_size * v.config.spatial_merge_size;
            let tokens: usize = prompt
                .images
                .iter()
                .map(|i| i.grid[0].saturating_mul(i.grid[1]).saturating_mul(i.grid[2]) / unit)
                .sum();
            if tokens != pads {
                return bad(format!(
                    "the prompt holds {pads} image tokens but its images give {tokens}; encode both with this model's processor"
                ));
            }
        }
    }
    let last = i64::from(prompt.next_position) + longest as i64;
    let highest = prompt.positions.iter().flatten().copied().fold(0, i32::max);
    let lowest = prompt.positions.iter().flatten().copied().fold(prompt.next_position, i32::min);
    let limit = plan.config.text.max_positions as i64;
    if lowest < 0 || last > limit || i64::from(highest) > limit {
        return bad(format!(
            "positions {lowest}..{} leave the model's 0..{limit}; shorten the prompt or the response",
            last.max(i64::from(highest))
        ));
    }
    Ok((last as i32).max(highest))
}
