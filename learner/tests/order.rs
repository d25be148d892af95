//! Order and cutting of a step's packs.

use quorum_core::config::{LossMean, ObjectiveSection, RunConfig};
use quorum_learner::batch::{Item, Packs, Part, Sequence, TrainPack, Use, gradient_batches};
use quorum_learner::encode::is_computed;
use quorum_learner::objective::Rule;
use quorum_model::EncodedPrompt;

fn pack(slot: usize) -> TrainPack {
    let prompt =
        EncodedPrompt { ids: vec![1], positions: [vec![0], vec![0], vec![0]], next_position: 1, images: Vec::new() };
    let sequence = Sequence { view: 0, tokens: vec![2, 3], sampler: vec![-1.0; 2], advantage: 1.0, truncated: false };
    TrainPack { slot, prompt, sequences: vec![sequence] }
}

/// Two packs a slot, but none for the slots in `without`.
fn packs(prompts: usize, without: &[usize]) -> Packs {
    let packs = (0..prompts).filter(|s| !without.contains(s)).flat_map(|s| [pack(s), pack(s)]).collect();
    Packs { packs, prompts, counted: (0..prompts).map(|s| (s, s + 1)).collect() }
}

#[test]
fn slots_are_cut_contiguously_even_when_uneven() {
    let parts = gradient_batches(&packs(7, &[]), 3);
    let slots: Vec<_> = parts.iter().map(|p| p.slots.clone()).collect();
    assert_eq!(slots, [0..2, 2..4, 4..7]);
    assert_eq!(parts.iter().map(|p| p.packs.clone()).collect::<Vec<_>>(), [0..4, 4..8, 8..14]);
}

#[test]
fn missing_packs_do_not_shift_the_cuts_and_empty_parts_are_left_out() {
    let parts = gradient_batches(&packs(6, &[0, 2, 3]), 3);
    assert_eq!(parts, [Part { slots: 0..2, packs: 0..2 }, Part { slots: 4..6, packs: 2..6 }]);
    assert!(gradient_batches(&packs(4, &[0, 1, 2, 3]), 2).is_empty());
}

#[test]
fn the_mean_counts_what_was_not_computed() {
    let packs = packs(6, &[0, 2, 3]);
    let part = gradient_batches(&packs, 2)[0].clone();
    assert_eq!(part.slots, 0..3);
    let rule = |loss_mean| Rule::of(&ObjectiveSection { loss_mean, ..ObjectiveSection::default() });
    assert_eq!(rule(LossMean::Token).normaliser(&packs, &part, 9), 1.0 + 2.0 + 3.0);
    assert_eq!(rule(LossMean::Sequence).normaliser(&packs, &part, 9), 3.0);
}

#[test]
fn flat_groups_are_computed_for_their_kl_unless_they_are_skipped() {
    let item = |use_| Item { prompt: Default::default(), use_, sequences: Vec::new() };
    let mut config = RunConfig::default();
    config.objective.beta = 0.01;
    assert!(is_computed(&item(Use::Flat), &config));
    config.objective.skip_flat_groups = true;
    assert!(!is_computed(&item(Use::Flat), &config));
    assert!(is_computed(&item(Use::Train), &config) && !is_computed(&item(Use::Dropped), &config));
}
