//! Groups for people: what was asked, what was answered, what the vote said, who was paid.

use super::source::{ApiError, Source};
use crate::ledger::GroupRow;
use prost::Message;
use quorum_core::types::Purpose;
use quorum_core::vote::{Outcome, VoteRecord};
use quorum_proto::v1;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Steps looked through when the question names none.
const STEPS: u64 = 16;
/// Groups in an answer, unless fewer are asked for.
const LIMIT: usize = 100;
const MOST: usize = 500;
/// Characters of a question in a list.
const EXCERPT: usize = 160;

/// Order of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Newest step first, then by slot.
    #[default]
    Newest,
    /// Least agreement first.
    Agreement,
    /// Largest change of the votes since the question was asked before, first; questions asked once are left out.
    Change,
}

/// Which groups.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// This step alone, counted from 0.
    pub step: Option<u64>,
    pub outcome: Option<Outcome>,
    /// Only groups with a response that has no answer.
    pub missing: bool,
    /// Only groups with at most this agreement.
    pub max_agreement: Option<f64>,
    /// Only groups whose question holds this text.
    pub text: Option<String>,
    pub order: Order,
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether its numbers mean something.
    ///
    /// # Errors
    /// The parameter that does not, with what it may be.
    pub fn check(&self) -> Result<(), ApiError> {
        let bad = |text: String| Err(ApiError::Bad(text));
        match (self.max_agreement, self.limit) {
            (Some(most), _) if !(0.0..=1.0).contains(&most) => {
                bad(format!("max_agreement = {most}: a share from 0 to 1 is wanted, e.g. 0.5"))
            }
            (_, Some(limit)) if !(1..=MOST).contains(&limit) => {
                bad(format!("limit = {limit}: from 1 to {MOST} groups can be asked for"))
            }
            _ => Ok(()),
        }
    }
}

/// The list of groups that pass the filter.
///
/// # Errors
/// The ledger cannot be read.
pub fn list(source: &Source, filter: &Filter) -> Result<Value, ApiError> {
    let committed = source.columns()?.next();
    let (from, until) = match filter.step {
        Some(step) => (step, step.saturating_add(1)),
        None => ((committed + 1).saturating_sub(STEPS), committed + 1),
    };
    let rows = voted(source, from, until)?;
    let searched = rows.len();
    let mut found: Vec<(f64, Value)> = Vec::new();
    let earlier = if filter.order == Order::Change { changes(source, &rows)? } else { BTreeMap::new() };
    for (row, vote) in &rows {
        let change = earlier.get(&(row.step, row.slot)).copied();
        let record = source.material.training_record(row.prompt);
        let question = record.map_or("", |r| r.question.as_str());
        let wanted = filter.outcome.is_none_or(|o| o == vote.outcome)
            && (!filter.missing || vote.missing > 0)
            && filter.max_agreement.is_none_or(|most| f64::from(vote.agreement) <= most)
            && filter.text.as_deref().is_none_or(|t| question.to_lowercase().contains(&t.to_lowercase()))
            && (filter.order != Order::Change || change.is_some());
        if !wanted {
            continue;
        }
        let key = match filter.order {
            Order::Newest => 0.0,
            Order::Agreement => f64::from(vote.agreement),
            Order::Change => -change.unwrap_or(0.0),
        };
        found.push((key, summary(row, vote, record.map(|r| excerpt(&r.question)).as_deref(), change)));
    }
    // Stable: equal ones stay newest first.
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (matching, limit) = (found.len(), filter.limit.unwrap_or(LIMIT).min(MOST));
    let groups: Vec<Value> = found.into_iter().take(limit).map(|(_, group)| group).collect();
    Ok(json!({ "from": from, "until": until, "searched": searched, "matching": matching, "groups": groups }))
}

/// One group whole: the question, its images, every response with its answer, log-prob, length and reward.
///
/// # Errors
/// There is no such group.
pub fn detail(source: &Source, step: u64, slot: u32) -> Result<Value, ApiError> {
    let row = source
        .ledger
        .group(step, slot)?
        .ok_or_else(|| ApiError::NotFound(format!("there is no group in slot {slot} of step {step} (yet)")))?;
    let vote: VoteRecord =
        serde_json::from_str(&row.vote).map_err(|e| ApiError::Bad(format!("its vote cannot be read: {e}")))?;
    let rewards: Vec<f64> = serde_json::from_str(&row.rewards).unwrap_or_default();
    let body = row.body.as_deref().and_then(|b| v1::GroupMsg::decode(b).ok());
    let answers = answers(&vote);
    let responses: Vec<Value> = (0..vote.pool())
        .map(|i| {
            let at = i as usize;
            let said = body.as_ref().and_then(|b| b.completions.get(at));
            let logprob: Option<f64> = said.map(|c| c.logprobs.iter().map(|p| f64::from(*p)).sum());
            json!({
                "sample": i,
                "answer": answers.get(&i),
                "reward": rewards.get(at),
                "text": said.map(|c| c.text.as_str()),
                "tokens": said.map(|c| c.tokens.len()),
                "logprob": logprob,
                "view": said.map(|c| c.view),
                "finish": said.map(|c| if c.finish() == v1::Finish::Length { "length" } else { "stop" }),
            })
        })
        .collect();
    let record = source.material.training_record(row.prompt);
    let images: Vec<String> = record.map(|r| r.images.iter().map(|i| i.hash()).collect()).unwrap_or_default();
    let mut group = summary(&row, &vote, record.map(|r| r.question.as_str()), None);
    if let Some(object) = group.as_object_mut() {
        object.insert("images".into(), images.into());
        object.insert("note".into(), record.is_none().then(|| absent(source, row.prompt)).into());
        object.insert("responses".into(), responses.into());
        object.insert("visits".into(), history(source, row.prompt)?);
    }
    Ok(group)
}

/// The same question under all versions that answered it, oldest first.
///
/// # Errors
/// The ledger cannot be read.
pub fn history(source: &Source, prompt: u64) -> Result<Value, ApiError> {
    let visits = source.visits()?.of(prompt);
    let mut groups = Vec::with_capacity(visits.len());
    for (step, slot) in visits {
        let Some(row) = source.ledger.group(step, slot)? else { continue };
        let Ok(vote) = serde_json::from_str::<VoteRecord>(&row.vote) else { continue };
        groups.push(summary(&row, &vote, None, None));
    }
    Ok(groups.into())
}

/// Why a question and its images cannot be shown.
fn absent(source: &Source, row: u64) -> String {
    let from = source.material.file_of(Purpose::Train).display();
    let aside = source.material.set_aside().find(|(set, s)| *set == "train" && s.row == row);
    match (aside, &source.note) {
        (Some((_, aside)), _) => format!("question and image not shown: {aside}"),
        (None, Some(_)) => format!("question and image not found at {from}"),
        (None, None) => format!("question and image not found: {from} no longer has row {row}"),
    }
}

fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(EXCERPT).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// The answer of each sample as it was written shortest in its cluster.
fn answers(vote: &VoteRecord) -> BTreeMap<u32, &str> {
    vote.clusters.iter().flat_map(|c| c.samples.iter().map(|s| (*s, c.example.as_str()))).collect()
}

fn summary(row: &GroupRow, vote: &VoteRecord, question: Option<&str>, change: Option<f64>) -> Value {
    let rewards: Vec<f64> = serde_json::from_str(&row.rewards).unwrap_or_default();
    let clusters: Vec<Value> =
        vote.clusters.iter().map(|c| json!({ "answer": c.example, "votes": c.samples.len() })).collect();
    json!({
        "step": row.step,
        "slot": row.slot,
        "row": row.prompt,
        "version": row.version,
        "worker": row.worker,
        "question": question,
        "outcome": vote.outcome.label(),
        "agreement": vote.agreement,
        "margin": vote.margin,
        "entropy_nats": vote.entropy_nats,
        "answered": vote.answered,
        "missing": vote.missing,
        "majority": vote.winner().map(|c| c.example.as_str()),
        "clusters": clusters,
        "rewards": rewards,
        "change": change,
        "kept": row.kept,
    })
}

/// Groups of the steps `from..until` with their votes; one whose vote cannot be read is left out.
fn voted(source: &Source, from: u64, until: u64) -> Result<Vec<(GroupRow, VoteRecord)>, ApiError> {
    let read = |row: GroupRow| serde_json::from_str(&row.vote).ok().map(|vote| (row, vote));
    Ok(source.ledger.groups(from, until)?.into_iter().filter_map(read).collect())
}

/// How much the votes of each group changed since the question was asked before.
fn changes(source: &Source, rows: &[(GroupRow, VoteRecord)]) -> Result<BTreeMap<(u64, u32), f64>, ApiError> {
    let before: Vec<_> = {
        let visits = source.visits()?;
        rows.iter().filter_map(|(row, vote)| Some((row, vote, visits.before(row.prompt, row.step)?))).collect()
    };
    let steps: BTreeSet<u64> = before.iter().map(|(_, _, (step, _))| *step).collect();
    let mut votes: BTreeMap<(u64, u32), VoteRecord> = BTreeMap::new();
    for step in steps {
        votes.extend(voted(source, step, step + 1)?.into_iter().map(|(row, vote)| ((row.step, row.slot), vote)));
    }
    let distance = |(row, now, earlier): (&GroupRow, &VoteRecord, (u64, u32))| {
        Some(((row.step, row.slot), moved(votes.get(&earlier)?, now)))
    };
    Ok(before.into_iter().filter_map(distance).collect())
}

/// Total variation distance between two votes, 0–1; missing answers are an answer of their own.
fn moved(a: &VoteRecord, b: &VoteRecord) -> f64 {
    let mut shares: BTreeMap<Option<&str>, [f64; 2]> = BTreeMap::new();
    for (side, vote) in [a, b].into_iter().enumerate() {
        let pool = f64::from(vote.pool().max(1));
        for c in &vote.clusters {
            shares.entry(Some(&c.key)).or_default()[side] += c.samples.len() as f64 / pool;
        }
        shares.entry(None).or_default()[side] += f64::from(vote.missing) / pool;
    }
    shares.values().map(|[x, y]| (x - y).abs()).sum::<f64>() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_core::vote::{VoteRule, vote};

    fn votes(answers: &[&str]) -> VoteRecord {
        let answers: Vec<Option<String>> = answers.iter().map(|a| (!a.is_empty()).then(|| (*a).to_owned())).collect();
        vote(&answers, &VoteRule::default())
    }

    #[test]
    fn a_change_is_the_share_of_votes_that_moved() {
        let a = votes(&["1", "1", "2", "2"]);
        assert_eq!(moved(&a, &a), 0.0);
        assert_eq!(moved(&a, &votes(&["1", "1", "1", "2"])), 0.25);
        assert_eq!(moved(&a, &votes(&["3", "3", "3", "3"])), 1.0);
        assert_eq!(moved(&a, &votes(&["1", "1", "", ""])), 0.5);
    }

    #[test]
    fn each_sample_has_the_answer_of_its_cluster() {
        let vote = votes(&["1/2", "", "0.5", "3"]);
        let found = answers(&vote);
        assert_eq!(
            (found.get(&0), found.get(&1), found.get(&2), found.get(&3)),
            (Some(&"0.5"), None, Some(&"0.5"), Some(&"3"))
        );
    }
}
