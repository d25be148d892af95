//! Worker and learner on the candle backend (on the CPU), whole and in two parts, against both on our own kernels: the same step, to a tolerance.

#![allow(clippy::unwrap_used)]

mod learning;

use learning::{head, learn_on, sample, sample_on, training};
use quorum_learner::collective::OneRank;
use quorum_proto::v1;

const DEVICES: [&str; 2] = ["candle-cpu", "candle-cpu+candle-cpu"];

/// Steps over the same groups on a device.
fn learn(device: &str, items: &[v1::BatchItem]) -> learning::Outcome {
    let (dir, mut config) = (tempfile::tempdir().unwrap(), training());
    config.objective.beta = 0.05;
    let batches = (0..3).map(|step| (head(step, items), learning::at(step, items))).collect();
    learn_on(device, &config, dir.path(), v1::LearnerStart::default(), batches, vec![Box::new(OneRank)], 1)
}

#[test]
fn a_candle_worker_samples_the_same_groups() {
    let config = training();
    let groups = |device| sample_on(device, &config).into_iter().map(|i| i.group.unwrap()).collect::<Vec<_>>();
    let expected = groups("cpu");
    for (found, expected) in DEVICES.into_iter().flat_map(groups).zip(expected.iter().cycle()) {
        for (f, e) in found.completions.iter().zip(&expected.completions) {
            assert_eq!((&f.tokens, f.sample, f.view), (&e.tokens, e.sample, e.view));
            assert!(f.logprobs.iter().zip(&e.logprobs).all(|(a, b)| (a - b).abs() < 1e-4));
        }
        assert_eq!(found.vote_json, expected.vote_json);
    }
}

#[test]
fn a_candle_learner_takes_the_same_steps() {
    let items = sample(&training());
    let cpu = learn("cpu", &items);
    cpu.result.as_ref().unwrap();
    for device in DEVICES {
        compare(&cpu, &learn(device, &items));
    }
}

fn compare(cpu: &learning::Outcome, candle: &learning::Outcome) {
    candle.result.as_ref().unwrap();
    for step in 0..3 {
        for name in ["grad_norm", "loss", "entropy", "kl", "ratio_mean"] {
            let (a, b) = (cpu.metric(step, name), candle.metric(step, name));
            assert!((a - b).abs() <= 2e-3 * b.abs() + 1e-5, "step {step}: {name} is {a} on cpu and {b} on candle");
        }
    }
    // On the policy itself: the mismatch to the worker is rounding, and it is measured.
    let (exact, near) = (cpu.metric(0, "mismatch_nats"), candle.metric(0, "mismatch_nats"));
    assert!(exact == 0.0 && near > 0.0 && near < 1e-4, "{exact} and {near}");
    assert!(candle.metric(0, "grad_norm") > 0.0 && candle.metric(1, "kl") > 0.0);
    // One step of Adam moves a weight by the learning rate wherever the gradient is; three keep the distance small.
    let weights = |o: &learning::Outcome| o.fake.inside().weights[&3].clone();
    let (a, b) = (weights(cpu), weights(candle));
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let start = cpu.fake.inside().weights[&0].clone();
    let (apart, moved) =
        (norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)), norm(&mut a.iter().zip(&start).map(|(a, b)| a - b)));
    assert!(moved > 0.0 && apart < 0.05 * moved, "weights are {apart} apart after moving by {moved}");
}
