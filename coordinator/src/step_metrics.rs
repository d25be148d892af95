//! What a step's groups say, as numbers. A pure function of the groups in slot order, so it cannot depend on who answered when.

use quorum_core::types::Group;
use quorum_core::vote::Outcome;
use std::collections::BTreeMap;

/// Names of the numbers in metrics.jsonl, the learner's among them; no run has all of them.
pub const METRICS: [&str; 34] = [
    "agreement_mean",
    "answered_ratio",
    "clip_high",
    "clip_low",
    "common_answer_ratio",
    "distinct_answers_mean",
    "entropy",
    "grad_clipped",
    "grad_norm",
    "groups_dropped",
    "groups_quarantined",
    "groups_used",
    "groups_zero_variance",
    "kl",
    "kl_loss",
    "learning_rate",
    "loss",
    "mismatch_nats",
    "nonfinite",
    "policy_loss",
    "ratio_max",
    "ratio_mean",
    "response_length_mean",
    "reward_mean",
    "samples",
    "tokens",
    "truncated_ratio",
    "vote_entropy_mean",
    "votes_above_band",
    "votes_below_threshold",
    "votes_no_majority",
    "votes_tie",
    "votes_used",
    "votes_zero_variance",
];
/// Names of the numbers in timing.jsonl, likewise.
pub const TIMINGS: [&str; 13] = [
    "all_reduce_seconds",
    "checkpoint_seconds",
    "encode_seconds",
    "forward_backward_seconds",
    "learner_seconds",
    "learner_tokens_per_second",
    "logprob_seconds",
    "optimizer_seconds",
    "publish_seconds",
    "run_seconds",
    "step_seconds",
    "tokens_per_second",
    "wait_batch_seconds",
];

/// Deterministic figures of a step; they stand beside the learner's in metrics.jsonl. Empty groups (quarantined prompts) count only as such.
/// Supervised steps have no votes.
pub fn of_groups(groups: &[Group], supervised: bool) -> BTreeMap<String, f64> {
    let full: Vec<&Group> = groups.iter().filter(|g| !g.completions.is_empty()).collect();
    let responses: f64 = full.iter().map(|g| g.completions.len() as f64).sum();
    let mean = |sum: f64, n: f64| if n == 0.0 { 0.0 } else { sum / n };
    let groups_mean = |f: &dyn Fn(&Group) -> f64| mean(full.iter().map(|g| f(g)).sum(), full.len() as f64);
    let responses_mean = |f: &dyn Fn(&Group) -> f64| mean(full.iter().map(|g| f(g)).sum(), responses);
    let mut m = BTreeMap::new();
    let mut put = |name: &str, value: f64| {
        m.insert(name.to_owned(), value);
    };
    put("reward_mean", responses_mean(&|g| g.rewards.iter().map(|r| f64::from(*r)).sum()));
    if !supervised {
        put("agreement_mean", groups_mean(&|g| f64::from(g.vote.agreement)));
        put("vote_entropy_mean", groups_mean(&|g| f64::from(g.vote.entropy_nats)));
        put("distinct_answers_mean", groups_mean(&|g| f64::from(g.vote.distinct)));
        put("answered_ratio", responses_mean(&|g| f64::from(g.vote.answered)));
        put("common_answer_ratio", common_answer(&full));
        for outcome in Outcome::ALL {
            put(
                &format!("votes_{}", outcome.label()),
                full.iter().filter(|g| g.vote.outcome == outcome).count() as f64,
            );
        }
    }
    put("groups_quarantined", (groups.len() - full.len()) as f64);
    put("samples", responses);
    m
}

/// Share of groups whose largest cluster is the answer that most groups of the step give: near 1, everything is answered alike.
fn common_answer(groups: &[&Group]) -> f64 {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for group in groups {
        if let Some(first) = group.vote.clusters.first() {
            *counts.entry(first.key.as_str()).or_default() += 1;
        }
    }
    let most = counts.values().copied().max().unwrap_or(0);
    if groups.is_empty() { 0.0 } else { most as f64 / groups.len() as f64 }
}

/// One line of metrics.jsonl. Keys are sorted; the learner's win where both have one.
pub fn line(
    step: u64,
    version: u64,
    digest: &str,
    groups: &[Group],
    supervised: bool,
    learner: &std::collections::HashMap<String, f64>,
) -> String {
    let mut figures = of_groups(groups, supervised);
    figures.extend(learner.iter().map(|(k, v)| (k.clone(), *v)));
    let mut object = serde_json::Map::new();
    object.insert("step".into(), step.into());
    object.insert("version".into(), version.into());
    object.insert("weights_sha256".into(), digest.into());
    for (key, value) in figures {
        // JSON has no NaN or infinity; null says that the value was not finite.
        object.insert(key, serde_json::Number::from_f64(value).map_or(serde_json::Value::Null, Into::into));
    }
    serde_json::Value::Object(object).to_string()
}

/// One line of timing.jsonl.
pub fn timing_line(step: u64, timings: &std::collections::HashMap<String, f64>, own: &[(&str, f64)]) -> String {
    let mut all: BTreeMap<&str, f64> = timings.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    all.extend(own.iter().copied());
    let mut object = serde_json::Map::new();
    object.insert("step".into(), step.into());
    object.extend(
        all.into_iter()
            .map(|(k, v)| (k.to_owned(), serde_json::Number::from_f64(v).map_or(serde_json::Value::Null, Into::into))),
    );
    serde_json::Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_coordinator_and_page_name_is_listed() {
        let own = of_groups(&[], false);
        let script = include_str!("../web/charts.js");
        let page = script.split_once("Q.keys = [").and_then(|(_, rest)| rest.split_once("];")).unwrap().0;
        let page: Vec<&str> = page.split(',').map(|name| name.trim().trim_matches('\'')).collect();
        assert!(page.len() > 10, "{page:?}");
        for name in own.keys().map(String::as_str).chain(page) {
            assert!(METRICS.contains(&name) || TIMINGS.contains(&name), "{name}");
        }
    }
}
