//! The candle reference against the published model: features, logits, log-probs and GRPO gradients computed by transformers.
#![cfg(test)]
#![cfg(feature = "candle")]

mod candle_support;

use candle_support::{device, fixture::Fixture, max_abs_diff, norm, pack};
use quorum_engine::PolicyDist;
use quorum_engine::candle::CandleModel;

fn model(fixture: &Fixture) -> CandleModel {
    let checkpoint = &fixture.checkpoint;
    CandleModel::new(&checkpoint.config, checkpoint.layout.clone(), &fixture.slab, &device()).unwrap()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let difference = max_abs_diff(found, expected);
    println!("{what}: max |diff| {difference:.2e} (tolerance {tolerance:.0e})");
    assert!(difference <= tolerance, "{what}: {difference} > {tolerance}");
}

#[test]
fn vision_features_match() {
    let fixture = Fixture::open();
    let model = model(&fixture);
    for name in fixture.case_names().iter().filter(|name| *name != "text_only") {
        let prompt = fixture.prompt(name);
        let features = prompt.images.iter().flat_map(|image| {
            let features = model.vision(image).unwrap();
            features.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        assert_close(name, &features.collect::<Vec<_>>(), &fixture.floats(&format!("{name}.vision_out")), 5e-5);
    }
}

#[test]
fn logits_and_token_log_probs_match() {
    let fixture = Fixture::open();
    let model = model(&fixture);
    for name in fixture.case_names() {
        let prompt = fixture.prompt(&name);
        let logits = model.logits(&prompt).unwrap().to_vec2::<f32>().unwrap();
        assert_close(
            &format!("{name} last logits"),
            logits.last().unwrap(),
            &fixture.floats(&format!("{name}.last_logits")),
            3e-4,
        );
        if fixture.has(&format!("{name}.logits")) {
            assert_close(&format!("{name} logits"), &logits.concat(), &fixture.floats(&format!("{name}.logits")), 3e-4);
        }
        let log_probs = logits.iter().zip(&prompt.ids[1..]).map(|(row, &next)| {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            (f64::from(row[next as usize]) - sum.ln()) as f32
        });
        let expected = fixture.floats(&format!("{name}.token_logps"));
        assert_close(&format!("{name} token log-probs"), &log_probs.collect::<Vec<_>>(), &expected, 3e-4);
    }
}

/// The six frozen completions of the fixture, three a prompt; pad tokens removed.
fn completions(fixture: &Fixture) -> Vec<Vec<u32>> {
    let (ids, mask) = (fixture.ints("grpo.completion_ids"), fixture.ints("grpo.completion_mask"));
    let rows = ids.chunks(12).zip(mask.chunks(12));
    rows.map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(&id, _)| id as u32).collect()).collect()
}

const PROMPTS: [&str; 2] = ["img56", "img100"];

#[test]
fn completion_log_probs_match_at_both_temperatures() {
    let fixture = Fixture::open();
    let model = model(&fixture);
    let completions = completions(&fixture);
    for (key, temperature) in [("grpo.logps", 1.0), ("grpo.logps_temp0.7", 0.7)] {
        let expected = fixture.floats(key);
        for (i, name) in PROMPTS.iter().enumerate() {
            let prompt = fixture.prompt(name);
            let policy = PolicyDist { temperature, ..PolicyDist::unmasked() };
            let scores = model.score(&pack(&prompt, &completions[3 * i..3 * i + 3]), &policy).unwrap();
            for (j, log_probs) in scores.logprobs.iter().enumerate() {
                let row = 3 * i + j;
                assert_close(
                    &format!("{key} row {row}"),
                    log_probs,
                    &expected[12 * row..12 * row + log_probs.len()],
                    3e-4,
                );
            }
        }
    }
}

/// On-policy GRPO, loss = mean over completions of the mean over tokens of −ratio·advantage: its gradient by log-prob is −A / (n·tokens).
#[test]
fn grpo_gradient_matches_tensor_by_tensor() {
    let fixture = Fixture::open();
    let model = model(&fixture);
    let (completions, advantages) = (completions(&fixture), fixture.floats("grpo.advantages"));
    let layout = &fixture.checkpoint.layout;
    let mut gradient = vec![0.0f32; layout.total()];
    for (i, name) in PROMPTS.iter().enumerate() {
        let prompt = fixture.prompt(name);
        let rows = 3 * i..3 * i + 3;
        let factor = |row: usize| {
            let tokens = completions[row].len();
            vec![-advantages[row] / (completions.len() * tokens) as f32; tokens]
        };
        let factors: Vec<_> = rows.clone().map(factor).collect();
        let part = model.gradient(&pack(&prompt, &completions[rows]), &PolicyDist::unmasked(), &factors).unwrap();
        gradient.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }

    let expected = &fixture.expected["grpo"]["losses"]["on_policy_beta0_grpo"];
    let grads = expected["grads"].as_object().unwrap();
    assert_eq!(grads.len(), layout.entries().len());
    let (mut worst_norm, mut worst_dot) = (0.0f64, 0.0f64);
    for entry in layout.entries() {
        let (found, expected) = (&gradient[entry.range.clone()], &grads[&entry.name]);
        let reference = expected["norm"].as_f64().unwrap();
        let dot: f64 = found.iter().enumerate().map(|(i, &g)| f64::from(g) * (0.37 * i as f64 + 0.1).cos()).sum();
        worst_norm = worst_norm.max((norm(found) / reference - 1.0).abs());
        worst_dot = worst_dot.max((dot - expected["dot"].as_f64().unwrap()).abs() / reference);
    }
    let total = norm(&gradient) / expected["grad_total_norm"].as_f64().unwrap() - 1.0;
    println!(
        "gradient: worst norm {worst_norm:.2e} relative, worst dot {worst_dot:.2e} of the norm, total norm {total:.2e}"
    );
    assert!(worst_norm <= 1e-4 && worst_dot <= 1e-4 && total.abs() <= 1e-4);
}
