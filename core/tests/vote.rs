//! Votes and rewards: what counts, who is paid, and that neither depends on the order of the samples.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use quorum_core::reward::{RewardSource, rewards};
use quorum_core::vote::{Outcome, TiePolicy, VoteRecord, VoteRule, vote};

fn pool(answers: &[&str]) -> Vec<Option<String>> {
    answers.iter().map(|a| (*a != "-").then(|| (*a).to_owned())).collect()
}

fn pay(answers: &[&str], rule: &VoteRule, source: RewardSource, label: Option<&str>) -> (VoteRecord, Vec<f32>) {
    let answers = pool(answers);
    let record = vote(&answers, rule);
    let paid = rewards(&record, &answers, source, rule, label, &mut |i| if i % 2 == 0 { 0.0 } else { 0.9 });
    (record, paid)
}

#[test]
fn equivalent_answers_are_counted_together() {
    let rule = VoteRule::default();
    let (record, paid) = pay(&["1/2", "\\frac{1}{2}", "0.5", "2", "2", "3"], &rule, RewardSource::Majority, None);
    assert_eq!(record.outcome, Outcome::Used);
    assert_eq!(record.majority.as_deref(), Some("1/2"));
    assert_eq!(record.clusters[0].samples, [0, 1, 2]);
    assert_eq!(record.clusters[0].example, "0.5");
    assert_eq!(paid, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!((record.agreement, record.distinct), (0.5, 3));
    assert!((record.margin - 1.0 / 6.0).abs() < 1e-6);
    let entropy = -(0.5f64 * 0.5f64.ln() + (1.0 / 3.0) * (1.0f64 / 3.0).ln() + (1.0 / 6.0) * (1.0f64 / 6.0).ln());
    assert!((f64::from(record.entropy_nats) - entropy).abs() < 1e-6);
}

#[test]
fn a_missing_answer_neither_wins_nor_is_paid() {
    let rule = VoteRule::default();
    for source in [RewardSource::Majority, RewardSource::Soft, RewardSource::GroundTruth, RewardSource::Random] {
        let (record, paid) = pay(&["-", "-", "-", "-", "", " ", "4", "4"], &rule, source, Some(""));
        assert_eq!((record.answered, record.missing, record.distinct), (2, 6, 1));
        assert_eq!(record.agreement, 0.25, "the denominator is the whole pool");
        assert_eq!(record.outcome, Outcome::Used);
        assert!(paid[..6].iter().all(|r| *r == 0.0), "{source:?}: {paid:?}");
    }
    let (record, _) = pay(&["-", "-"], &rule, RewardSource::Majority, None);
    assert_eq!(record.outcome, Outcome::NoMajority);
    assert_eq!(record.entropy_nats, 0.0);
    assert_eq!(vote(&[], &rule).outcome, Outcome::NoMajority);
}

#[test]
fn every_outcome_has_its_rule() {
    let rule = VoteRule { min_votes: 3, band_low: 0.4, band_high: 0.8, ..VoteRule::default() };
    let outcome = |answers: &[&str], rule: &VoteRule| {
        let (record, paid) = pay(answers, rule, RewardSource::Majority, None);
        assert_eq!(record.outcome.pays(), paid.iter().any(|r| *r > 0.0));
        assert_eq!(record.outcome.pays(), record.majority.is_some());
        record.outcome
    };
    assert_eq!(outcome(&["1", "1", "-", "-"], &rule), Outcome::NoMajority);
    assert_eq!(outcome(&["1", "1", "2", "2"], &rule), Outcome::Tie);
    assert_eq!(outcome(&["1", "1", "2", "3", "4", "-"], &rule), Outcome::BelowThreshold);
    assert_eq!(outcome(&["1", "1", "2", "3", "4"], &rule), Outcome::Used, "the band's ends belong to it");
    assert_eq!(outcome(&["1", "1", "1", "1", "2"], &rule), Outcome::Used);
    assert_eq!(outcome(&["1", "1", "1"], &rule), Outcome::AboveBand);
    assert_eq!(outcome(&["1", "1", "1"], &VoteRule::default()), Outcome::ZeroVariance);
    let first = VoteRule { tie: TiePolicy::First, ..VoteRule::default() };
    assert_eq!(outcome(&["2", "1", "2", "1"], &first), Outcome::Used);
    assert_eq!(vote(&pool(&["2", "1", "2", "1"]), &first).majority.as_deref(), Some("1"));
    let labels: Vec<&str> = Outcome::ALL.iter().map(|o| o.label()).collect();
    assert_eq!(labels, ["used", "zero_variance", "no_majority", "below_threshold", "tie", "above_band"]);
}

#[test]
fn each_source_pays_by_its_own_rule() {
    let rule = VoteRule::default();
    let answers = ["7", "7.0", "8", "-"];
    assert_eq!(pay(&answers, &rule, RewardSource::Soft, None).1, [0.5, 0.5, 0.25, 0.0]);
    assert_eq!(pay(&answers, &rule, RewardSource::GroundTruth, Some("8")).1, [0.0, 0.0, 1.0, 0.0]);
    assert_eq!(pay(&answers, &rule, RewardSource::GroundTruth, None).1, [0.0; 4]);
    assert_eq!(pay(&answers, &rule, RewardSource::Random, None).1, [1.0, 0.0, 1.0, 0.0]);
    // A tie pays nobody by vote, but labels and coins do not ask the vote.
    let tie = ["7", "8"];
    assert_eq!(pay(&tie, &rule, RewardSource::Majority, None).1, [0.0; 2]);
    assert_eq!(pay(&tie, &rule, RewardSource::Soft, None).1, [0.0; 2]);
    assert_eq!(pay(&tie, &rule, RewardSource::GroundTruth, Some("7")).1, [1.0, 0.0]);
    assert_eq!(pay(&tie, &rule, RewardSource::Random, None).1, [1.0, 0.0]);
}

#[test]
fn records_and_rules_survive_serialisation() {
    let record = vote(&pool(&["1", "2", "1", "-"]), &VoteRule::default());
    let json = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<VoteRecord>(&json).unwrap(), record);
    assert!(json.contains("\"outcome\":\"used\""), "{json}");
    let rule: VoteRule = toml::from_str("min_votes = 5\nnotation = \"wide\"").unwrap();
    assert_eq!((rule.min_votes, rule.tie), (5, TiePolicy::Drop));
    assert!(toml::from_str::<VoteRule>("min_vote = 5").unwrap_err().to_string().contains("min_vote"));
}

/// A few answers, some of them written in two ways, and missing ones.
fn answer() -> impl Strategy<Value = Option<String>> {
    let written = prop::sample::select(vec!["1/2", "0.5", "3", "3.0", "x+1", "1+x", "red", "{1,2}", "A", "(A)", ""]);
    prop_oneof![Just(None), written.prop_map(|s| Some(s.to_owned()))]
}

proptest! {
    #[test]
    fn the_order_of_samples_does_not_matter(
        answers in prop::collection::vec(answer(), 0..12),
        seed in any::<u64>(),
        low in 0.0f32..0.6,
        first in any::<bool>(),
    ) {
        let tie = if first { TiePolicy::First } else { TiePolicy::Drop };
        let rule = VoteRule { band_low: low, tie, ..VoteRule::default() };
        let order = quorum_core::seed::Stream::named("test", &[seed]).permutation(answers.len());
        let shuffled: Vec<Option<String>> = order.iter().map(|i| answers[*i].clone()).collect();
        let (a, b) = (vote(&answers, &rule), vote(&shuffled, &rule));
        prop_assert_eq!(a.outcome, b.outcome);
        prop_assert_eq!(&a.majority, &b.majority);
        prop_assert_eq!(a.answered + a.missing, answers.len() as u32);
        let names = |r: &VoteRecord| r.clusters.iter().map(|c| (c.key.clone(), c.example.clone(), c.samples.len())).collect::<Vec<_>>();
        prop_assert_eq!(names(&a), names(&b));
        for source in [RewardSource::Majority, RewardSource::Soft] {
            let paid = |r: &VoteRecord, x: &[Option<String>]| rewards(r, x, source, &rule, None, &mut |_| 0.0);
            let (pa, pb) = (paid(&a, &answers), paid(&b, &shuffled));
            for (place, i) in order.iter().enumerate() {
                prop_assert_eq!(pa[*i], pb[place]);
                prop_assert!(answers[*i].is_some() || pa[*i] == 0.0);
            }
        }
    }
}
