//! GRPO on frozen completions: log-probs, all losses, per-parameter gradients, three AdamW steps.

use super::{Fixture, Report, Result, max_diff};
use quorum_core::objective::{Aggregation, GrpoRule, KlEstimator, Sequence, grpo, normaliser};
use quorum_engine::{AdamW, Pack, PackScores, PolicyDist, Trainer};
use serde_json::Value;
use std::sync::Mutex;

/// Frozen completions with their log-probs; row i belongs to prompt i / group.
struct Frozen {
    group: usize,
    completions: Vec<Vec<u32>>,
    old: Vec<Vec<f32>>,
    reference: Vec<Vec<f32>>,
    advantages: Vec<f32>,
    max_len: usize,
}

impl Frozen {
    fn read(f: &Fixture) -> Result<Self> {
        let missing = |n: &str| format!("expected.safetensors has no grpo.{n}");
        let (shape, tokens) = f.tensors.i64("grpo.completion_ids").ok_or_else(|| missing("completion_ids"))?;
        let (_, mask) = f.tensors.i64("grpo.completion_mask").ok_or_else(|| missing("completion_mask"))?;
        let lengths: Vec<usize> = mask.chunks_exact(shape[1]).map(|m| m.iter().sum::<i64>() as usize).collect();
        let cut = |name: &str| -> Result<Vec<Vec<f32>>> {
            let (_, all) = f.tensors.f32(&format!("grpo.{name}")).ok_or_else(|| missing(name))?;
            Ok(all.chunks_exact(shape[1]).zip(&lengths).map(|(row, &n)| row[..n].to_vec()).collect())
        };
        let (_, advantages) = f.tensors.f32("grpo.advantages").ok_or_else(|| missing("advantages"))?;
        Ok(Self {
            group: f.json["grpo"]["G"].as_u64().unwrap_or(1) as usize,
            completions: tokens
                .chunks_exact(shape[1])
                .zip(&lengths)
                .map(|(row, &n)| row[..n].iter().map(|&t| t as u32).collect())
                .collect(),
            old: cut("old_logps")?,
            reference: cut("ref_logps")?,
            advantages,
            max_len: shape[1],
        })
    }

    fn packs<'a>(&'a self, f: &'a Fixture) -> Vec<Pack<'a>> {
        let prompts = f.json["grpo"]["prompts"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        let groups = self.completions.chunks(self.group);
        prompts
            .zip(groups)
            .map(|(p, c)| Pack { prompt: &f.prompts[p as usize], completions: c.iter().map(Vec::as_slice).collect() })
            .collect()
    }
}

pub fn check(f: &Fixture, report: &mut Report) -> Result<()> {
    if !f.json["grpo"].is_object() {
        return Ok(());
    }
    let frozen = Frozen::read(f)?;
    let packs = frozen.packs(f);
    for (name, temperature) in [("logps", 1.0), ("logps_temp0.7", 0.7)] {
        let policy = PolicyDist { temperature, ..PolicyDist::unmasked() };
        let scores = f.engine.score(&f.weights, &packs, &policy)?;
        let ours: Vec<f32> =
            scores.iter().flat_map(|s| &s.logprobs).flat_map(|row| padded(row, frozen.max_len)).collect();
        let want = f.tensors.f32(&format!("grpo.{name}")).map(|t| t.1).unwrap_or_default();
        report.check(&format!("grpo.{name}"), max_diff(&ours, &want), 1e-3);
    }
    for (name, variant) in f.json["grpo"]["losses"].as_object().into_iter().flatten() {
        variant_check(f, &frozen, &packs, name, variant, report)?;
    }
    adamw(f, &frozen, &packs, report)
}

fn padded(row: &[f32], n: usize) -> Vec<f32> {
    let mut row = row.to_vec();
    row.resize(n, 0.0);
    row
}

fn rule(v: &Value) -> GrpoRule {
    let number = |k: &str| v[k].as_f64().unwrap_or(0.0) as f32;
    let aggregation = match v["agg"].as_str() {
        Some("token-mean") => Aggregation::Token,
        Some("dr_grpo") => Aggregation::Constant,
        _ => Aggregation::Sequence,
    };
    let kl = if v["kl_clamp"] == true { KlEstimator::K3Clamped } else { KlEstimator::K3 };
    let dual_clip = v["dual"].as_f64().map(|x| x as f32);
    GrpoRule {
        epsilon_low: number("lo"),
        epsilon_high: number("hi"),
        dual_clip,
        beta: number("beta"),
        aggregation,
        kl,
        ..GrpoRule::default()
    }
}

/// Accumulates one batch; returns its loss.
fn accumulate(
    trainer: &mut Trainer,
    weights: &[f32],
    frozen: &Frozen,
    packs: &[Pack],
    rule: &GrpoRule,
    on_policy: bool,
) -> Result<f64> {
    let norm = normaliser(rule.aggregation, frozen.completions.iter().map(Vec::len), frozen.max_len);
    let losses = Mutex::new(vec![0.0; packs.len()]);
    let objective = |pack: usize, scores: &PackScores| {
        let mut total = 0.0;
        let rows = scores.logprobs.iter().enumerate().map(|(k, logp)| {
            let i = pack * frozen.group + k;
            let old = if on_policy { logp } else { &frozen.old[i] };
            let s = Sequence {
                logp,
                old,
                reference: Some(&frozen.reference[i]),
                sampler: None,
                advantage: frozen.advantages[i],
            };
            let loss = grpo(&s, rule, norm).expect("slices of equal length");
            total += loss.total();
            loss.grad
        });
        let rows = rows.collect();
        losses.lock().expect("no panic while held")[pack] = total;
        rows
    };
    trainer.accumulate(weights, packs, &PolicyDist::unmasked(), &objective)?;
    let losses = losses.into_inner().map_err(|e| e.to_string())?;
    Ok(losses.iter().sum())
}

fn variant_check(
    f: &Fixture,
    frozen: &Frozen,
    packs: &[Pack],
    name: &str,
    v: &Value,
    report: &mut Report,
) -> Result<()> {
    let mut trainer = Trainer::new(f.engine.clone(), 2, AdamW::default());
    let loss = accumulate(&mut trainer, &f.weights, frozen, packs, &rule(v), v["old"] == "self")?;
    report.check(&format!("grpo.{name}.loss"), (loss - v["loss"].as_f64().unwrap_or(f64::NAN)).abs(), 1e-4);
    let gradient = trainer.gradient();
    let norm = |g: &[f32]| g.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let want = v["grad_total_norm"].as_f64().unwrap_or(f64::NAN);
    report.check(&format!("grpo.{name}.grad_norm"), (norm(gradient) / want - 1.0).abs(), 1e-3);
    let (mut worst_norm, mut worst_dot, mut count) = (0f64, 0f64, 0);
    for (parameter, want) in v["grads"].as_object().into_iter().flatten() {
        let entry = f.checkpoint.layout.get(parameter).ok_or_else(|| format!("the layout has no {parameter}"))?;
        let g = &gradient[entry.range.clone()];
        let dot: f64 = g.iter().enumerate().map(|(i, &x)| f64::from(x) * (0.37 * i as f64 + 0.1).cos()).sum();
        let reference = want["norm"].as_f64().unwrap_or(f64::NAN);
        let norm_error = (norm(g) - reference).abs() / reference.max(1e-12);
        let dot_error = (dot - want["dot"].as_f64().unwrap_or(f64::NAN)).abs() / reference.max(1e-12);
        if !(norm_error <= 1e-3 && dot_error <= 1e-3) {
            report.check(&format!("grpo.{name}.grad.{parameter}"), norm_error.max(dot_error), 1e-3);
        }
        worst_norm = worst_norm.max(norm_error);
        worst_dot = worst_dot.max(dot_error);
        count += 1;
    }
    if count > 0 {
        report.check(&format!("grpo.{name}.parameter_norms"), worst_norm, 1e-3);
        report.check(&format!("grpo.{name}.parameter_dots"), worst_dot, 1e-3);
        report.equal(&format!("grpo.{name}.parameters"), &count, &f.checkpoint.layout.entries().len());
    }
    Ok(())
}

fn adamw(f: &Fixture, frozen: &Frozen, packs: &[Pack], report: &mut Report) -> Result<()> {
    let info = &f.json["grpo"]["adamw"];
    let variant = &f.json["grpo"]["losses"][info["loss_variant"].as_str().unwrap_or("")];
    let number = |k: &str| info[k].as_f64().unwrap_or(0.0) as f32;
    let beta = |i: usize| info["betas"][i].as_f64().unwrap_or(0.0) as f32;
    let optim = AdamW {
        beta1: beta(0),
        beta2: beta(1),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        max_grad_norm: number("max_grad_norm"),
    };
    let mut trainer = Trainer::new(f.engine.clone(), 2, optim);
    let mut weights = f.weights.clone();
    for (i, h) in info["history"].as_array().into_iter().flatten().enumerate() {
        let loss = accumulate(&mut trainer, &weights, frozen, packs, &rule(variant), false)?;
        report.check(&format!("adamw.{i}.loss"), (loss - h["loss"].as_f64().unwrap_or(f64::NAN)).abs(), 1e-4);
        if let Some(want) = h["grad_norm_before_clip"].as_f64() {
            let stats = trainer.step(&mut weights, number("lr"))?;
            report.check(&format!("adamw.{i}.grad_norm"), (stats.grad_norm / want - 1.0).abs(), 1e-3);
        }
    }
    let mut worst = 0f64;
    for (parameter, want) in info["param_delta_norm_after_3_steps"].as_object().into_iter().flatten() {
        let entry = f.checkpoint.layout.get(parameter).ok_or_else(|| format!("the layout has no {parameter}"))?;
        let moved: f64 = entry.range.clone().map(|i| (f64::from(weights[i]) - f64::from(f.weights[i])).powi(2)).sum();
        let want = want.as_f64().unwrap_or(f64::NAN);
        let error = (moved.sqrt() - want).abs() / want.max(1e-12);
        worst = if error > worst || error.is_nan() { error } else { worst };
    }
    report.check("adamw.parameter_deltas", worst, 1e-3);
    Ok(())
}
