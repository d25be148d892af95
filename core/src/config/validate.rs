//! Every mistake of a configuration at once, each naming its key and what to do.

use super::{AnswerForm, ConfigError, ObjectiveKind, RunConfig};
use crate::reward::RewardSource;

/// Checks ranges and combinations.
pub(super) fn validate(c: &RunConfig) -> Result<(), ConfigError> {
    let mut wrong = Vec::new();
    let mut need = |ok: bool, message: &str| {
        if !ok {
            wrong.push(message.to_owned());
        }
    };
    need(
        c.run.mirror.is_empty()
            || c.run.mirror.strip_prefix("s3://").is_some_and(|rest| !rest.starts_with('/') && !rest.is_empty()),
        "run.mirror must be s3://BUCKET/PREFIX, or empty",
    );
    need(c.rollout.prompts_per_step > 0, "rollout.prompts_per_step must be at least 1");
    need(
        c.rollout.group_size >= 2 || c.objective.kind == ObjectiveKind::Sft,
        "rollout.group_size must be at least 2: a group of one has no advantage",
    );
    need(
        c.rollout.train_size <= c.rollout.group_size,
        "rollout.train_size must not exceed rollout.group_size; 0 trains on all",
    );
    need(c.rollout.temperature > 0.0 && c.rollout.temperature.is_finite(), "rollout.temperature must be above 0");
    need(c.rollout.top_p > 0.0 && c.rollout.top_p <= 1.0, "rollout.top_p must be in (0, 1]; 1 switches it off");
    need(c.rollout.max_new_tokens > 0, "rollout.max_new_tokens must be at least 1");
    need(
        c.vote.min_votes <= c.rollout.group_size || c.objective.kind == ObjectiveKind::Sft,
        "vote.min_votes must not exceed rollout.group_size: no group could ever be paid",
    );
    need(
        (0.0..=1.0).contains(&c.vote.band_low)
            && (0.0..=1.0).contains(&c.vote.band_high)
            && c.vote.band_low <= c.vote.band_high,
        "vote.band_low and vote.band_high must lie in 0..1, the low one first",
    );
    need(c.view.count > 0, "view.count must be at least 1; 1 means no augmentation");
    let (views, group) = (c.view.count, c.rollout.group_size.max(1));
    need(
        views <= group,
        &format!(
            "view.count is {views}, more than rollout.group_size {group}; set view.count to {group} or less (1 = no augmentation)"
        ),
    );
    for (key, v) in [("shift", c.view.shift), ("scale", c.view.scale), ("contrast", c.view.contrast)] {
        need((0.0..=0.5).contains(&v), &format!("view.{key} must be between 0 and 0.5"));
    }
    need((0.0..=180.0).contains(&c.view.rotate), "view.rotate must be between 0 and 180 degrees");
    need(c.objective.epsilon_low >= 0.0 && c.objective.epsilon_low < 1.0, "objective.epsilon_low must be in [0, 1)");
    need(c.objective.epsilon_high >= 0.0, "objective.epsilon_high must not be negative");
    need(
        c.objective.dual_clip == 0.0 || c.objective.dual_clip > 1.0,
        "objective.dual_clip must exceed 1, or be 0 to switch it off",
    );
    need(c.objective.beta >= 0.0 && c.objective.beta.is_finite(), "objective.beta must be a number of at least 0");
    need(
        c.objective.advantage_epsilon > 0.0 && c.objective.advantage_epsilon.is_finite(),
        "objective.advantage_epsilon must be above 0",
    );
    need(c.optim.epsilon > 0.0 && c.optim.epsilon.is_finite(), "optim.epsilon must be above 0");
    need(
        c.optim.grad_clip >= 0.0 && c.optim.weight_decay >= 0.0 && c.optim.weight_decay.is_finite(),
        "optim.grad_clip and optim.weight_decay must not be negative; a grad_clip of 0 switches clipping off",
    );
    need(c.optim.learning_rate >= 0.0 && c.optim.learning_rate.is_finite(), "optim.learning_rate must not be negative");
    need(
        (0.0..1.0).contains(&c.optim.beta1) && (0.0..1.0).contains(&c.optim.beta2),
        "optim.beta1 and optim.beta2 must be in [0, 1)",
    );
    need(c.optim.gradient_batches > 0, "optim.gradient_batches must be at least 1");
    need(
        c.optim.gradient_batches <= c.rollout.prompts_per_step.max(1),
        "optim.gradient_batches must not exceed rollout.prompts_per_step",
    );
    need(c.eval.samples > 0, "eval.samples must be at least 1");
    need(
        c.eval.temperature > 0.0 && c.eval.cool_temperature > 0.0,
        "eval.temperature and eval.cool_temperature must be above 0",
    );
    need(c.checkpoint.every > 0, "checkpoint.every must be at least 1");
    need(
        c.checkpoint.keep >= 2,
        "checkpoint.keep must be at least 2, so that one valid checkpoint is left if the newest is damaged",
    );
    need(c.learner.lanes > 0, "learner.lanes must be at least 1");
    need(c.learner.ranks > 0, "learner.ranks must be at least 1");
    let (ranks, lanes) = (c.learner.ranks, c.learner.lanes);
    need(
        ranks <= lanes.max(1),
        &format!(
            "learner.ranks is {ranks}, but {lanes} lanes have work for {lanes}: set learner.lanes to {ranks} or more"
        ),
    );
    for (key, v) in [
        ("lease_seconds", c.cluster.lease_seconds),
        ("heartbeat_seconds", c.cluster.heartbeat_seconds),
        ("join_seconds", c.cluster.join_seconds),
        ("step_seconds", c.cluster.step_seconds),
        ("relay_seconds", c.cluster.relay_seconds),
        ("broadcast_seconds", c.cluster.broadcast_seconds),
    ] {
        need(v > 0.0 && v.is_finite(), &format!("cluster.{key} must be above 0: every wait has a deadline"));
    }
    need(c.cluster.prompts_per_lease > 0, "cluster.prompts_per_lease must be at least 1");
    need(
        c.cluster.tls_cert.is_empty() == c.cluster.tls_key.is_empty(),
        "cluster.tls_cert and cluster.tls_key belong together: set both or neither",
    );
    need(
        c.cluster.tls_member_cert.is_empty() == c.cluster.tls_member_key.is_empty(),
        "cluster.tls_member_cert and cluster.tls_member_key belong together: set both or neither",
    );
    need(
        c.cluster.tls_client_ca.is_empty() || !c.cluster.tls_cert.is_empty(),
        "cluster.tls_client_ca asks callers for certificates, which needs TLS: set cluster.tls_cert and cluster.tls_key",
    );
    need(
        c.rollout.reward != RewardSource::GroundTruth || !c.data.train_labels.is_empty(),
        "rollout.reward = \"ground_truth\" needs data.train_labels",
    );
    let presets = super::preset_names();
    need(
        c.data.preset.is_empty() || presets.contains(&c.data.preset.as_str()),
        &format!("data.preset `{}` is unknown; there are {}", c.data.preset, presets.join(", ")),
    );
    for (key, v) in [
        ("max_image_pixels", c.data.max_image_pixels),
        ("max_image_bytes", c.data.max_image_bytes),
        ("max_record_bytes", c.data.max_record_bytes),
    ] {
        need(v > 0, &format!("data.{key} must be at least 1"));
    }
    need(
        c.data.answer_form != AnswerForm::Letter || c.data.template.replace("{question}", "").contains('{'),
        "data.answer_form = \"letter\" needs a data.template that shows the choices, e.g. \"{question}\\n{choices}\"",
    );
    wrong.extend(super::train::mistakes(&c.train));
    if wrong.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(wrong)) }
}
