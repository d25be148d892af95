//! The LM head on the device: final norm, logits in chunks of rows, log-probs, entropy, and their gradient. `[tokens, vocab]` of a large
//! vocabulary never exists.

use super::model::Place;
use super::ops::{self, PolicyRows};
use super::rows::NEVER;
use super::store::Grads;
use crate::error::EngineError;
use crate::model::batch::{Batch, HeadRow};
use crate::model::head::Policy;
use crate::types::PackScores;
use candle_core::Tensor;

type Result<T> = std::result::Result<T, EngineError>;

/// Logits held at once, in elements.
const CHUNK: usize = 1 << 25;

/// A policy on the device.
pub struct DevicePolicy {
    bias: Option<Tensor>,
    inverse_temperature: f32,
}

/// Targets of some head rows: token ids `[rows, most]`.
struct Targets {
    index: Tensor,
    most: usize,
}

impl Place<'_> {
    /// The policy's forbidden tokens as a bias on the logits.
    pub fn policy(&self, policy: &Policy) -> Result<DevicePolicy> {
        let mut bias = None;
        if !policy.forbidden.is_empty() {
            let mut values = vec![0.0f32; self.plan.head.n_out];
            policy.forbidden.iter().for_each(|&token| values[token] = NEVER);
            bias = Some(Tensor::from_vec(values, self.plan.head.n_out, self.device)?);
        }
        Ok(DevicePolicy { bias, inverse_temperature: policy.inverse_temperature })
    }

    /// Rows of one chunk of logits.
    pub fn chunk(&self) -> usize {
        (CHUNK / self.plan.head.n_out).max(16)
    }

    /// Final norm of rows x.
    pub fn head_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.weights.norm(&self.plan.norm, x)
    }

    /// Policy rows of normed rows, at most one chunk.
    pub fn policy_rows(&self, normed: &Tensor, policy: &DevicePolicy) -> Result<PolicyRows> {
        let logits = self.weights.linear(&self.plan.head, normed)?;
        Ok(ops::policy_rows(&logits, policy.bias.as_ref(), policy.inverse_temperature)?)
    }

    fn targets(&self, batch: &Batch, heads: &[HeadRow]) -> Result<Targets> {
        let most = heads.iter().map(|h| h.targets.len()).max().unwrap_or(0).max(1);
        let mut index = vec![0u32; heads.len() * most];
        for (i, head) in heads.iter().enumerate() {
            for (j, t) in batch.targets[head.targets.clone()].iter().enumerate() {
                index[i * most + j] = t.token;
            }
        }
        Ok(Targets { index: Tensor::from_vec(index, (heads.len(), most), self.device)?, most })
    }

    /// Of rows x behind the last block those that predict something.
    pub fn predicting(&self, batch: &Batch, x: &Tensor) -> Result<Tensor> {
        let rows = self.ids(batch.head_rows.iter().map(|h| h.row as u32).collect())?;
        Ok(x.index_select(&rows, 0)?)
    }

    /// Log-probs and entropies of the batch's targets into `scores`, from the rows that predict them.
    pub fn head_scores(
        &self,
        batch: &Batch,
        predicting: &Tensor,
        policy: &DevicePolicy,
        scores: &mut [PackScores],
    ) -> Result<()> {
        let n = batch.head_rows.len();
        for from in (0..n).step_by(self.chunk()) {
            let heads = &batch.head_rows[from..n.min(from + self.chunk())];
            let normed = self.head_norm(&predicting.narrow(0, from, heads.len())?)?;
            let targets = self.targets(batch, heads)?;
            let p = self.policy_rows(&normed, policy)?;
            let picked = p.z.gather(&targets.index, 1)?.broadcast_sub(&p.max)?.broadcast_sub(&p.sum.log()?)?;
            let (picked, entropy) = (picked.to_vec2::<f32>()?, p.entropy.to_vec1::<f32>()?);
            for ((head, picked), entropy) in heads.iter().zip(&picked).zip(entropy) {
                let finite = entropy.is_finite() && picked.iter().all(|x| x.is_finite());
                if !finite {
                    return Err(EngineError::NotFinite("the logits".into()));
                }
                for (t, &logprob) in batch.targets[head.targets.clone()].iter().zip(picked) {
                    let s = &mut scores[t.pack];
                    s.logprobs[t.completion][t.at] = logprob;
                    s.entropy[t.completion][t.at] = entropy;
                }
            }
        }
        Ok(())
    }

    /// Gradient of Σ g · logp: of the rows behind the last block `[n, hidden]`, and of the head's and the norm's weights.
    pub fn head_backward(
        &self,
        batch: &Batch,
        predicting: &Tensor,
        policy: &DevicePolicy,
        gradient: &[Vec<Vec<f32>>],
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let n = batch.head_rows.len();
        let mut pieces = Vec::new();
        for from in (0..n).step_by(self.chunk()) {
            let heads = &batch.head_rows[from..n.min(from + self.chunk())];
            let x = predicting.narrow(0, from, heads.len())?;
            let normed = self.head_norm(&x)?;
            let targets = self.targets(batch, heads)?;
            let mut factor = vec![0.0f32; heads.len() * targets.most];
            for (i, head) in heads.iter().enumerate() {
                for (j, t) in batch.targets[head.targets.clone()].iter().enumerate() {
                    factor[i * targets.most + j] = gradient[t.pack][t.completion][t.at];
                }
            }
            let factor = Tensor::from_vec(factor, (heads.len(), targets.most), self.device)?;
            let p = self.policy_rows(&normed, policy)?;
            let total = factor.sum(1)?;
            let dz = ops::policy_backward(&p, &total, &targets.index, &factor, policy.inverse_temperature)?;
            drop(p);
            let dz = dz.to_dtype(self.dtype)?;
            self.weights.linear_weights(&self.plan.head, &normed, &dz, grads)?;
            let d_normed = self.weights.linear_input(&self.plan.head, &dz)?;
            pieces.push(self.weights.norm_backward(&self.plan.norm, &x, &d_normed, grads)?);
        }
        // Row → its place among the predicting rows; the row behind the last is zero.
        let mut place = vec![n as u32; batch.len()];
        batch.head_rows.iter().enumerate().for_each(|(i, head)| place[head.row] = i as u32);
        let hidden = self.plan.hidden();
        pieces.push(Tensor::zeros((1, hidden), self.dtype, self.device)?);
        Ok(Tensor::cat(&pieces, 0)?.index_select(&self.ids(place)?, 0)?)
    }
}
