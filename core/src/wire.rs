//! The only place where wire messages and domain types meet.

use crate::types::{Completion, Finish, Group, Purpose, Sampling};
use quorum_proto::v1;

/// A message that does not say what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct WireError(pub String);

fn bad<T>(what: impl Into<String>) -> Result<T, WireError> {
    Err(WireError(what.into()))
}

impl From<Purpose> for v1::Purpose {
    fn from(p: Purpose) -> Self {
        match p {
            Purpose::Train => v1::Purpose::Train,
            Purpose::EvalGreedy => v1::Purpose::EvalGreedy,
            Purpose::EvalSampled => v1::Purpose::EvalSampled,
            Purpose::EvalCool => v1::Purpose::EvalCool,
        }
    }
}

/// Reads a purpose field.
pub fn purpose(value: i32) -> Result<Purpose, WireError> {
    match v1::Purpose::try_from(value) {
        Ok(v1::Purpose::Train) => Ok(Purpose::Train),
        Ok(v1::Purpose::EvalGreedy) => Ok(Purpose::EvalGreedy),
        Ok(v1::Purpose::EvalSampled) => Ok(Purpose::EvalSampled),
        Ok(v1::Purpose::EvalCool) => Ok(Purpose::EvalCool),
        Ok(v1::Purpose::Unspecified) | Err(_) => bad(format!("purpose {value} is not known")),
    }
}

impl From<Sampling> for v1::SamplingSpec {
    fn from(s: Sampling) -> Self {
        Self { temperature: s.temperature, top_p: s.top_p, top_k: s.top_k, max_new_tokens: s.max_new_tokens }
    }
}

impl From<v1::SamplingSpec> for Sampling {
    fn from(s: v1::SamplingSpec) -> Self {
        Self { temperature: s.temperature, top_p: s.top_p, top_k: s.top_k, max_new_tokens: s.max_new_tokens }
    }
}

impl From<&Completion> for v1::CompletionMsg {
    fn from(c: &Completion) -> Self {
        let finish = match c.finish {
            Finish::Stop => v1::Finish::Stop,
            Finish::Length => v1::Finish::Length,
        };
        Self {
            sample: c.sample,
            view: c.view,
            tokens: c.tokens.clone(),
            logprobs: c.logprobs.clone(),
            finish: finish.into(),
            text: c.text.clone(),
        }
    }
}

impl TryFrom<v1::CompletionMsg> for Completion {
    type Error = WireError;

    fn try_from(c: v1::CompletionMsg) -> Result<Self, WireError> {
        let finish = match v1::Finish::try_from(c.finish) {
            Ok(v1::Finish::Stop) => Finish::Stop,
            Ok(v1::Finish::Length) => Finish::Length,
            Ok(v1::Finish::Unspecified) | Err(_) => return bad(format!("finish {} is not known", c.finish)),
        };
        if c.tokens.len() != c.logprobs.len() {
            return bad(format!(
                "sample {} has {} tokens but {} log-probs",
                c.sample,
                c.tokens.len(),
                c.logprobs.len()
            ));
        }
        if c.logprobs.iter().any(|l| !l.is_finite()) {
            return bad(format!("sample {} has a log-prob that is not finite", c.sample));
        }
        Ok(Self { sample: c.sample, view: c.view, tokens: c.tokens, logprobs: c.logprobs, finish, text: c.text })
    }
}

impl TryFrom<&Group> for v1::GroupMsg {
    type Error = WireError;

    fn try_from(g: &Group) -> Result<Self, WireError> {
        Ok(Self {
            step: g.step,
            slot: g.slot,
            prompt: g.prompt,
            version: g.version,
            completions: g.completions.iter().map(Into::into).collect(),
            vote_json: serde_json::to_string(&g.vote).map_err(|e| WireError(e.to_string()))?,
            rewards: g.rewards.clone(),
        })
    }
}

impl TryFrom<v1::GroupMsg> for Group {
    type Error = WireError;

    fn try_from(g: v1::GroupMsg) -> Result<Self, WireError> {
        if g.rewards.len() != g.completions.len() {
            return bad(format!("group has {} completions but {} rewards", g.completions.len(), g.rewards.len()));
        }
        if g.rewards.iter().any(|r| !r.is_finite()) {
            return bad("group has a reward that is not finite");
        }
        let vote = serde_json::from_str(&g.vote_json).map_err(|e| WireError(format!("vote record: {e}")))?;
        let completions = g.completions.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self {
            step: g.step,
            slot: g.slot,
            prompt: g.prompt,
            version: g.version,
            completions,
            vote,
            rewards: g.rewards,
        })
    }
}
