//! From leased prompts to groups: decode images → views → encode → one engine batch → answers → vote → rewards. Synchronous and without I/O.

use crate::metrics;
use quorum_core::answer::extract;
use quorum_core::client::Weights;
use quorum_core::config::RunConfig;
use quorum_core::types::{Completion, Group, Purpose, SampleKey, Sampling};
use quorum_core::{reward, seed, vote, wire};
use quorum_data::view::{self, ViewConfig};
use quorum_data::{Limits, decode};
use quorum_engine::{Engine, EngineError, GenRequest, PolicyDist, Sample};
use quorum_model::{Checkpoint, EncodedPrompt};
use quorum_proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One leased prompt with its images' encoded bytes.
#[derive(Debug, Clone)]
pub struct Work {
    pub grant: v1::LeaseGrant,
    pub images: Vec<Arc<[u8]>>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Group(v1::GroupMsg),
    /// Why this prompt cannot be answered.
    Failure(String),
    /// The batch was cancelled before it was done.
    Cancelled,
}

/// A lease read, its images decoded, augmented and encoded.
struct Prepared {
    purpose: Purpose,
    sampling: Sampling,
    /// Encoded prompt and sample indices of each view, by view.
    views: BTreeMap<u32, (EncodedPrompt, Vec<u32>)>,
}

/// Engine, model and settings of one run.
pub struct Generator {
    engine: Engine,
    checkpoint: Arc<Checkpoint>,
    config: Arc<RunConfig>,
    forbidden: Vec<u32>,
    stop: Vec<u32>,
}

impl Generator {
    /// A generator on an engine of the run's model.
    pub fn new(checkpoint: Arc<Checkpoint>, config: Arc<RunConfig>, engine: Engine) -> Self {
        let (forbidden, stop) = (checkpoint.processor.forbidden_tokens(), checkpoint.processor.stop_tokens().to_vec());
        Self { engine, checkpoint, config, forbidden, stop }
    }

    /// One answer a lease, in order. A prompt that breaks the batch is found by running the prompts one by one.
    pub fn answer(&self, weights: &Weights, work: &[Work], cancel: &(dyn Fn() -> bool + Sync)) -> Vec<Answer> {
        let prepared: Vec<Result<Prepared, String>> = work.iter().map(|w| self.prepare(w)).collect();
        let good: Vec<&Prepared> = prepared.iter().filter_map(|p| p.as_ref().ok()).collect();
        let mut results = match self.generate(weights, work, &prepared, cancel) {
            Ok(groups) => groups.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(EngineError::Cancelled) => vec![Err(EngineError::Cancelled); good.len()],
            Err(error) if good.len() == 1 => vec![Err(error)],
            Err(_) => self.one_by_one(weights, work, &prepared, cancel),
        }
        .into_iter();
        let finish = |(work, prepared): (&Work, &Result<Prepared, String>)| match prepared {
            Err(reason) => Answer::Failure(reason.clone()),
            Ok(prepared) => match results.next() {
                Some(Ok(samples)) => {
                    self.group(&work.grant, prepared, samples).map_or_else(Answer::Failure, Answer::Group)
                }
                Some(Err(EngineError::Cancelled)) | None => Answer::Cancelled,
                Some(Err(error)) => Answer::Failure(error.to_string()),
            },
        };
        work.iter().zip(&prepared).map(finish).collect()
    }

    fn one_by_one(
        &self,
        weights: &Weights,
        work: &[Work],
        prepared: &[Result<Prepared, String>],
        cancel: &(dyn Fn() -> bool + Sync),
    ) -> Vec<Result<Vec<Sample>, EngineError>> {
        let single = |i: usize| {
            self.generate(weights, &work[i..=i], &prepared[i..=i], cancel).map(|mut g| g.pop().unwrap_or_default())
        };
        (0..work.len()).filter(|&i| prepared[i].is_ok()).map(single).collect()
    }

    /// Samples of each usable prompt, views ascending, samples ascending inside a view.
    fn generate(
        &self,
        weights: &Weights,
        work: &[Work],
        prepared: &[Result<Prepared, String>],
        cancel: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Vec<Sample>>, EngineError> {
        let mut requests = Vec::new();
        let mut views = Vec::new();
        for (work, prepared) in work.iter().zip(prepared) {
            let Ok(prepared) = prepared else { continue };
            requests.extend(self.requests(&work.grant, prepared));
            views.push(prepared.views.len());
        }
        let mut samples = self.engine.generate(&weights.slab, &requests, cancel)?.into_iter();
        metrics::prefilled(requests.iter().map(|r| r.prompt.ids.len()).sum());
        Ok(views.into_iter().map(|n| samples.by_ref().take(n).flatten().collect()).collect())
    }

    fn requests<'a>(
        &'a self,
        grant: &'a v1::LeaseGrant,
        prepared: &'a Prepared,
    ) -> impl Iterator<Item = GenRequest<'a>> {
        let row = grant.prompt.as_ref().map_or(0, |p| p.row);
        prepared.views.iter().map(move |(&view, (prompt, samples))| {
            let key = |&sample: &u32| SampleKey {
                seed: grant.seed,
                purpose: prepared.purpose,
                step: grant.step,
                prompt: row,
                sample,
                view,
            };
            GenRequest {
                prompt,
                samples: samples.iter().map(key).collect(),
                sampling: prepared.sampling,
                policy: PolicyDist {
                    temperature: prepared.sampling.temperature,
                    forbidden: self.forbidden.clone(),
                    stop: self.stop.clone(),
                },
            }
        })
    }

    fn prepare(&self, work: &Work) -> Result<Prepared, String> {
        let grant = &work.grant;
        let purpose = wire::purpose(grant.purpose).map_err(|e| e.to_string())?;
        let prompt = grant.prompt.as_ref().ok_or("the lease has no prompt")?;
        let sampling: Sampling = grant.sampling.ok_or("the lease has no sampling settings")?.into();
        let data = &self.config.data;
        let limits = Limits { max_pixels: data.max_image_pixels, max_bytes: data.max_image_bytes };
        let images = work
            .images
            .iter()
            .map(|bytes| decode(bytes, &limits))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())?;
        let settings = ViewConfig::from(&self.config.view);
        let seed = view::seed_of(seed::views_of_step(grant.seed, grant.step), prompt.row);
        let mut views: BTreeMap<u32, (EncodedPrompt, Vec<u32>)> = BTreeMap::new();
        for spec in &grant.samples {
            if let Some((_, samples)) = views.get_mut(&spec.view) {
                samples.push(spec.sample);
                continue;
            }
            let seen: Vec<_> = images.iter().map(|image| view::apply(image, spec.view, &settings, seed)).collect();
            let encoded = self.checkpoint.processor.encode_prompt(&prompt.text, &seen).map_err(|e| e.to_string())?;
            views.insert(spec.view, (encoded, vec![spec.sample]));
        }
        Ok(Prepared { purpose, sampling, views })
    }

    /// Completions in sample order with their vote and rewards.
    fn group(&self, grant: &v1::LeaseGrant, prepared: &Prepared, samples: Vec<Sample>) -> Result<v1::GroupMsg, String> {
        let keys =
            prepared.views.iter().flat_map(|(&view, (_, samples))| samples.iter().map(move |&sample| (sample, view)));
        let mut completions = Vec::with_capacity(samples.len());
        for ((sample, view), s) in keys.zip(samples) {
            let text = self.checkpoint.processor.decode(&s.tokens, true).map_err(|e| e.to_string())?;
            completions.push(Completion {
                sample,
                view,
                tokens: s.tokens,
                logprobs: s.logprobs,
                finish: s.finish,
                text,
            });
        }
        completions.sort_by_key(|c| c.sample);
        let answers: Vec<Option<String>> =
            completions.iter().map(|c| extract(&c.text, &self.config.vote.extract)).collect();
        let vote = vote::vote(&answers, &self.config.vote);
        // Labels and the coin of the control run are the coordinator's: it pays those rewards itself.
        let rewards =
            reward::rewards(&vote, &answers, self.config.rollout.reward, &self.config.vote, None, &mut |_| 1.0);
        let prompt = grant.prompt.as_ref().map_or(0, |p| p.row);
        let group =
            Group { step: grant.step, slot: grant.slot, prompt, version: grant.version, completions, vote, rewards };
        v1::GroupMsg::try_from(&group).map_err(|e| e.to_string())
    }
}
