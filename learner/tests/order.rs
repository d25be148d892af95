//! Order and cutting of a step's packs.

use quorum_core::config::{LossMean, ObjectiveSection, RunConfig};
use quorum_learner::batch::{Item, Outline, Part, Use, gradient_batches, own_packs};
use quorum_learner::encode::is_computed;
use quorum_learner::objective::Rule;
use quorum_learner::share::Share;

/// Two packs a slot, but none for the slots in `without`.
fn outline(prompts: usize, without: &[usize]) -> Outline {
    let packs = (0..prompts).filter(|s| !without.contains(s)).flat_map(|s| [(s, 0), (s, 1)]).collect();
    Outline { packs, prompts, counted: (0..prompts).map(|s| (s, s + 1)).collect() }
}

#[test]
fn slots_are_cut_contiguously_even_when_uneven() {
    let parts = gradient_batches(&outline(7, &[]), 3, Share::all(8));
    let slots: Vec<_> = parts.iter().map(|p| p.slots.clone()).collect();
    assert_eq!(slots, [0..2, 2..4, 4..7]);
    assert_eq!(parts.iter().map(|p| p.packs.clone()).collect::<Vec<_>>(), [0..4, 4..8, 8..14]);
}

#[test]
fn missing_packs_do_not_shift_the_cuts_and_empty_parts_are_left_out() {
    let parts = gradient_batches(&outline(6, &[0, 2, 3]), 3, Share::all(8));
    let part = |slots, packs: std::ops::Range<usize>| Part { slots, own: packs.clone(), packs };
    assert_eq!(parts, [part(0..2, 0..2), part(4..6, 2..6)]);
    assert!(gradient_batches(&outline(4, &[0, 1, 2, 3]), 2, Share::all(8)).is_empty());
}

#[test]
fn ranks_share_every_gradient_batch_and_agree_on_what_there_is() {
    let whole = outline(5, &[1]);
    let shares = [0, 1, 2].map(|rank| Share { rank, world: 3, lanes: 4 });
    let parts = shares.map(|share| gradient_batches(&whole, 2, share));
    for other in &parts {
        let seen = |p: &[Part]| p.iter().map(|p| (p.slots.clone(), p.packs.clone())).collect::<Vec<_>>();
        assert_eq!(seen(other), seen(&parts[0]));
    }
    // Two packs, then six, each counted from the start of its part: lanes 0 1 | 0 1 2 3 0 1.
    let own: Vec<Vec<_>> = parts.iter().map(|p| p.iter().map(|p| p.own.clone()).collect()).collect();
    assert_eq!(own, [vec![0..1, 1..4], vec![0..1, 1..3], vec![0..0, 0..1]]);
    let packs = [0, 1, 2].map(|r| own_packs(&whole, &parts[r], shares[r]));
    assert_eq!(packs[2].iter().collect::<Vec<_>>(), [&(3, 0)]);
    let mut all: Vec<_> = packs.iter().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(all, whole.packs);
}

#[test]
fn the_mean_counts_what_was_not_computed() {
    let packs = outline(6, &[0, 2, 3]);
    let part = gradient_batches(&packs, 2, Share::all(8))[0].clone();
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
