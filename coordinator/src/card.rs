//! The model card of an exported model: what it is, what it was made from and how, what it reached and how much of that is what.

use crate::evaluate::{Figures, Gains};
use crate::show::{MEASURES, cell, change};
use quorum_core::config::{ObjectiveKind, RunConfig};
use quorum_core::reward::RewardSource;
use std::fmt::Write;
use std::path::Path;

/// What the card tells besides the configuration.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Steps contained in the weights.
    pub steps: u64,
    pub samples: u64,
    /// SHA-256 of the exported version's f32 slab, and of the start's.
    pub weights_sha256: String,
    pub start_sha256: String,
    pub config_digest: String,
    pub run_id: String,
    /// BLAKE3 of model files and data.
    pub model_files: String,
    pub data_train: String,
    pub data_test: String,
    /// Rows used, as far as they are known.
    pub train_rows: String,
    pub test_rows: String,
    pub set_aside: u64,
    pub before: Option<Figures>,
    pub after: Option<Figures>,
    pub gain: Option<Gains>,
    /// Whether the model takes images.
    pub images: bool,
    /// The directory holds low-rank adapters instead of a whole model.
    pub adapter: bool,
    /// Element type of the weights beside the card.
    pub dtype: String,
    pub quorum_version: String,
}

/// README.md with front matter. Writing to a String cannot fail.
pub fn card(config: &RunConfig, facts: &Facts) -> String {
    let mut out = String::new();
    let base = last(&config.model.path);
    front_matter(&mut out, &base, config, facts);
    let _ = writeln!(out, "# {base}, trained with Quorum\n");
    let _ = writeln!(out, "{}\n", method(config));
    let _ = writeln!(
        out,
        "**Licence: the same as the base model's.** This is a derivative of `{base}`; its licence and terms of use hold, and those of the data below. \
         No further rights are granted.\n"
    );
    data(&mut out, config, facts);
    results(&mut out, config, facts);
    recipe(&mut out, config, facts);
    provenance(&mut out, config, facts);
    limits(&mut out, config);
    out
}

fn front_matter(out: &mut String, base: &str, config: &RunConfig, facts: &Facts) {
    let task = if facts.images { "image-text-to-text" } else { "text-generation" };
    let library = if facts.adapter { "peft" } else { "transformers" };
    let _ = writeln!(out, "---\nlibrary_name: {library}\npipeline_tag: {task}\nbase_model: {}", quoted(base));
    let relation = if facts.adapter { "adapter" } else { "finetune" };
    let _ = writeln!(out, "base_model_relation: {relation}\ntags:\n- quorum");
    let tags: &[&str] = match (config.objective.kind, config.rollout.reward) {
        (ObjectiveKind::Sft, _) => &["sft"],
        (_, RewardSource::GroundTruth | RewardSource::Random) => &["grpo"],
        _ => &["grpo", "label-free"],
    };
    tags.iter().for_each(|tag| out.push_str(&format!("- {tag}\n")));
    let _ = writeln!(out, "---\n");
}

/// A YAML string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What was done, in one paragraph.
fn method(config: &RunConfig) -> String {
    if config.objective.kind == ObjectiveKind::Sft {
        return "Supervised fine-tuning on worked responses.".into();
    }
    let reward = match config.rollout.reward {
        RewardSource::GroundTruth => {
            "paid by comparison with the reference answers of the training data: this run **used labels**"
        }
        RewardSource::Random => "paid at random: a control run, not meant for use",
        _ => "paid by agreement with the group's own majority answer: **no label of the training data was used**",
    };
    format!(
        "Group-relative policy optimisation (GRPO) after MM-UPT (arXiv 2505.22453): {} sampled responses to each question, {reward}.",
        config.rollout.group_size
    )
}

fn data(out: &mut String, config: &RunConfig, facts: &Facts) {
    let _ = writeln!(out, "## Data\n\n| | file | rows used | BLAKE3 of the records |\n|---|---|---|---|");
    let train = last(&config.data.train);
    let _ = writeln!(out, "| training | {train} | {} | `{}` |", known(&facts.train_rows), known(&facts.data_train));
    if !facts.data_test.is_empty() {
        let test = last(&config.data.test);
        let _ = writeln!(out, "| held out | {test} | {} | `{}` |", known(&facts.test_rows), known(&facts.data_test));
    }
    if facts.set_aside > 0 {
        let _ = writeln!(out, "\n{} further records were set aside as unreadable or too long.", facts.set_aside);
    }
    let _ = writeln!(out);
}

fn results(out: &mut String, config: &RunConfig, facts: &Facts) {
    let _ = writeln!(out, "## Results\n");
    let (Some(before), Some(after)) = (&facts.before, &facts.after) else {
        let _ = writeln!(out, "No held-out evaluation of these weights was made; nothing is claimed.\n");
        return;
    };
    let _ = writeln!(
        out,
        "Accuracy in % on {} held-out questions, with 95 % intervals: bootstrap over questions, paired for the change. One run with seed {}; other seeds differ.\n",
        after.n, config.run.seed
    );
    let _ = writeln!(out, "| | base | this model | change |\n|---|---|---|---|");
    for (name, get, gain) in MEASURES {
        let difference = facts.gain.as_ref().map_or_else(|| "–".to_owned(), |g| change(&gain(g)));
        let _ = writeln!(out, "| {name} | {} | {} | {difference} |", cell(before, get).trim(), cell(after, get).trim());
    }
    let (samples, t, cool) = (config.eval.samples, config.eval.temperature, config.eval.cool_temperature);
    let _ = writeln!(
        out,
        "\n`mean of samples` is the mean of {samples} responses at temperature {t}, `low temperature` at {cool}, `vote` their majority at {t} (a tie is wrong).\n"
    );
    if let Some(gains) = &facts.gain {
        let _ = writeln!(out, "{}\n", sharpening(gains));
    }
    let _ = writeln!(
        out,
        "{:.1} % of the sampled responses hit the length limit ({:.1} % before).\n",
        100.0 * after.truncated,
        100.0 * before.truncated
    );
}

/// How much of a gain is the model saying more often what it already believed.
pub fn sharpening(gains: &Gains) -> String {
    let (greedy, mean) = (100.0 * gains.greedy.change, 100.0 * gains.mean.change);
    let significant = gains.greedy.interval[0] > 0.0;
    if gains.mean.interval[0] <= 0.0 {
        return format!(
            "**Which part is which.** The mean of samples changed by {mean:+.1} points, which chance explains as well: there is no gain to explain."
        );
    }
    let part = (mean - greedy.max(0.0)).max(0.0);
    let learned = match (significant, greedy > 0.0) {
        (true, _) => format!(
            "Greedy decoding, the model's single best answer, gained {greedy:.1} points, more than chance explains: that part was learned."
        ),
        (false, true) => format!(
            "Greedy decoding, the model's single best answer, changed by {greedy:+.1} points, which chance explains as well."
        ),
        (false, false) => format!("Greedy decoding, the model's single best answer, changed by {greedy:+.1} points."),
    };
    format!(
        "**Which part is which.** Of the {mean:.1} points that the mean of samples gained, {part:.1} are *sharpening*: the model samples less often what it did not \
         believe in. {learned}"
    )
}

fn recipe(out: &mut String, config: &RunConfig, facts: &Facts) {
    let mut shown = config.clone();
    shown.run.dir = String::new();
    let data = &mut shown.data;
    for path in [&mut shown.model.path, &mut data.train, &mut data.train_labels, &mut data.test, &mut data.image_root] {
        *path = last(path);
    }
    // By way of text: a table made at once would show the digits by which a short float differs from a long one.
    let mut table: toml::Table = toml::to_string(&shown).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    table.remove("cluster");
    let text = toml::to_string_pretty(&table).unwrap_or_default();
    let _ = writeln!(
        out,
        "## Recipe\n\n{} steps, {} sampled responses, seed {}. The whole configuration but addresses and deadlines, paths without directories:\n\n```toml\n{}```\n",
        facts.steps, facts.samples, config.run.seed, text
    );
}

fn provenance(out: &mut String, config: &RunConfig, facts: &Facts) {
    let _ = writeln!(out, "## Provenance\n\n| | |\n|---|---|");
    let steps = format!("{} of {}", facts.steps, config.run.steps);
    let rows = [
        ("weights_sha256 of what was trained, before it was saved", &facts.weights_sha256),
        ("saved as", &facts.dtype),
        ("the same of version 0, before training", &facts.start_sha256),
        ("base model, BLAKE3 of its files", &facts.model_files),
        ("configuration digest", &facts.config_digest),
        ("steps", &steps),
        ("run", &facts.run_id),
        ("Quorum", &facts.quorum_version),
    ];
    for (name, value) in rows {
        let _ = writeln!(out, "| {name} | `{}` |", known(value));
    }
    let _ = writeln!(
        out,
        "\nThe same base model, data, configuration and seed give the same `weights_sha256` on CPUs of one instruction set, with any number of workers.\n"
    );
}

fn limits(out: &mut String, config: &RunConfig) {
    let _ = writeln!(out, "## Limits\n");
    if config.objective.kind == ObjectiveKind::Grpo && config.rollout.reward != RewardSource::GroundTruth {
        let _ = writeln!(
            out,
            "The reward was agreement, not correctness: where the base model's majority is wrong, training makes it wrong more firmly, and long training can \
             end in one constant answer. Check it on questions of your own before use."
        );
    }
    let _ = writeln!(
        out,
        "Everything the base model's card says about bias, safety and intended use still holds; nothing was done about either."
    );
}

/// Last part of a path, with its split.
fn last(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.to_owned(), |n| n.to_string_lossy().into_owned())
}

fn known(value: &str) -> &str {
    if value.is_empty() { "unknown" } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Gain;

    fn gains(greedy: [f64; 3], mean: f64) -> Gains {
        let of = |change, low, high| Gain { change, interval: [low, high] };
        let g = of(greedy[0], greedy[1], greedy[2]);
        let m = of(mean, mean - 0.01, mean + 0.01);
        Gains { greedy: g, mean: m, mean_t03: m, vote: m }
    }

    #[test]
    fn the_card_says_what_was_learned_and_what_was_sharpened() {
        let text = sharpening(&gains([0.02, 0.005, 0.033], 0.25));
        assert!(
            text.contains("25.0 points") && text.contains("23.0 are *sharpening*") && text.contains("learned"),
            "{text}"
        );
        let text = sharpening(&gains([0.005, -0.01, 0.02], 0.1));
        assert!(text.contains("chance explains as well"), "{text}");
        for mean in [-0.1, 0.005] {
            assert!(sharpening(&gains([0.0, 0.0, 0.0], mean)).contains("no gain to explain"));
        }
    }

    #[test]
    fn a_card_has_front_matter_recipe_and_digests_and_no_directories() {
        let set = [
            "run.steps=7",
            "optim.weight_decay=0.3",
            "model.path=/srv/secret/tiny-vl",
            "data.train=/srv/secret/train.parquet",
        ];
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        let config = quorum_core::config::load(None, &set).unwrap();
        let facts = Facts { steps: 7, weights_sha256: "abc".into(), images: true, ..Facts::default() };
        let text = card(&config, &facts);
        for word in [
            "---\nlibrary_name: transformers",
            "base_model: \"tiny-vl\"",
            "image-text-to-text",
            "no label of the training data was used",
            "same as the base model's",
            "No held-out evaluation",
            "`abc`",
            "group_size = 8",
            "weight_decay = 0.3\n",
            "| training | train.parquet | unknown |",
        ] {
            assert!(text.contains(word), "{word}:\n{text}");
        }
        let adapter = card(&config, &Facts { adapter: true, ..facts.clone() });
        assert!(adapter.contains("library_name: peft") && adapter.contains("base_model_relation: adapter"));
        assert!(!text.contains("secret") && !text.contains("[cluster]"), "{text}");
        let labelled = ["rollout.reward=ground_truth".to_owned(), "data.train_labels=x".to_owned()];
        let config = quorum_core::config::load(None, &labelled).unwrap();
        let text = card(&config, &facts);
        assert!(text.contains("**used labels**") && !text.contains("label-free"), "{text}");
    }
}
