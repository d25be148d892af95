//! Maps the tensor names different tools write to the hub's names. Only names; shapes are checked by the reader.

/// What a tensor of a file is to us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A weight, under the hub name of one family or another; the layout has at most one of them.
    Weight(Vec<String>),
    /// A buffer that is recomputed, not a weight.
    Buffer,
}

/// Prefixes of the decoder and of the vision tower: of the hub's two namings first, then of other writers.
const TEXT: [&str; 4] = ["model.language_model.", "model.", "language_model.model.", ""];
const VISION: [&str; 2] = ["model.visual.", "visual."];
const HEAD: [&str; 4] = ["lm_head.", "model.lm_head.", "language_model.lm_head.", "model.language_model.lm_head."];
/// What decoder tensors go on with after their prefix.
const TEXT_PARTS: [&str; 3] = ["layers.", "embed_tokens.", "norm."];

/// What `name` is, whoever wrote it.
pub(super) fn meaning(name: &str) -> Meaning {
    if name.ends_with(".inv_freq") {
        return Meaning::Buffer;
    }
    let with = |prefixes: &[&str], rest: &str| Meaning::Weight(prefixes.iter().map(|p| format!("{p}{rest}")).collect());
    if let Some(rest) = HEAD.iter().find_map(|p| name.strip_prefix(p)) {
        return with(&HEAD[..1], rest);
    }
    if let Some(rest) = VISION.iter().find_map(|p| name.strip_prefix(p)) {
        return with(&VISION, rest);
    }
    let text = TEXT.iter().filter_map(|p| name.strip_prefix(p));
    match text.into_iter().find(|rest| TEXT_PARTS.iter().any(|part| rest.starts_with(part))) {
        Some(rest) => with(&TEXT[..2], rest),
        None => Meaning::Weight(vec![name.to_owned()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_spelling_can_be_the_hub_name() {
        for (given, hub) in [
            ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
            ("language_model.model.norm.weight", "model.norm.weight"),
            ("language_model.model.norm.weight", "model.language_model.norm.weight"),
            ("layers.3.input_layernorm.weight", "model.layers.3.input_layernorm.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("model.visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
            ("visual.merger.norm.weight", "model.visual.merger.norm.weight"),
        ] {
            let Meaning::Weight(names) = meaning(given) else { panic!("{given} is a weight") };
            assert!(names.iter().any(|n| n == hub), "{given}: {names:?}");
        }
        assert_eq!(meaning("model.extra.weight"), Meaning::Weight(vec!["model.extra.weight".to_owned()]));
        assert_eq!(meaning("model.rotary_emb.inv_freq"), Meaning::Buffer);
    }
}
