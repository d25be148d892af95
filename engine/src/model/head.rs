//! The LM head and the policy distribution: final norm, logits in chunks of rows, log-probs, entropy, and their gradient.
//! One function for rollout, training forward and reference scoring.

use super::batch::{Batch, Target};
use super::plan::Plan;
use crate::error::EngineError;
use crate::kernels::gemm::{Scratch, grow};
use crate::kernels::softmax::{PolicyRow, policy_row, scale};
use crate::params::{Grads, Weights};
use crate::types::{PackScores, PolicyDist};

/// Logits held at once, in elements.
const CHUNK: usize = 1 << 23;

/// A [`PolicyDist`] checked against a vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub inverse_temperature: f32,
    /// Sorted, inside the vocabulary.
    pub forbidden: Vec<usize>,
}

impl Policy {
    /// A temperature that is negative or not a number, or a vocabulary all forbidden, is an error.
    pub fn new(dist: &PolicyDist, vocab: usize) -> Result<Self, EngineError> {
        let t = if dist.temperature == 0.0 { 1.0 } else { dist.temperature };
        if !(t > 0.0 && t.is_finite() && (1.0 / t).is_finite()) {
            return Err(EngineError::Request(format!(
                "temperature {} must be 0 or a positive number",
                dist.temperature
            )));
        }
        let mut forbidden: Vec<usize> = dist.forbidden.iter().map(|&f| f as usize).filter(|&f| f < vocab).collect();
        forbidden.sort_unstable();
        forbidden.dedup();
        if forbidden.len() == vocab {
            return Err(EngineError::Request("every token of the vocabulary is forbidden".into()));
        }
        Ok(Self { inverse_temperature: 1.0 / t, forbidden })
    }

    /// Whether the token has probability zero by rule.
    pub fn forbids(&self, token: u32) -> bool {
        self.forbidden.binary_search(&(token as usize)).is_ok()
    }
}

/// Buffers of the head.
#[derive(Default)]
pub struct HeadBuffers {
    x: Vec<f32>,
    stats: Vec<f32>,
    normed: Vec<f32>,
    /// Logits / temperature of the current chunk.
    pub z: Vec<f32>,
    /// exp(z − max) of the current chunk.
    pub p: Vec<f32>,
    pub rows: Vec<PolicyRow>,
    d_normed: Vec<f32>,
    dx: Vec<f32>,
}

impl Plan {
    /// Rows of one chunk.
    pub fn chunk(&self) -> usize {
        (CHUNK / self.head.n_out).max(12)
    }

    /// Copies rows of `x` and norms them.
    fn head_norm(&self, w: &Weights, x: &[f32], rows: impl ExactSizeIterator<Item = usize>, b: &mut HeadBuffers) {
        let (d, n) = (self.head.n_in, rows.len());
        grow(&mut b.x, n * d);
        for (i, row) in rows.enumerate() {
            b.x[i * d..(i + 1) * d].copy_from_slice(&x[row * d..(row + 1) * d]);
        }
        self.norm.forward(w, &b.x, n, &mut b.stats, &mut b.normed);
    }

    /// Policy rows of normed rows `from..to`, into `b.z`, `b.p` and `b.rows`.
    fn head_chunk(
        &self,
        w: &Weights,
        policy: &Policy,
        from: usize,
        to: usize,
        b: &mut HeadBuffers,
    ) -> Result<(), EngineError> {
        let (v, d, n) = (self.head.n_out, self.head.n_in, to - from);
        grow(&mut b.z, n * v);
        grow(&mut b.p, n * v);
        self.head.forward(w, &b.normed[from * d..to * d], n, &mut b.z);
        b.rows.clear();
        for (z, p) in b.z.chunks_exact_mut(v).zip(b.p.chunks_exact_mut(v)).take(n) {
            let row = policy_row(z, p, policy.inverse_temperature, &policy.forbidden);
            b.rows.push(row.ok_or_else(|| EngineError::NotFinite("the logits".into()))?);
        }
        Ok(())
    }

    /// Policy of `n` rows of `x` (at most one chunk), for sampling: `b.z`, `b.p`, `b.rows`.
    pub fn policy_rows(
        &self,
        w: &Weights,
        x: &[f32],
        n: usize,
        policy: &Policy,
        b: &mut HeadBuffers,
    ) -> Result<(), EngineError> {
        self.head_norm(w, x, 0..n, b);
        self.head_chunk(w, policy, 0, n, b)
    }

    /// Plain logits of all `n` rows \[n, vocab\]; for inspection of short inputs.
    pub fn logits(&self, w: &Weights, x: &[f32], n: usize, b: &mut HeadBuffers) -> Vec<f32> {
        self.head_norm(w, x, 0..n, b);
        let mut out = vec![0.0; n * self.head.n_out];
        self.head.forward(w, &b.normed, n, &mut out);
        out
    }

    /// Log-probs and entropies of the batch's targets.
    pub fn head_scores(
        &self,
        w: &Weights,
        batch: &Batch,
        x: &[f32],
        policy: &Policy,
        scores: &mut [PackScores],
        b: &mut HeadBuffers,
    ) -> Result<(), EngineError> {
        self.head_norm(w, x, batch.head_rows.iter().map(|h| h.row), b);
        let (n, v) = (batch.head_rows.len(), self.head.n_out);
        for from in (0..n).step_by(self.chunk()) {
            let to = n.min(from + self.chunk());
            self.head_chunk(w, policy, from, to, b)?;
            for (i, head) in batch.head_rows[from..to].iter().enumerate() {
                let row = b.rows[i];
                for t in &batch.targets[head.targets.clone()] {
                    let s = &mut scores[t.pack];
                    s.logprobs[t.completion][t.at] = log_prob(b.z[i * v + t.token as usize], &row);
                    s.entropy[t.completion][t.at] = row.entropy;
                }
            }
        }
        Ok(())
    }

    /// Gradient of Σ g · logp into `dx` (rows of the batch; other rows are not touched) and the slab.
    /// `gradient(pack, completion, at)` is dL/dlogp. Follows [`Plan::head_scores`] of the same batch with the same buffers.
    pub fn head_backward(
        &self,
        w: &Weights,
        batch: &Batch,
        policy: &Policy,
        gradient: &[Vec<Vec<f32>>],
        dx: &mut [f32],
        grads: &mut Grads,
        b: &mut HeadBuffers,
        s: &mut Scratch,
    ) -> Result<(), EngineError> {
        let (n, v, d) = (batch.head_rows.len(), self.head.n_out, self.head.n_in);
        grow(&mut b.d_normed, n * d);
        for from in (0..n).step_by(self.chunk()) {
            let to = n.min(from + self.chunk());
            // A single chunk still holds its probabilities from the scoring pass.
            if n > self.chunk() {
                self.head_chunk(w, policy, from, to, b)?;
            }
            for (i, head) in batch.head_rows[from..to].iter().enumerate() {
                let targets = &batch.targets[head.targets.clone()];
                let p = &mut b.p[i * v..(i + 1) * v];
                let of = |t: &Target| gradient[t.pack][t.completion][t.at];
                let total: f32 = targets.iter().map(of).sum();
                scale(p, -total * policy.inverse_temperature / b.rows[i].sum);
                for t in targets {
                    p[t.token as usize] += of(t) * policy.inverse_temperature;
                }
            }
            let (dz, rows) = (&b.p[..(to - from) * v], to - from);
            self.head.backward_weights(w, &b.normed[from * d..to * d], dz, rows, grads, s);
            self.head.backward_input(w, dz, rows, &mut b.d_normed[from * d..to * d], s);
        }
        grow(&mut b.dx, n * d);
        b.dx[..n * d].fill(0.0);
        self.norm.backward(w, &b.x, n, &b.stats, &b.d_normed, &mut b.dx, grads);
        for (head, from) in batch.head_rows.iter().zip(b.dx.chunks_exact(d)) {
            dx[head.row * d..(head.row + 1) * d].copy_from_slice(from);
        }
        Ok(())
    }
}

/// log p of a token from its scaled logit.
pub fn log_prob(z: f32, row: &PolicyRow) -> f32 {
    z - row.max - row.ln_sum
}
