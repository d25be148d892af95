//! A batch → packs of this rank: images decoded, each view made as the worker made it, prompts encoded once for all completions of that view.

use crate::batch::{Batch, Item, Outline, TrainPack, Use};
use crate::error::LearnerError;
use quorum_core::config::{ObjectiveKind, RunConfig};
use quorum_core::seed;
use quorum_data::view::{self, ViewConfig};
use quorum_data::{Limits, decode};
use quorum_model::Processor;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Encoded images by content hash.
pub type Blobs = HashMap<String, Arc<[u8]>>;

/// Whether anything can be learned from an item.
pub fn is_computed(item: &Item, config: &RunConfig) -> bool {
    match item.use_ {
        Use::Train => true,
        // Nothing pulls on such a group but the reference.
        Use::Flat => {
            config.objective.kind == ObjectiveKind::Grpo && config.objective.beta > 0.0 && !skipped(item, config)
        }
        Use::Dropped => false,
    }
}

/// Whether the configuration leaves the item out of the batch, its loss mean included.
fn skipped(item: &Item, config: &RunConfig) -> bool {
    config.objective.skip_flat_groups && item.use_ == Use::Flat
}

/// What a batch asks to compute.
pub fn outline(batch: &Batch, config: &RunConfig) -> Outline {
    let views = |(slot, item): (usize, &Item)| {
        let views: BTreeSet<u32> = item.sequences.iter().map(|s| s.view).collect();
        views.into_iter().map(move |view| (slot, view)).collect::<Vec<_>>()
    };
    let items = || batch.items.iter().enumerate();
    let counted = items()
        .filter(|(_, item)| !skipped(item, config))
        .flat_map(|(slot, item)| item.sequences.iter().map(move |s| (slot, s.tokens.len())))
        .collect();
    let packs = items().filter(|(_, item)| is_computed(item, config)).flat_map(views).collect();
    Outline { packs, prompts: batch.items.len(), counted }
}

/// Encodes the packs `own` (slot and view) of a batch on `threads` threads, in that order; the result does not depend on the threads.
///
/// # Errors
/// Names the slot whose image or prompt cannot be encoded.
pub fn encode(
    batch: &Batch,
    own: &BTreeSet<(usize, u32)>,
    blobs: &Blobs,
    processor: &Processor,
    config: &RunConfig,
    threads: usize,
) -> Result<Vec<TrainPack>, LearnerError> {
    let one = |slot: usize| {
        let views: BTreeSet<u32> = own.range((slot, 0)..=(slot, u32::MAX)).map(|(_, view)| *view).collect();
        match batch.items.get(slot) {
            Some(item) if !views.is_empty() => encode_item(batch.step, slot, item, &views, blobs, processor, config)
                .map_err(|reason| format!("slot {slot}: {reason}")),
            _ => Ok(Vec::new()),
        }
    };
    let packs = in_order(threads, batch.items.len(), one)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|reason| LearnerError::Batch { step: batch.step, reason })?;
    Ok(packs.into_iter().flatten().collect())
}

fn encode_item(
    step: u64,
    slot: usize,
    item: &Item,
    wanted: &BTreeSet<u32>,
    blobs: &Blobs,
    processor: &Processor,
    config: &RunConfig,
) -> Result<Vec<TrainPack>, String> {
    let limits = Limits { max_pixels: config.data.max_image_pixels, max_bytes: config.data.max_image_bytes };
    let mut images = Vec::with_capacity(item.prompt.images.len());
    for hash in &item.prompt.images {
        let bytes = blobs.get(hash).ok_or_else(|| format!("image {hash} was not fetched"))?;
        images.push(decode(bytes, &limits).map_err(|e| e.to_string())?);
    }
    let settings = ViewConfig::from(&config.view);
    let seed = view::seed_of(seed::views_of_step(config.run.seed, step), item.prompt.row);
    let mut views: BTreeMap<u32, TrainPack> = BTreeMap::new();
    for sequence in item.sequences.iter().filter(|s| wanted.contains(&s.view)) {
        if let Some(pack) = views.get_mut(&sequence.view) {
            pack.sequences.push(sequence.clone());
            continue;
        }
        let seen: Vec<_> = images.iter().map(|image| view::apply(image, sequence.view, &settings, seed)).collect();
        let prompt = processor.encode_prompt(&item.prompt.text, &seen).map_err(|e| e.to_string())?;
        views.insert(sequence.view, TrainPack { slot, prompt, sequences: vec![sequence.clone()] });
    }
    Ok(views.into_values().collect())
}

/// `job(0..n)` on up to `threads` threads, results in order.
fn in_order<R: Send>(
    threads: usize,
    n: usize,
    job: impl Fn(usize) -> Result<R, String> + Sync,
) -> Vec<Result<R, String>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut mine = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                return mine;
            }
            mine.push((i, job(i)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.min(n)).map(|_| scope.spawn(work)).collect();
        let join = |h: std::thread::ScopedJoinHandle<'_, _>| {
            h.join().unwrap_or_else(|_| vec![(n, Err("encoding ended abnormally".into()))])
        };
        handles.into_iter().flat_map(join).collect::<Vec<_>>()
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, r)| r).collect()
}
