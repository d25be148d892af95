//! How long prompts will be, from text and image sizes alone, and which records a model cannot take: found before a run starts, not in its middle.

use quorum_core::config::{ObjectiveKind, RunConfig};
use quorum_data::{Dataset, Limits, Record};
use quorum_model::{Processor, PromptLength};

/// What a record's prompt is followed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// A response of up to `rollout.max_new_tokens`.
    Sampled,
    /// Its own response, and the stop token.
    Given,
}

impl Followed {
    /// By the training objective.
    pub fn of_training(config: &RunConfig) -> Self {
        match config.objective.kind {
            ObjectiveKind::Sft => Self::Given,
            ObjectiveKind::Grpo => Self::Sampled,
        }
    }
}

/// Measures prompts under one configuration and model.
pub struct Ruler<'a> {
    config: &'a RunConfig,
    processor: &'a Processor,
    limits: Limits,
}

/// A measured record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    pub prompt: PromptLength,
    /// Tokens that follow it, at most.
    pub response: usize,
}

impl<'a> Ruler<'a> {
    pub fn new(config: &'a RunConfig, processor: &'a Processor) -> Self {
        let limits = Limits { max_pixels: config.data.max_image_pixels, max_bytes: config.data.max_image_bytes };
        Self { config, processor, limits }
    }

    /// Length of one record's prompt and response.
    ///
    /// # Errors
    /// Why the record cannot be encoded.
    pub fn length(&self, record: &Record, followed: Followed) -> Result<Length, String> {
        let size = |image: &quorum_data::ImageBytes| quorum_data::decode::dimensions(&image.bytes, &self.limits);
        let sizes = record.images.iter().map(size).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
        let text = quorum_data::prompt(&record.question, &self.config.data.suffix);
        let prompt = self.processor.prompt_length(&text, &sizes).map_err(|e| e.to_string())?;
        let response = match (followed, &record.response) {
            (Followed::Given, Some(text)) => self.processor.encode_text(text).map_err(|e| e.to_string())?.len() + 1,
            _ => self.config.rollout.max_new_tokens as usize,
        };
        Ok(Length { prompt, response })
    }

    /// Why a record of this length cannot be used, if so.
    pub fn too_long(&self, length: &Length) -> Option<String> {
        let (prompt, response, positions) = (length.prompt.tokens, length.response, self.processor.max_positions());
        let limit = self.config.rollout.max_prompt_tokens as usize;
        if limit > 0 && prompt > limit {
            return Some(format!("the prompt has {prompt} tokens, more than rollout.max_prompt_tokens = {limit}"));
        }
        (prompt + response > positions).then(|| {
            format!("the prompt has {prompt} tokens, the response up to {response}; together they pass the model's {positions} positions")
        })
    }

    /// Lengths of the records at `indices`, by all cores, in order.
    pub fn lengths(&self, data: &Dataset, indices: &[usize], followed: Followed) -> Vec<Result<Length, String>> {
        let one = |&i: &usize| match data.get(i) {
            Some(record) => self.length(record, followed),
            None => Err("there is no such record".to_owned()),
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = indices.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let parts: Vec<_> = indices
                .chunks(share)
                .map(|part| (part.len(), scope.spawn(move || part.iter().map(one).collect::<Vec<_>>())))
                .collect();
            let failed = || Err("measuring this part of the data ended abnormally".to_owned());
            parts.into_iter().flat_map(|(n, part)| part.join().unwrap_or_else(|_| vec![failed(); n])).collect()
        })
    }

    /// Sets aside every record that cannot be encoded or is too long for the model.
    pub fn narrow(&self, data: &mut Dataset, followed: Followed) {
        let all: Vec<usize> = (0..data.len()).collect();
        let mut lengths = self.lengths(data, &all, followed).into_iter();
        data.set_aside_where(|_| match lengths.next()? {
            Ok(length) => self.too_long(&length),
            Err(reason) => Some(reason),
        });
    }
}
