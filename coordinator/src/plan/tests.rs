//! The memory model on published shapes, and what depends on what.

use super::memory::{Demand, PromptSize, learner, worker};
use super::shapes::panel_elements;
use super::training::training;
use super::{Machine, MemoryPlan, Model, Processes, memory_plan};
use quorum_core::config::{LoraSection, Precision, TrainSection};
use quorum_model::ModelConfig;

fn model(name: &str) -> Model {
    let path = format!("{}/../tests/configs/plan/{name}.json", env!("CARGO_MANIFEST_DIR"));
    Model::new(ModelConfig::from_json(std::fs::read(path).unwrap()).unwrap(), true)
}

fn demand(m: &Model, train: &TrainSection) -> Demand {
    let (tokens, patches) = if m.shapes.vision.is_some() { (700, 2400) } else { (300, 0) };
    let d = Demand {
        reference: true,
        gradient_batches: 1,
        lanes: 2,
        learner_threads: 2,
        worker_threads: 1,
        prompts_per_step: 16,
        group_size: 8,
        train_size: 8,
        most_samples: 8,
        views: 1,
        prompts_per_lease: 4,
        max_new_tokens: 256,
        prompt: PromptSize {
            longest_tokens: tokens,
            usual_tokens: tokens / 2,
            longest_patches: patches,
            usual_patches: patches / 2,
        },
        data_bytes: 1 << 20,
        ..Demand::default()
    };
    training(train, &m.config, &m.layout, m.stored_bf16).unwrap().apply(&d)
}

#[test]
fn published_models_have_their_published_sizes() {
    for (name, millions) in
        [("qwen2.5-vl-3b", 3754.6), ("qwen2.5-vl-7b", 8292.2), ("qwen2.5-coder-0.5b", 494.0), ("smollm2-135m", 134.5)]
    {
        let m = model(name);
        let (s, parts) = (&m.shapes, m.shapes.parts);
        let found = s.elements as f64 / 1e6;
        assert!((found - millions).abs() < 0.001 * millions, "{name}: {found} M");
        assert_eq!(parts.vision + parts.embedding + parts.decoder + parts.head, s.elements);
        // Everything but norms, biases and an untied embedding is multiplied with.
        let table = if parts.head > 0 { parts.embedding } else { 0 };
        let panels: u64 = m.layout.entries().iter().filter_map(|e| panel_elements(&m.config, e)).sum();
        let share = panels as f64 / (s.elements - table) as f64;
        assert!((0.999..1.01).contains(&share), "{name}: {share}");
    }
}

#[test]
fn each_setting_changes_what_it_should() {
    let m = model("qwen2.5-vl-3b");
    let s = &m.shapes;
    let full = TrainSection::default();
    let d = demand(&m, &full);
    let base = learner(s, &d);
    assert_eq!((base.optimizer, base.gradients), (8 * s.elements, 8 * s.elements));
    assert_eq!((base.reference, base.frozen), (4 * s.elements, 0));
    assert_eq!(learner(s, &Demand { lanes: 1, ..d.clone() }).gradients, 4 * s.elements);
    assert_eq!(learner(s, &Demand { reference: false, ..d.clone() }).reference, 0);
    let less = learner(s, &demand(&m, &TrainSection { checkpointing: true, ..full.clone() }));
    assert!(less.activations < base.activations / 3, "{} {}", less.activations, base.activations);
    let bf16 = learner(s, &demand(&m, &TrainSection { precision: Precision::Bf16, ..full.clone() }));
    assert_eq!(2 * bf16.panels, base.panels);
    let part = TrainSection { freeze: vec!["vision".into(), "embeddings".into()], ..full.clone() };
    let frozen = learner(s, &demand(&m, &part));
    assert_eq!(frozen.optimizer, 8 * s.parts.decoder);
    assert!(frozen.frozen >= 2 * (s.parts.vision + s.parts.embedding) && frozen.activations < base.activations);
    let lora = TrainSection { lora: LoraSection { rank: 16, ..LoraSection::default() }, ..full };
    let adapted = learner(s, &demand(&m, &lora));
    assert!(adapted.total() < base.total() * 2 / 5, "adapters must cost less than 40 %");
    assert!(adapted.gradients < base.gradients / 50 && adapted.frozen > 2 * s.elements);
}

#[test]
fn a_workers_cache_is_what_its_leases_need() {
    let m = model("qwen2.5-vl-3b");
    let d = demand(&m, &TrainSection::default());
    let w = worker(&m.shapes, &d);
    assert!(w.gradients == 0 && w.optimizer == 0);
    // 36 layers × 2 heads × 128 × 4 bytes, keys and values of 4 prompts of 700 tokens and of 32 × 256 sampled ones.
    assert_eq!(w.kv, 36 * 2 * 128 * 4 * (4 * (704 + 700) + 32 * 256 * 2));
    assert_eq!(worker(&m.shapes, &Demand { prompts_per_lease: 8, ..d }).kv, 2 * w.kv);
}

#[test]
fn a_model_that_does_not_fit_comes_with_remedies_that_do() {
    let m = model("qwen2.5-vl-7b");
    let train = TrainSection::default();
    let d = demand(&m, &train);
    let machine = Machine { ram: 64 << 30, available: 60 << 30, cores: 2 };
    let MemoryPlan { fits, remedies, total, .. } = memory_plan(&m, &train, &d, 2, machine);
    assert!(!fits && total > machine.ram, "7 B parameters train in full in {total} bytes?");
    assert_eq!(total, Processes::of(&m.shapes, &d).total(2));
    for word in ["--workers 1", "lanes=1", "lora.rank", "freeze", "bf16", "checkpointing"] {
        let r = remedies.iter().find(|r| r.change.contains(word)).unwrap_or_else(|| panic!("{word}: {remedies:?}"));
        assert!(r.total < total, "{r:?}");
    }
    let last = remedies.last().unwrap();
    assert!(last.fits && remedies.iter().all(|r| r.total >= last.total), "{remedies:#?}");
    let small = model("smollm2-135m");
    assert!(memory_plan(&small, &train, &demand(&small, &train), 1, machine).fits);
}
