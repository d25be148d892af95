//! The policy distribution over the vocabulary minus forbidden tokens: the forbidden columns are left out, not masked.

use super::error::CandleError;
use super::ops;
use crate::types::PolicyDist;
use candle_core::{D, Device, Tensor};

/// Log-probabilities `[n, allowed]` and, for each token id, its column (`None` = forbidden).
pub(super) struct Allowed {
    log_probs: Tensor,
    columns: Vec<Option<u32>>,
}

impl Allowed {
    /// Log-softmax of `logits` (`[n, vocab]`) / temperature over the allowed tokens.
    pub fn new(logits: &Tensor, policy: &PolicyDist, device: &Device) -> Result<Self, CandleError> {
        let vocab = logits.dim(D::Minus1)?;
        let mut permitted = vec![true; vocab];
        for &token in &policy.forbidden {
            if let Some(flag) = permitted.get_mut(token as usize) {
                *flag = false;
            }
        }
        let allowed: Vec<u32> = (0..vocab as u32).filter(|&token| permitted[token as usize]).collect();
        let mut columns = vec![None; vocab];
        for (column, &token) in allowed.iter().enumerate() {
            columns[token as usize] = Some(column as u32);
        }
        if allowed.is_empty() {
            return Err(CandleError::request("every token is forbidden"));
        }
        if !policy.temperature.is_finite() || policy.temperature < 0.0 {
            return Err(CandleError::request(format!("temperature {} is not a number from 0 up", policy.temperature)));
        }
        let temperature = if policy.temperature == 0.0 { 1.0 } else { f64::from(policy.temperature) };
        let count = allowed.len();
        let chosen = logits.index_select(&Tensor::from_vec(allowed, count, device)?, 1)?;
        Ok(Self { log_probs: ops::log_softmax(&(chosen / temperature)?)?, columns })
    }

    /// Log-prob of `tokens[i]` in row `i`: `[n]`.
    pub fn pick(&self, tokens: &[u32], device: &Device) -> Result<Tensor, CandleError> {
        let column = |&token: &u32| {
            let column = self.columns.get(token as usize).copied().flatten();
            column.ok_or_else(|| {
                CandleError::request(format!("completion token {token} is forbidden or outside the vocabulary"))
            })
        };
        let picked = tokens.iter().map(column).collect::<Result<Vec<u32>, _>>()?;
        Ok(self.log_probs.gather(&Tensor::from_vec(picked, (tokens.len(), 1), device)?, 1)?.squeeze(1)?)
    }

    /// Entropy (nats) of each row: `[n]`.
    pub fn entropy(&self) -> Result<Tensor, CandleError> {
        Ok((self.log_probs.exp()? * &self.log_probs)?.sum(D::Minus1)?.neg()?)
    }
}
