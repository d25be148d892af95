//! Held-out accuracy: grading one question, and the figures over all of them with their intervals. Pure.

use quorum_core::answer::{Notation, canonical_in};
use quorum_core::seed::Stream;
use quorum_core::types::{Finish, Group, Purpose};
use quorum_core::vote::{VoteRule, vote};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Bootstrap resamples of the intervals.
const RESAMPLES: u64 = 2000;

/// How one lease of one question went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// One entry a sample.
    pub correct: Vec<bool>,
    pub answers: Vec<Option<String>>,
    /// The majority answer as it was written; none for a tie or without answers.
    pub vote: Option<String>,
    /// A tie, or no answer at all, is wrong.
    pub vote_correct: bool,
    /// Samples that hit the length limit.
    pub truncated: u32,
    pub tokens: u64,
}

impl Outcome {
    /// Grades a group against the label. The vote of an evaluation needs no quorum and no band; a tie is wrong.
    pub fn grade(group: &Group, answers: Vec<Option<String>>, label: &str, notation: Notation) -> Self {
        let truth = canonical_in(label, notation);
        let key = |a: &Option<String>| a.as_deref().and_then(|a| canonical_in(a, notation));
        let rule = VoteRule { min_votes: 1, notation, ..VoteRule::default() };
        let record = vote(&answers, &rule);
        let winner = record.winner();
        Self {
            correct: answers.iter().map(|a| truth.is_some() && key(a) == truth).collect(),
            vote_correct: winner.is_some_and(|w| truth.as_ref().is_some_and(|t| t.as_str() == w.key)),
            vote: winner.map(|w| w.example.clone()),
            truncated: group.completions.iter().filter(|c| c.finish == Finish::Length).count() as u32,
            tokens: group.completions.iter().map(|c| c.tokens.len() as u64).sum(),
            answers,
        }
    }

    /// A question that could not be asked: wrong in every way.
    pub fn failed(samples: usize) -> Self {
        Self {
            correct: vec![false; samples],
            answers: vec![None; samples],
            vote: None,
            vote_correct: false,
            truncated: 0,
            tokens: 0,
        }
    }
}

/// Name of an evaluation purpose in the ledger and in files.
pub fn purpose_name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Train => "train",
        Purpose::EvalGreedy => "greedy",
        Purpose::EvalSampled => "sampled",
        Purpose::EvalCool => "cool",
    }
}

/// The purpose of a name in the ledger.
pub fn purpose_of(name: &str) -> Option<Purpose> {
    [Purpose::Train, Purpose::EvalGreedy, Purpose::EvalSampled, Purpose::EvalCool]
        .into_iter()
        .find(|p| purpose_name(*p) == name)
}

/// All that is known of one question under one version.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Question {
    pub row: u64,
    pub greedy: Option<Outcome>,
    pub sampled: Option<Outcome>,
    pub cool: Option<Outcome>,
}

/// Answers of one version, by slot.
#[derive(Debug, Clone, Default)]
pub struct Evaluation {
    questions: BTreeMap<u32, Question>,
    /// Kept once they are known: the intervals take thousands of resamples, and every look at the run asks for them.
    figures: OnceLock<Figures>,
}

/// The figures of one version; all are ratios in 0..=1, the intervals are 95 % bootstrap intervals over questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub greedy: f64,
    pub mean: f64,
    pub mean_t03: f64,
    pub vote: f64,
    pub n: u64,
    pub greedy_interval: [f64; 2],
    pub mean_interval: [f64; 2],
    pub mean_t03_interval: [f64; 2],
    pub vote_interval: [f64; 2],
    /// Share of sampled responses cut off by the length limit.
    pub truncated: f64,
}

/// A difference of two ratios, with its 95 % paired bootstrap interval over questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    pub change: f64,
    pub interval: [f64; 2],
}

/// What changed between two versions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gains {
    pub greedy: Gain,
    pub mean: Gain,
    pub mean_t03: Gain,
    pub vote: Gain,
}

impl Evaluation {
    /// Adds one graded lease.
    pub fn add(&mut self, slot: u32, row: u64, purpose: Purpose, outcome: Outcome) {
        self.figures.take();
        let q = self.questions.entry(slot).or_default();
        q.row = row;
        match purpose {
            Purpose::EvalGreedy => q.greedy = Some(outcome),
            Purpose::EvalSampled => q.sampled = Some(outcome),
            Purpose::EvalCool => q.cool = Some(outcome),
            Purpose::Train => {}
        }
    }

    /// Questions that have any answer.
    pub fn asked(&self) -> u32 {
        self.questions.len() as u32
    }

    /// The figures, once every question has all three answers.
    pub fn figures(&self, questions: u32) -> Option<Figures> {
        let complete = |q: &&Question| q.greedy.is_some() && q.sampled.is_some() && q.cool.is_some();
        if questions == 0 || self.questions.values().filter(complete).count() != questions as usize {
            return None;
        }
        Some(self.figures.get_or_init(|| self.compute()).clone())
    }

    fn compute(&self) -> Figures {
        let share = |o: &Option<Outcome>| {
            o.as_ref().map_or(0.0, |o| ratio(o.correct.iter().filter(|c| **c).count(), o.correct.len()))
        };
        let of = |f: &dyn Fn(&Question) -> f64| self.questions.values().map(f).collect::<Vec<f64>>();
        let greedy = of(&|q| share(&q.greedy));
        let mean = of(&|q| share(&q.sampled));
        let cool = of(&|q| share(&q.cool));
        let vote = of(&|q| f64::from(u8::from(q.sampled.as_ref().is_some_and(|o| o.vote_correct))));
        let truncated = of(&|q| q.sampled.as_ref().map_or(0.0, |o| ratio(o.truncated as usize, o.correct.len())));
        Figures {
            greedy: average(&greedy),
            mean: average(&mean),
            mean_t03: average(&cool),
            vote: average(&vote),
            n: greedy.len() as u64,
            greedy_interval: bootstrap(&greedy),
            mean_interval: bootstrap(&mean),
            mean_t03_interval: bootstrap(&cool),
            vote_interval: bootstrap(&vote),
            truncated: average(&truncated),
        }
    }

    /// How much better `after` is, over the questions both have. None unless both are complete.
    pub fn gain(&self, after: &Evaluation) -> Option<Gains> {
        let share =
            |o: &Option<Outcome>| o.as_ref().map(|o| ratio(o.correct.iter().filter(|c| **c).count(), o.correct.len()));
        let vote = |q: &Question| q.sampled.as_ref().map(|o| f64::from(u8::from(o.vote_correct)));
        let of = |f: &dyn Fn(&Question) -> Option<f64>| {
            let pairs = self.questions.iter().filter_map(|(slot, q)| Some((q, after.questions.get(slot)?)));
            let differences: Option<Vec<f64>> = pairs.map(|(b, a)| Some(f(a)? - f(b)?)).collect();
            differences.filter(|d| !d.is_empty()).map(|d| Gain { change: average(&d), interval: bootstrap(&d) })
        };
        Some(Gains {
            greedy: of(&|q| share(&q.greedy))?,
            mean: of(&|q| share(&q.sampled))?,
            mean_t03: of(&|q| share(&q.cool))?,
            vote: of(&vote)?,
        })
    }

    /// One JSON line a question, in slot order.
    pub fn lines(&self) -> String {
        let count = |o: &Option<Outcome>| o.as_ref().map(|o| o.correct.iter().filter(|c| **c).count());
        self.questions.values().fold(String::new(), |mut out, q| {
            let line = serde_json::json!({
                "row": q.row,
                "greedy": q.greedy.as_ref().is_some_and(|o| o.correct.first() == Some(&true)),
                "greedy_answer": q.greedy.as_ref().and_then(|o| o.answers.first().cloned().flatten()),
                "correct": count(&q.sampled),
                "correct_t03": count(&q.cool),
                "samples": q.sampled.as_ref().map(|o| o.correct.len()),
                "vote": q.sampled.as_ref().is_some_and(|o| o.vote_correct),
                "vote_answer": q.sampled.as_ref().and_then(|o| o.vote.clone()),
            });
            out.push_str(&line.to_string());
            out.push('\n');
            out
        })
    }
}

/// The figures of every complete evaluation, as JSON, by version.
pub fn figures_by_version(evaluations: &BTreeMap<u64, Evaluation>, questions: u32) -> BTreeMap<u64, Value> {
    let of = |(version, e): (&u64, &Evaluation)| Some((*version, serde_json::to_value(e.figures(questions)?).ok()?));
    evaluations.iter().filter_map(of).collect()
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn average(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// 95 % percentile interval of the mean over resampled questions; deterministic.
fn bootstrap(values: &[f64]) -> [f64; 2] {
    let n = values.len();
    let mut stream = Stream::named("bootstrap", &[n as u64]);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|r| {
            let base = r * n as u64;
            let sum: f64 = (0..n as u64).map(|i| values[stream.below(n as u64, base + i) as usize]).sum();
            sum / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |q: f64| means.get(((means.len() as f64 - 1.0) * q).round() as usize).copied().unwrap_or(0.0);
    [at(0.025), at(0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(correct: &[bool], vote_correct: bool) -> Outcome {
        Outcome {
            correct: correct.to_vec(),
            answers: vec![None; correct.len()],
            vote: None,
            vote_correct,
            truncated: 0,
            tokens: 1,
        }
    }

    #[test]
    fn figures_wait_for_every_answer() {
        let mut e = Evaluation::default();
        for slot in 0..4 {
            e.add(slot, u64::from(slot), Purpose::EvalGreedy, outcome(&[slot != 0], false));
            e.add(slot, u64::from(slot), Purpose::EvalSampled, outcome(&[true, slot > 1], slot > 1));
            assert!(e.figures(4).is_none());
            e.add(slot, u64::from(slot), Purpose::EvalCool, outcome(&[true, true], true));
        }
        let f = e.figures(4).unwrap();
        assert_eq!((f.greedy, f.mean, f.mean_t03, f.vote, f.n), (0.75, 0.75, 1.0, 0.5, 4));
        assert!(f.greedy_interval[0] < 0.75 && f.greedy_interval[1] > 0.75);
        assert_eq!(f.mean_t03_interval, [1.0, 1.0]);
        assert_eq!(e.lines().lines().count(), 4);
        let mut better = e.clone();
        for slot in 0..4 {
            better.add(slot, u64::from(slot), Purpose::EvalGreedy, outcome(&[true], false));
        }
        let g = e.gain(&better).unwrap();
        assert_eq!((g.greedy.change, g.mean.change, g.mean.interval), (0.25, 0.0, [0.0, 0.0]));
        assert!(g.greedy.interval[0] < 0.25 && g.greedy.interval[1] > 0.25, "paired over questions");
        assert!(e.gain(&Evaluation::default()).is_none());
    }
}
