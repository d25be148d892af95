//! The candle model as a whole: features, logits, scores of packs, gradients. See the module's introduction for what it is for.

use super::decoder::{self, Sequence};
use super::error::CandleError;
use super::policy::Allowed;
use super::vision;
use super::weights::Weights;
use crate::types::{Pack, PackScores, PolicyDist};
use candle_core::{DType, Device, Tensor};
use quorum_model::{EncodedImage, EncodedPrompt, Layout, ModelConfig};
use std::sync::Arc;

/// Qwen2.5-VL or text-only Qwen2 with its own copy of the weights on one device.
pub struct CandleModel {
    config: ModelConfig,
    weights: Weights,
    device: Device,
    dtype: DType,
}

impl CandleModel {
    /// A model in f32 from a slab; fails if slab, layout and configuration do not belong together.
    pub fn new(config: &ModelConfig, layout: Arc<Layout>, slab: &[f32], device: &Device) -> Result<Self, CandleError> {
        Self::with_dtype(config, layout, slab, device, DType::F32)
    }

    /// The same in another floating-point type; f64 serves finite differences.
    pub fn with_dtype(
        config: &ModelConfig,
        layout: Arc<Layout>,
        slab: &[f32],
        device: &Device,
        dtype: DType,
    ) -> Result<Self, CandleError> {
        let weights = Weights::new(config, layout, slab, device, dtype)?;
        Ok(Self { config: config.clone(), weights, device: device.clone(), dtype })
    }

    /// Features of one image, a row a merge unit in raster order: `[t·h·w / merge², out_hidden]`.
    pub fn vision(&self, image: &EncodedImage) -> Result<Tensor, CandleError> {
        let config = self.config.vision.as_ref();
        let config =
            config.ok_or_else(|| CandleError::request("this model has no vision tower; leave the images out"))?;
        vision::encode(config, &self.weights, image, &self.device, self.dtype)
    }

    /// Logits of every prompt position: `[n, vocab]`.
    pub fn logits(&self, prompt: &EncodedPrompt) -> Result<Tensor, CandleError> {
        decoder::head(&self.config, &self.weights, &self.hidden(prompt, &[])?)
    }

    /// Log-prob (nats) of each token of a non-empty completion, attached to the graph: `[completion]`.
    pub fn log_probs(
        &self,
        prompt: &EncodedPrompt,
        completion: &[u32],
        policy: &PolicyDist,
    ) -> Result<Tensor, CandleError> {
        self.distribution(prompt, completion, policy)?.pick(completion, &self.device)
    }

    /// Log-probs and entropies of a pack's completions.
    pub fn score(&self, pack: &Pack, policy: &PolicyDist) -> Result<PackScores, CandleError> {
        let mut scores = PackScores::default();
        for &completion in &pack.completions {
            if completion.is_empty() {
                scores.logprobs.push(Vec::new());
                scores.entropy.push(Vec::new());
                continue;
            }
            let distribution = self.distribution(pack.prompt, completion, policy)?;
            scores.logprobs.push(to_f32(&distribution.pick(completion, &self.device)?)?);
            scores.entropy.push(to_f32(&distribution.entropy()?)?);
        }
        Ok(scores)
    }

    /// Gradient of `Σ dlogp · logp` over a pack, a slab in layout order. `dlogp` has the shape of the log-probs.
    pub fn gradient(&self, pack: &Pack, policy: &PolicyDist, dlogp: &[Vec<f32>]) -> Result<Vec<f32>, CandleError> {
        let fits = dlogp.len() == pack.completions.len()
            && dlogp.iter().zip(&pack.completions).all(|(d, c)| d.len() == c.len());
        if !fits {
            return Err(CandleError::request("dlogp must have one value for each completion token"));
        }
        let mut slab = vec![0.0; self.weights.len()];
        for (&completion, dlogp) in pack.completions.iter().zip(dlogp).filter(|(c, _)| !c.is_empty()) {
            let log_probs = self.log_probs(pack.prompt, completion, policy)?;
            let factors = Tensor::from_slice(dlogp, dlogp.len(), &self.device)?.to_dtype(self.dtype)?;
            let loss = (log_probs * factors)?.sum_all()?;
            self.weights.add_gradients(&loss.backward()?, &mut slab)?;
        }
        Ok(slab)
    }

    /// The policy at the rows that predict the completion's tokens.
    fn distribution(
        &self,
        prompt: &EncodedPrompt,
        completion: &[u32],
        policy: &PolicyDist,
    ) -> Result<Allowed, CandleError> {
        if completion.is_empty() {
            return Err(CandleError::request("an empty completion has no log-probs"));
        }
        let hidden = self.hidden(prompt, completion)?.narrow(0, prompt.ids.len() - 1, completion.len())?;
        Allowed::new(&decoder::head(&self.config, &self.weights, &hidden)?, policy, &self.device)
    }

    /// Final hidden states of prompt + completion as one sequence, images encoded anew.
    fn hidden(&self, prompt: &EncodedPrompt, completion: &[u32]) -> Result<Tensor, CandleError> {
        let sequence = self.sequence(prompt, completion)?;
        let features = prompt.images.iter().map(|image| self.vision(image)).collect::<Result<Vec<_>, _>>()?;
        let features = if features.is_empty() { None } else { Some(Tensor::cat(&features, 0)?) };
        decoder::hidden(&self.config.text, &self.weights, &sequence, features.as_ref(), &self.device, self.dtype)
    }

    /// Positions go on from the prompt's, the same on all axes; image tokens count in the prompt only.
    fn sequence(&self, prompt: &EncodedPrompt, completion: &[u32]) -> Result<Sequence, CandleError> {
        let n = prompt.ids.len();
        if n == 0 || prompt.positions.iter().any(|axis| axis.len() != n) {
            return Err(CandleError::request("the prompt is empty or its positions do not match its tokens"));
        }
        let ids: Vec<u32> = prompt.ids.iter().chain(completion).copied().collect();
        let vocab = self.config.text.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(CandleError::request(format!("token {id} is outside the vocabulary of {vocab}")));
        }
        let next = prompt.next_position;
        let more = next..next + completion.len() as i32;
        let positions = prompt.positions.each_ref().map(|axis| axis.iter().copied().chain(more.clone()).collect());
        let is_image = |id: u32| self.config.image_token_id == Some(id) && self.config.vision.is_some();
        let image_rows = (0..n).filter(|&row| is_image(prompt.ids[row])).collect();
        Ok(Sequence { ids, positions, image_rows })
    }
}

fn to_f32(x: &Tensor) -> Result<Vec<f32>, CandleError> {
    Ok(x.to_dtype(DType::F32)?.to_vec1()?)
}
