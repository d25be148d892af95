//! Whether a submitted group is what its lease asked for, its vote recomputed, and what its samples are paid. Pure.

use crate::evaluate::Outcome;
use crate::material::Material;
use crate::state::Work;
use quorum_core::seed::Stream;
use quorum_core::types::{Finish, Group, Purpose};
use quorum_core::{answer, reward, vote};

/// Longest decoded text of one token; longer texts are not what the tokens decode to.
const BYTES_A_TOKEN: usize = 256;
/// Rounding above 0 that a log-prob may show.
const LOGPROB_SLACK: f32 = 1e-3;

/// A group that may be recorded.
#[derive(Debug, Clone)]
pub enum Checked {
    /// With the rewards that are paid.
    Train(Group),
    Eval(Outcome),
}

/// Checks `group` against the work it answers (INV-2), recomputes the vote, pays the rewards.
///
/// # Errors
/// What is wrong with the group, naming the field.
pub fn check(material: &Material, work: Work, version: u64, group: Group) -> Result<Checked, String> {
    let record = material.record(work).map_err(|e| e.to_string())?;
    shape(material, work, version, record.row, &group)?;
    let rule = &material.config.vote;
    let answers: Vec<Option<String>> =
        group.completions.iter().map(|c| answer::extract(&c.text, &rule.extract)).collect();
    let recount = vote::vote(&answers, rule);
    if recount != group.vote {
        return Err(format!(
            "the vote of slot {} does not follow from its texts: recount {:?} {:?}, submitted {:?} {:?}",
            work.slot, recount.outcome, recount.majority, group.vote.outcome, group.vote.majority
        ));
    }
    if work.purpose != Purpose::Train {
        let label = record.answer.as_deref().unwrap_or_default();
        return Ok(Checked::Eval(Outcome::grade(&group, answers, label, rule.notation)));
    }
    let config = &material.config;
    // The coin of the random control: a function of (seed, step, row, sample).
    let mut coin = Stream::named("random reward", &[config.run.seed, work.step, record.row]);
    let rewards =
        reward::rewards(&recount, &answers, config.rollout.reward, rule, record.answer.as_deref(), &mut |i| {
            coin.uniform(u64::from(i)) as f32
        });
    Ok(Checked::Train(Group { rewards, ..group }))
}

fn shape(material: &Material, work: Work, version: u64, row: u64, group: &Group) -> Result<(), String> {
    let named = (group.step, group.slot, group.prompt, group.version);
    let leased = (work.step, work.slot, row, version);
    if named != leased {
        return Err(format!("(step, slot, row, version) {named:?} was submitted for a lease of {leased:?}"));
    }
    let wanted = material.samples(work.purpose);
    let given: Vec<(u32, u32)> = group.completions.iter().map(|c| (c.sample, c.view)).collect();
    if given != wanted {
        return Err(format!("(sample, view) {given:?} were submitted, the lease asks for {wanted:?}"));
    }
    let most = material.sampling(work.purpose).max_new_tokens as usize;
    for c in &group.completions {
        let n = c.tokens.len();
        if n == 0 || n > most || (c.finish == Finish::Length && n != most) {
            return Err(format!("sample {} has {n} tokens, finish {:?}; the limit is {most}", c.sample, c.finish));
        }
        if c.logprobs.len() != n || c.logprobs.iter().any(|l| !l.is_finite() || *l > LOGPROB_SLACK) {
            return Err(format!("sample {} needs {n} finite log-probs that are not above 0", c.sample));
        }
        if c.text.len() > n * BYTES_A_TOKEN {
            return Err(format!("the text of sample {} is longer than its tokens can be", c.sample));
        }
    }
    Ok(())
}
