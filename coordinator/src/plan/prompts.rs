//! Tokens and image tokens of the real prompts, over all training records or an even sample of them.

use super::memory::PromptSize;
use crate::lengths::{Followed, Length, Ruler};
use quorum_core::config::RunConfig;
use quorum_data::Dataset;
use quorum_model::Processor;
use serde::Serialize;

/// Records listed by name.
const LISTED: usize = 5;

/// How a quantity is spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    pub min: u64,
    pub median: u64,
    pub p95: u64,
    pub max: u64,
}

impl Spread {
    /// Of some values; nearest rank. All 0 without any.
    pub fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let at = |q: f64| {
            let rank = ((values.len() as f64 * q).ceil() as usize).max(1);
            values.get(rank - 1).copied().unwrap_or(0)
        };
        Self { min: at(0.0), median: at(0.5), p95: at(0.95), max: at(1.0) }
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prompts {
    /// Training records, and how many of them were measured.
    pub records: u64,
    pub measured: u64,
    pub tokens: Spread,
    pub image_tokens: Spread,
    pub patches: Spread,
    /// Positions the model has.
    pub positions: u64,
    /// Records a run will set aside: those that could not be read, and measured ones that the model cannot take.
    pub set_aside: u64,
    /// The first of them: file, row, reason.
    pub first: Vec<String>,
}

impl Prompts {
    /// What memory depends on.
    pub fn size(&self) -> PromptSize {
        PromptSize {
            longest_tokens: self.tokens.max,
            usual_tokens: self.tokens.median,
            longest_patches: self.patches.max,
            usual_patches: self.patches.median,
        }
    }
}

/// Measures at most `sample` records, evenly spaced; 0 = all.
pub fn measure(config: &RunConfig, processor: &Processor, data: &Dataset, sample: usize) -> Prompts {
    let ruler = Ruler::new(config, processor);
    let n = data.len();
    let take = if sample == 0 { n } else { sample.min(n) };
    let indices: Vec<usize> = (0..take).map(|i| i * n / take.max(1)).collect();
    let lengths = ruler.lengths(data, &indices, Followed::of_training(config));
    let mut first: Vec<String> = data.set_aside().iter().take(LISTED).map(ToString::to_string).collect();
    let mut aside = data.set_aside_count();
    let mut good: Vec<Length> = Vec::with_capacity(lengths.len());
    for (&i, length) in indices.iter().zip(lengths) {
        let fault = match length {
            Ok(length) => ruler.too_long(&length).or_else(|| {
                good.push(length);
                None
            }),
            Err(reason) => Some(reason),
        };
        if let Some(reason) = fault {
            aside += 1;
            let row = data.get(i).map_or(0, |r| r.row);
            first.push(format!("{}, row {row}: {reason}", data.path().display()));
        }
    }
    first.truncate(LISTED);
    let spread = |of: fn(&Length) -> usize| Spread::of(good.iter().map(|l| of(l) as u64).collect());
    Prompts {
        records: n as u64,
        measured: indices.len() as u64,
        tokens: spread(|l| l.prompt.tokens),
        image_tokens: spread(|l| l.prompt.image_tokens),
        patches: spread(|l| l.prompt.patches),
        positions: processor.max_positions() as u64,
        set_aside: aside,
        first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_nearest_ranks() {
        let s = Spread::of((1..=100).rev().collect());
        assert_eq!(s, Spread { min: 1, median: 50, p95: 95, max: 100 });
        assert_eq!(Spread::of(vec![7]), Spread { min: 7, median: 7, p95: 7, max: 7 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
