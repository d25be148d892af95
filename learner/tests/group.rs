//! Learners of several ranks, as threads of this process: the sums are those of one rank, each holds its part of the optimiser, and a lost rank is named.

#![allow(clippy::unwrap_used)]

mod learning;
mod ranks;

use learning::threads::Threads;
use learning::{Outcome, at, head, learn, learn_together, sample, training};
use quorum_core::config::{Reduction, RunConfig};
use quorum_learner::LearnerError;
use quorum_learner::collective::{Collective, CollectiveError, Late};
use quorum_learner::group::Group;
use quorum_proto::v1;
use std::path::Path;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `job` on every rank of a world.
fn together<R: Send>(world: Vec<Threads>, job: impl Fn(&mut Threads) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let job = &job;
        let handles: Vec<_> = world.into_iter().map(|mut rank| scope.spawn(move || job(&mut rank))).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

#[test]
fn any_number_of_ranks_sums_like_one_and_holds_its_part() {
    let one = ranks::alone();
    for reduction in [Reduction::Fixed, Reduction::Fast] {
        for world in [2, 3, 4, 5] {
            let outcomes = together(Threads::world(world, DEADLINE), |rank| ranks::train(rank, reduction).unwrap());
            for outcome in &outcomes {
                ranks::check(outcome, &one, world, reduction);
                assert!(outcome.weights == outcomes[0].weights && outcome.stats == outcomes[0].stats, "ranks differ");
            }
            let held: usize = outcomes.iter().map(|o| o.moments).sum();
            assert_eq!(held, 2 * one.total, "every element has one owner");
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_is_left_out_on_every_rank() {
    for reduction in [Reduction::Fixed, Reduction::Fast] {
        let finite = together(Threads::world(2, DEADLINE), |rank| ranks::poisoned(rank, reduction).unwrap());
        assert_eq!(finite, [[false, true], [false, true]], "{reduction:?}");
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_within_the_deadline() {
    let mut world = Threads::world(3, Duration::from_millis(300));
    world.remove(1);
    let started = Instant::now();
    let errors = together(world, |rank| ranks::train(rank, Reduction::Fixed).unwrap_err().to_string());
    assert!(started.elapsed() < Duration::from_secs(30));
    for error in errors {
        assert!(error.contains("all_to_all") && error.contains("rank 1 is late or lost"), "{error}");
    }
}

#[test]
fn all_ranks_hear_of_the_failure_of_one_and_of_difference() {
    let world = Threads::world(3, DEADLINE);
    let said = together(world, |rank| {
        let number = rank.rank();
        let lent = std::mem::replace(rank, Threads::world(1, DEADLINE).remove(0));
        let mut group = Group::new(Box::new(lent), 8);
        let mine = if number == 1 { Err(LearnerError::NotFinite { step: 4 }) } else { Ok(vec![number as u8]) };
        let failed = group.agree("a test", mine).unwrap_err();
        let apart = group.same("names", if number == 2 { "b" } else { "a" }).unwrap_err().to_string();
        (failed, apart, group.same("all", "alike").is_ok())
    });
    for (rank, (failed, apart, alike)) in said.iter().enumerate() {
        assert!(*alike);
        assert!(apart.contains("rank 2") || rank == 2, "{apart}");
        let text = failed.to_string();
        assert!(text.contains("step 4"), "{text}");
        assert_eq!(text.contains("rank 1 failed"), rank != 1, "its own error stays its own: {text}");
        assert_eq!(failed.may_pass(), rank != 1);
    }
    let late = CollectiveError::Late { operation: "barrier".into(), seconds: 2.0, late: Late(vec![]) };
    assert!(late.to_string().contains("another rank"), "{late}");
}

/// Two steps of the loop with `ranks`, the first with a checkpoint; or from that checkpoint, the second alone.
fn two_steps(config: &RunConfig, dir: &Path, items: &[v1::BatchItem], ranks: usize, resume: bool) -> Outcome {
    let (first, second) = (at(0, items), at(1, items));
    let mut kept = head(0, &first);
    kept.checkpoint = true;
    let mut batches = vec![(kept, first), (head(1, &second), second)];
    let mut start = v1::LearnerStart::default();
    if resume {
        batches.remove(0);
        start = v1::LearnerStart { checkpoint: "step-000001".into(), checkpoint_step: 1, ..start };
    }
    if ranks == 1 {
        return learn(config, dir, start, batches, 1);
    }
    let world = Threads::world(ranks, DEADLINE).into_iter().map(|r| Box::new(r) as _).collect();
    learn_together(config, dir, start, batches, world, 1)
}

#[test]
fn whole_learners_of_several_ranks_end_like_one_and_resume_from_each_others_checkpoints() {
    let mut config = training();
    config.learner.reduction = Reduction::Fixed;
    config.optim.gradient_batches = 2;
    config.objective.beta = 0.05;
    let items = sample(&config);
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let one = two_steps(&config, dirs[0].path(), &items, 1, false);
    for (ranks, dir) in [2, 3, 4].into_iter().zip(&dirs[1..]) {
        let several = two_steps(&config, dir.path(), &items, ranks, false);
        several.result.as_ref().unwrap();
        assert_eq!(several.commits.len(), 2, "rank 0 alone commits");
        for step in 0..2 {
            assert_eq!(several.digest(step), one.digest(step), "{ranks} ranks, step {step}");
            assert_eq!(several.commits[step].metrics, one.commits[step].metrics, "{ranks} ranks, step {step}");
        }
        assert_eq!(several.commits[0].checkpoint, "step-000001");
        let at = dir.path().join("checkpoints/step-000001");
        assert!(at.join(format!("optimizer-00001-of-{ranks:05}.safetensors")).exists());
        assert!(!at.join("optimizer.safetensors").exists());
        let weights = |d: &Path| std::fs::read(d.join("checkpoints/step-000001/model.safetensors")).unwrap();
        assert!(weights(dir.path()) == weights(dirs[0].path()));
    }
    for dir in &dirs {
        for ranks in [1, 2, 3] {
            let resumed = two_steps(&config, dir.path(), &items, ranks, true);
            assert_eq!(resumed.digest(0), one.digest(1), "{ranks} ranks from {}", dir.path().display());
            assert_eq!(resumed.commits[0].metrics, one.commits[1].metrics);
        }
    }
    // A shard that is damaged makes all ranks fall back, here to the model itself, which is another state than step 1.
    let shard = dirs[1].path().join("checkpoints/step-000001/optimizer-00002-of-00002.safetensors");
    std::fs::write(&shard, b"torn").unwrap();
    let fallen = two_steps(&config, dirs[1].path(), &items, 2, true);
    assert_eq!(fallen.commits.len(), 0, "step 0 has no batch in this test: nothing is left to learn");
}

#[test]
fn a_rank_whose_numbers_are_not_finite_makes_all_skip_the_update() {
    let mut config = training();
    config.optim.learning_rate = 1e30;
    config.learner.reduction = Reduction::Fixed;
    let items = sample(&config);
    let dir = tempfile::tempdir().unwrap();
    let outcome = two_steps(&config, dir.path(), &items, 2, false);
    assert_eq!((outcome.metric(0, "nonfinite"), outcome.metric(1, "nonfinite")), (0.0, 1.0));
    assert_eq!(outcome.digest(1), outcome.digest(0), "the broken step changes nothing");
}
