//! The clipped objective and the advantages against losses and gradients that other trainers computed on raw arrays.
#![allow(clippy::unwrap_used)]

use quorum_core::advantage::{AdvantageRule, Baseline, advantages};
use quorum_core::objective::{
    Aggregation, GrpoRule, KlEstimator, RatioLevel, Sequence, Stats, grpo, k3, k3_clamped, normaliser, sft,
};
use serde_json::Value;

fn fixture(name: &str) -> Value {
    let path = format!("{}/../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(v: &Value) -> Vec<f32> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn rows(v: &Value) -> Vec<Vec<f32>> {
    v.as_array().unwrap().iter().map(floats).collect()
}

fn rule_of(case: &Value) -> GrpoRule {
    let number = |k: &str| case[k].as_f64().unwrap() as f32;
    GrpoRule {
        epsilon_low: number("epsilon_low"),
        epsilon_high: number("epsilon_high"),
        dual_clip: case["delta"].as_f64().map(|d| d as f32),
        beta: number("beta"),
        aggregation: match case["loss_type"].as_str().unwrap() {
            "grpo" => Aggregation::Sequence,
            "bnpo" | "dapo" => Aggregation::Token,
            "dr_grpo" => Aggregation::Constant,
            other => panic!("loss type {other} is not covered"),
        },
        ratio: if case["ratio_level"] == "sequence" { RatioLevel::Sequence } else { RatioLevel::Token },
        kl: if case["bias_corrected_kl"] == true { KlEstimator::K3Corrected } else { KlEstimator::K3 },
        ..GrpoRule::default()
    }
}

#[test]
fn all_loss_cases_agree_in_loss_and_gradient() {
    let f = fixture("grpo_loss_expected.json");
    let (logps, olds, refs) = (rows(&f["logps"]), rows(&f["old_logps"]), rows(&f["ref_logps"]));
    let lengths: Vec<usize> = rows(&f["mask"]).iter().map(|m| m.iter().sum::<f32>() as usize).collect();
    let advantage = floats(&f["advantages"]);
    let limit = f["max_completion_length"].as_u64().unwrap() as usize;
    let cases = f["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 18);
    let mut dual = 0;
    for (n, case) in cases.iter().enumerate() {
        let rule = rule_of(case);
        let divisor = normaliser(rule.aggregation, lengths.iter().copied(), limit);
        let want_grad = rows(&case["grad"]);
        let mut total = 0.0;
        let mut stats = Stats::default();
        for i in 0..logps.len() {
            let t = lengths[i];
            let old = if case["old"] == "self" { &logps[i] } else { &olds[i] };
            let sequence = Sequence {
                logp: &logps[i][..t],
                old: &old[..t],
                reference: Some(&refs[i][..t]),
                sampler: None,
                advantage: advantage[i],
            };
            let out = grpo(&sequence, &rule, divisor).unwrap();
            total += out.total();
            stats.merge(&out.stats);
            for (k, (got, want)) in out.grad.iter().zip(&want_grad[i]).enumerate() {
                assert!((got - want).abs() < 2e-6, "case {n} sequence {i} token {k}: gradient {got}, want {want}");
            }
            assert!(want_grad[i][t..].iter().all(|g| *g == 0.0));
        }
        let want = case["loss"].as_f64().unwrap();
        assert!((total - want).abs() < 2e-6, "case {n}: loss {total}, want {want}");
        assert_eq!(stats.tokens as usize, lengths.iter().sum::<usize>());
        if rule.dual_clip.is_some() {
            dual = stats.clipped_dual;
        }
    }
    assert_eq!(dual, f["n_dual_clip_active"].as_u64().unwrap());
}

#[test]
fn k3_table() {
    let table = &fixture("grpo_loss_expected.json")["kl_table"];
    for (i, d) in floats(&table["ref_minus_logp"]).into_iter().enumerate() {
        let d = f64::from(d);
        let near = |got: f64, want: f64| (got - want).abs() <= 2e-6 * want.abs().max(1.0);
        assert!(near(k3(d).0, table["k3"][i].as_f64().unwrap()), "k3({d})");
        assert!(near(k3_clamped(d).0, table["k3_clamped"][i].as_f64().unwrap()), "clamped k3({d})");
        assert!(k3(d).0 >= 0.0);
    }
}

#[test]
fn at_ratio_one_the_gradient_is_exactly_the_advantage() {
    let logp = [-0.1f32, -2.3, -0.7];
    for (aggregation, divisor) in
        [(Aggregation::Token, 7.0), (Aggregation::Sequence, 3.0), (Aggregation::Constant, 96.0)]
    {
        for advantage in [0.866_023_9_f32, -1.25, 0.0] {
            let rule = GrpoRule { beta: 0.0, aggregation, ..GrpoRule::default() };
            let s = Sequence { logp: &logp, old: &logp, reference: None, sampler: None, advantage };
            let out = grpo(&s, &rule, divisor).unwrap();
            let n = if aggregation == Aggregation::Sequence { divisor * 3.0 } else { divisor };
            let want = (-f64::from(advantage) / n) as f32;
            assert!(out.grad.iter().all(|g| *g == want), "{:?} is not {want}", out.grad);
            assert_eq!(out.stats.ratio_max, 1.0);
        }
    }
}

#[test]
fn the_gradient_is_the_derivative_of_the_loss() {
    // Central differences, away from the kinks of the clips; the combination no fixture has: sequence ratio with corrected KL.
    let logp = [-0.5f32, -1.5, -0.25, -2.0];
    let (old, reference) = ([-0.6f32, -1.4, -0.3, -2.05], [-0.7f32, -1.0, -0.2, -2.5]);
    for ratio in [RatioLevel::Token, RatioLevel::Sequence] {
        for kl in [KlEstimator::K3, KlEstimator::K3Clamped, KlEstimator::K3Corrected] {
            let rule = GrpoRule { beta: 0.3, ratio, kl, ..GrpoRule::default() };
            let loss = |logp: &[f32]| {
                let s = Sequence {
                    logp,
                    old: &old,
                    reference: Some(&reference),
                    sampler: Some(&reference),
                    advantage: -0.8,
                };
                grpo(&s, &rule, 2.0).unwrap()
            };
            let grad = loss(&logp).grad;
            for t in 0..logp.len() {
                let h = 1.0 / 1024.0;
                let (mut up, mut down) = (logp, logp);
                up[t] += h;
                down[t] -= h;
                let slope = (loss(&up).total() - loss(&down).total()) / f64::from(2.0 * h);
                assert!(
                    (slope - f64::from(grad[t])).abs() < 1e-5,
                    "{ratio:?} {kl:?} token {t}: {slope} against {}",
                    grad[t]
                );
            }
        }
    }
}

#[test]
fn the_importance_weight_is_cut_and_scales_the_policy_term() {
    let logp = [-1.0f32, -1.0];
    let sampler = [-1.5f32, -9.0];
    let rule = GrpoRule { beta: 0.0, aggregation: Aggregation::Token, importance_cap: 2.0, ..GrpoRule::default() };
    let s = Sequence { logp: &logp, old: &logp, reference: None, sampler: Some(&sampler), advantage: 1.0 };
    let out = grpo(&s, &rule, 2.0).unwrap();
    assert!((f64::from(out.grad[0]) + 0.5f64.exp() / 2.0).abs() < 1e-6);
    assert_eq!(out.grad[1], -1.0);
}

#[test]
fn parts_of_a_batch_add_up_and_sft_is_the_mean_log_loss() {
    let logp = [-1.0f32, -2.0, -3.0];
    let out = sft(&logp, Aggregation::Token, 3.0);
    assert!((out.total() - 2.0).abs() < 1e-12);
    assert!(out.grad.iter().all(|g| *g == -1.0 / 3.0));
    let parts = sft(&logp[..1], Aggregation::Token, 3.0).total() + sft(&logp[1..], Aggregation::Token, 3.0).total();
    assert!((parts - out.total()).abs() < 1e-12);
    assert!((sft(&logp, Aggregation::Sequence, 2.0).total() - 1.0).abs() < 1e-12);
}

#[test]
fn what_does_not_fit_is_named() {
    let logp = [-1.0f32];
    let rule = GrpoRule::default();
    let s = Sequence { logp: &logp, old: &[], reference: None, sampler: None, advantage: 1.0 };
    assert!(grpo(&s, &rule, 1.0).unwrap_err().to_string().contains("old log-probs has 0 entries for 1 tokens"));
    let s = Sequence { old: &logp, ..s };
    assert!(grpo(&s, &rule, 1.0).unwrap_err().to_string().contains("no reference log-probs"));
    // Log-ratios far outside every clip stay finite.
    let s = Sequence { old: &[-800.0], reference: Some(&logp), advantage: -1.0, ..s };
    let out = grpo(&s, &GrpoRule { dual_clip: None, ..rule }, 1.0).unwrap();
    assert!(out.total().is_finite() && out.grad[0] == 0.0);
    let empty = Sequence { logp: &[], old: &[], reference: Some(&[]), sampler: None, advantage: 1.0 };
    assert_eq!(grpo(&empty, &GrpoRule::default(), 1.0).unwrap().total(), 0.0);
}

#[test]
fn advantages_agree_with_other_trainers() {
    let groups = fixture("advantages_expected.json");
    for group in groups.as_array().unwrap() {
        let rewards = floats(&group["rewards"]);
        for (column, baseline, epsilon) in [
            ("trl_group(eps1e-4)", Baseline::GroupStd, 1e-4),
            ("easyr1_grpo(eps1e-6)", Baseline::GroupStd, 1e-6),
            ("no_scale(dr_grpo)", Baseline::Mean, 0.0),
            ("rloo", Baseline::LeaveOneOut, 0.0),
        ] {
            let got = advantages(&rewards, &AdvantageRule { baseline, epsilon });
            assert!(got.iter().sum::<f32>().abs() < 1e-5, "INV-6: {got:?}");
            let Some(want) = group[column].as_array() else { continue };
            for (g, w) in got.iter().zip(want) {
                // The peers subtract in single precision; a group of one has no leave-one-out mean.
                let w = w.as_f64().unwrap_or(0.0);
                assert!((f64::from(*g) - w).abs() < 2e-5 * w.abs().max(1.0), "{column} of {rewards:?}: {got:?}");
            }
        }
    }
    let unanimous = advantages(&[0.1, 0.1, 0.1], &AdvantageRule::default());
    assert_eq!(unanimous, [0.0, 0.0, 0.0]);
    assert!(advantages(&[], &AdvantageRule::default()).is_empty());
}
