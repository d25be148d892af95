//! Cases: ids, positions, vision states, logits, log-probs, greedy tokens alone and in a batch.

use super::{Fixture, Report, Result, ids, max_diff};
use quorum_core::types::{Purpose, SampleKey, Sampling};
use quorum_engine::{GenRequest, PolicyDist};
use quorum_model::{EncodedImage, EncodedPrompt};
use serde_json::Value;

pub fn check(f: &Fixture, report: &mut Report) -> Result<()> {
    for (case, prompt) in f.cases().iter().zip(&f.prompts) {
        let name = case["name"].as_str().unwrap_or("case");
        report.equal(&format!("{name}.ids"), &prompt.ids, &ids(&case["input_ids"]));
        positions(f, case, prompt, name, report);
        if !prompt.images.is_empty() {
            vision(f, prompt, name, report)?;
        }
        logits(f, prompt, name, report)?;
        let alone = greedy(f, &[prompt], 16, &[])?;
        report.equal(&format!("{name}.greedy_16"), &alone[0], &ids(&case["greedy_16"]));
        let key = "greedy_16_repetition_penalty_1.05";
        if case[key].is_array() {
            report.equal(&format!("{name}.{key}"), &penalised(f, prompt)?, &ids(&case[key]));
        }
    }
    let all: Vec<&EncodedPrompt> = f.prompts.iter().collect();
    let together = greedy(f, &all, 16, &[])?;
    let alone = f.prompts.iter().map(|p| Ok(greedy(f, &[p], 16, &[])?.remove(0))).collect::<Result<Vec<_>>>()?;
    report.equal("batch.rows_equal_alone", &together, &alone);
    batch(f, report)
}

fn positions(f: &Fixture, case: &Value, prompt: &EncodedPrompt, name: &str, report: &mut Report) {
    if let Some((_, want)) = f.tensors.i64(&format!("{name}.position_ids")) {
        let mut ours: Vec<i64> = prompt.positions.iter().flatten().map(|&p| i64::from(p)).collect();
        ours.truncate(want.len());
        report.equal(&format!("{name}.positions"), &ours, &want);
    }
    if let Some(delta) = case["rope_delta"].as_i64() {
        report.equal(
            &format!("{name}.next_position"),
            &i64::from(prompt.next_position),
            &(prompt.ids.len() as i64 + delta),
        );
    }
}

fn vision(f: &Fixture, prompt: &EncodedPrompt, name: &str, report: &mut Report) -> Result<()> {
    let images: Vec<&EncodedImage> = prompt.images.iter().collect();
    let trace = f.engine.vision_trace(&f.weights, &images)?;
    let last = trace.blocks.last().cloned().unwrap_or_default();
    let first = trace.blocks.first().cloned().unwrap_or_default();
    for (stage, ours) in [
        ("patch_embed", &trace.patch_embed),
        ("block0_out", &first),
        ("last_block_out", &last),
        ("vision_out", &trace.out),
    ] {
        if let Some((_, want)) = f.tensors.f32(&format!("{name}.{stage}")) {
            report.check(&format!("{name}.{stage}"), max_diff(ours, &want), 2e-4);
        }
    }
    for (j, ours) in trace.deepstack.iter().enumerate() {
        if let Some((_, want)) = f.tensors.f32(&format!("{name}.deepstack.{j}")) {
            report.check(&format!("{name}.deepstack.{j}"), max_diff(ours, &want), 2e-4);
        }
    }
    Ok(())
}

fn logits(f: &Fixture, prompt: &EncodedPrompt, name: &str, report: &mut Report) -> Result<()> {
    let v = f.checkpoint.config.text.vocab_size;
    let ours = f.engine.logits(&f.weights, prompt)?;
    for (what, rows) in [("logits", prompt.ids.len()), ("logits_tail24", 24), ("last_logits", 1)] {
        if let Some((_, want)) = f.tensors.f32(&format!("{name}.{what}")) {
            let from = ours.len().saturating_sub(rows * v);
            report.check(&format!("{name}.{what}"), max_diff(&ours[from..], &want), 1e-3);
        }
    }
    if let Some((_, want)) = f.tensors.f32(&format!("{name}.token_logps")) {
        let log_prob = |row: &[f32], next: u32| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&z| f64::from(z - max).exp()).sum();
            (f64::from(row[next as usize] - max) - sum.ln()) as f32
        };
        let scored: Vec<f32> =
            ours.chunks_exact(v).zip(&prompt.ids[1..]).map(|(row, &next)| log_prob(row, next)).collect();
        report.check(&format!("{name}.token_logps"), max_diff(&scored, &want), 1e-3);
    }
    Ok(())
}

fn greedy(f: &Fixture, prompts: &[&EncodedPrompt], n: u32, stop: &[u32]) -> Result<Vec<Vec<u32>>> {
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, max_new_tokens: n };
    let key = SampleKey { seed: 0, purpose: Purpose::EvalGreedy, step: 0, prompt: 0, sample: 0, view: 0 };
    let policy = PolicyDist { stop: stop.to_vec(), ..PolicyDist::unmasked() };
    let groups: Vec<GenRequest> = prompts
        .iter()
        .map(|&prompt| GenRequest { prompt, samples: vec![key], sampling, policy: policy.clone() })
        .collect();
    let samples = f.engine.generate(&f.weights, &groups, &|| false)?;
    Ok(samples.into_iter().flatten().map(|s| s.tokens).collect())
}

/// Greedy tokens with transformers' repetition penalty 1.05 over prompt and response, without a cache.
fn penalised(f: &Fixture, prompt: &EncodedPrompt) -> Result<Vec<u32>> {
    let v = f.checkpoint.config.text.vocab_size;
    let mut grown = prompt.clone();
    let mut out = Vec::new();
    for t in 0..16 {
        let all = f.engine.logits(&f.weights, &grown)?;
        let mut row = all[all.len() - v..].to_vec();
        let mut seen = grown.ids.clone();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            let z = &mut row[id as usize];
            *z = if *z < 0.0 { *z * 1.05 } else { *z / 1.05 };
        }
        let best = (0..v).fold(0, |b, i| if row[i] > row[b] { i } else { b }) as u32;
        out.push(best);
        grown.ids.push(best);
        for p in &mut grown.positions {
            p.push(prompt.next_position + t);
        }
        grown.next_position += 1;
    }
    Ok(out)
}

/// The fixture's batch: rows that stop early are filled with the pad token there.
fn batch(f: &Fixture, report: &mut Report) -> Result<()> {
    let info = &f.json["batch_left_pad"];
    let names: Vec<&str> = info["cases"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let find = |n: &str| f.cases().iter().position(|c| c["name"] == n);
    let prompts: Vec<&EncodedPrompt> = names.iter().filter_map(|n| find(n).map(|i| &f.prompts[i])).collect();
    if prompts.is_empty() {
        return Ok(());
    }
    let want: Vec<Vec<u32>> = info["greedy_16"].as_array().into_iter().flatten().map(ids).collect();
    report.equal("batch.greedy_16", &greedy(f, &prompts, 16, &[])?, &want);
    let stop = info["eos_override"]["eos_token_id"].as_u64().unwrap_or(0) as u32;
    let pad = f.json["pad_id"].as_u64().unwrap_or(0) as u32;
    let mut ours = greedy(f, &prompts, 16, &[stop])?;
    for row in &mut ours {
        row.resize(16, pad);
    }
    let want: Vec<Vec<u32>> = info["eos_override"]["output"].as_array().into_iter().flatten().map(ids).collect();
    report.equal("batch.eos_override", &ours, &want);
    Ok(())
}
