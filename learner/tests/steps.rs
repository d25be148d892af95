//! The learner's loop, on groups that a real worker sampled from the tiny fixture model.

#![allow(clippy::unwrap_used)]

mod learning;

use learning::support::checkpoint;
use learning::{at, head, learn, one_step, sample, training};
use quorum_core::config::{LossMean, ObjectiveKind};
use quorum_core::digest::slab_digest;
use quorum_core::reward::RewardSource;
use quorum_proto::v1;

#[test]
fn worker_and_learner_agree_bit_for_bit_on_every_view() {
    let config = training();
    let items = sample(&config);
    let outcome = one_step(&config, &items, 1);
    outcome.result.as_ref().unwrap();
    assert_eq!(outcome.metric(0, "mismatch_nats"), 0.0);
    assert_eq!((outcome.metric(0, "ratio_max"), outcome.metric(0, "groups_used")), (1.0, 3.0));
    assert!(outcome.metric(0, "grad_norm") > 0.0 && outcome.metric(0, "entropy") > 0.0);
    let inside = outcome.fake.inside();
    assert_eq!((inside.commits[0].step, inside.commits[0].version), (0, 1));
    let start = checkpoint().load_weights().unwrap();
    assert_eq!(inside.weights[&0], start, "version 0 is the model as it is");
    assert_ne!(inside.weights[&1], start);
    assert_eq!(slab_digest(&inside.weights[&1]), inside.commits[0].weights_digest);
    // The comparison can fail: another view is another image.
    let mut shifted = items.clone();
    for c in shifted[0].group.as_mut().unwrap().completions.iter_mut().filter(|c| c.view == 1) {
        c.view = 0;
    }
    assert!(one_step(&config, &shifted, 1).metric(0, "mismatch_nats") > 0.0);
}

#[test]
fn threads_change_no_bit_and_every_setting_is_exact() {
    let mut config = training();
    let items = sample(&config);
    let mut digests = Vec::new();
    for (parts, beta, mean) in [(1, 0.0, LossMean::Sequence), (2, 0.05, LossMean::Token), (3, 0.0, LossMean::Token)] {
        (config.optim.gradient_batches, config.objective.beta, config.objective.loss_mean) = (parts, beta, mean);
        let (one, three) = (one_step(&config, &items, 1), one_step(&config, &items, 3));
        assert_eq!(one.digest(0), three.digest(0));
        assert_eq!(one.commits[0].metrics, three.commits[0].metrics);
        assert_eq!(one.metric(0, "mismatch_nats"), 0.0);
        if parts > 1 {
            assert!(one.metric(0, "ratio_max") > 1.0, "the second gradient batch is off policy");
        }
        digests.push(one.digest(0).to_owned());
    }
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 3, "the settings do differ");
}

#[test]
fn a_resumed_run_ends_in_the_same_bits() {
    let config = training();
    let items = sample(&config);
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (at(0, &items), at(1, &items));
    let mut kept = head(0, &first);
    kept.checkpoint = true;
    let batches = vec![(kept, first.clone()), (head(1, &second), second.clone())];
    let whole = learn(&config, dir.path(), v1::LearnerStart::default(), batches, 1);
    assert_eq!(whole.commits[0].checkpoint, "step-000001");
    let manifest = std::fs::read(dir.path().join("checkpoints/step-000001/MANIFEST.json")).unwrap();
    assert_eq!(whole.commits[0].checkpoint_manifest, quorum_core::digest::sha256_hex(&manifest));

    let start = v1::LearnerStart { checkpoint: "step-000001".into(), checkpoint_step: 1, ..Default::default() };
    let resumed = learn(&config, dir.path(), start.clone(), vec![(head(1, &second), second.clone())], 1);
    assert_eq!(resumed.digest(0), whole.digest(1));
    assert_eq!(resumed.commits[0].metrics, whole.commits[1].metrics);

    // Damaged: from the model again, replaying the committed step.
    std::fs::write(dir.path().join("checkpoints/step-000001/optimizer.safetensors"), b"torn").unwrap();
    let mut replay = head(0, &first);
    replay.expected_digest = whole.digest(0).to_owned();
    let batches = vec![(replay.clone(), first.clone()), (head(1, &second), second)];
    let replayed = learn(&config, dir.path(), start, batches, 1);
    assert_eq!(replayed.digest(1), whole.digest(1));

    replay.expected_digest = "f".repeat(64);
    let other = learn(&config, dir.path(), v1::LearnerStart::default(), vec![(replay.clone(), first)], 1);
    let error = other.result.unwrap_err().to_string();
    assert!(error.contains("step 0") && error.contains(&replay.expected_digest), "{error}");
    assert!(error.contains(whole.digest(0)) && other.commits.is_empty(), "{error}");
}

#[test]
fn dropped_and_quarantined_groups_move_nothing() {
    let mut config = training();
    config.objective.beta = 0.0;
    let mut items = sample(&config);
    for (i, group) in items.iter_mut().filter_map(|i| i.group.as_mut()).enumerate() {
        if i == 0 {
            (group.completions, group.rewards) = (Vec::new(), Vec::new());
        } else {
            group.rewards.fill(1.0);
        }
    }
    let outcome = one_step(&config, &items, 1);
    let start = slab_digest(&checkpoint().load_weights().unwrap());
    assert_eq!(outcome.digest(0), start, "nothing to learn leaves the weights as they are");
    assert_eq!((outcome.metric(0, "groups_dropped"), outcome.metric(0, "groups_zero_variance")), (1.0, 2.0));
    // By majority vote, answers without a box pay nobody.
    config.rollout.reward = RewardSource::Majority;
    assert_eq!(one_step(&config, &items, 1).metric(0, "groups_dropped"), 3.0);
    // With a reference, flat groups are still held to it; at the start the pull is zero.
    config.rollout.reward = RewardSource::Random;
    config.objective.beta = 0.1;
    assert_eq!(one_step(&config, &items, 1).metric(0, "kl"), 0.0);
}

#[test]
fn a_batch_that_does_not_fit_is_refused_by_name() {
    let config = training();
    let items = sample(&config);
    let mut swapped = items.clone();
    swapped.swap(0, 1);
    let error = one_step(&config, &swapped, 1).result.unwrap_err().to_string();
    assert!(error.contains("step 0") && error.contains("slot 1"), "{error}");
    let mut stale = items.clone();
    stale[2].group.as_mut().unwrap().version = 9;
    let error = one_step(&config, &stale, 1).result.unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
}

#[test]
fn supervised_tuning_lowers_its_loss() {
    let mut config = training();
    config.objective.kind = ObjectiveKind::Sft;
    config.optim.learning_rate = 2e-4;
    let mut items = sample(&config);
    for group in items.iter_mut().filter_map(|i| i.group.as_mut()) {
        group.completions.truncate(1);
        group.completions[0].logprobs.fill(0.0);
        (group.rewards, group.vote_json) = (vec![1.0], String::new());
    }
    let dir = tempfile::tempdir().unwrap();
    let batches = (0..4).map(|step| (head(step, &items), at(step, &items))).collect();
    let outcome = learn(&config, dir.path(), v1::LearnerStart::default(), batches, 1);
    outcome.result.as_ref().unwrap();
    let losses: Vec<f64> = (0..4).map(|step| outcome.metric(step, "loss")).collect();
    assert!(losses.windows(2).all(|w| w[1] < w[0]), "{losses:?}");
    assert_eq!((outcome.metric(0, "mismatch_nats"), outcome.metric(0, "groups_used")), (0.0, 3.0));
}

#[test]
fn numbers_that_are_not_finite_skip_the_update_and_are_counted() {
    let mut config = training();
    config.optim.learning_rate = 1e30;
    let items = sample(&config);
    let dir = tempfile::tempdir().unwrap();
    let batches = (0..2).map(|step| (head(step, &items), at(step, &items))).collect();
    let outcome = learn(&config, dir.path(), v1::LearnerStart::default(), batches, 1);
    assert_eq!((outcome.metric(0, "nonfinite"), outcome.metric(1, "nonfinite")), (0.0, 1.0));
    assert_eq!(outcome.digest(1), outcome.digest(0), "the broken step changes nothing");
    assert_eq!(outcome.commits[1].version, 2, "and the run goes on");
}
