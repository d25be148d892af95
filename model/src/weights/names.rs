//! Maps the tensor names different tools write to the hub's names. Only names; shapes are checked by the reader.

/// What a tensor of a file is to us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A weight, under its hub name.
    Weight(String),
    /// A buffer that is recomputed, not a weight.
    Buffer,
}

/// Prefixes of other writers and what the hub has instead; the first match wins.
const PREFIXES: [(&str, &str); 6] = [
    ("model.language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", "visual."),
    ("model.lm_head.", "lm_head."),
];

/// The hub's name for `name`.
pub(super) fn meaning(name: &str) -> Meaning {
    if name.ends_with(".inv_freq") {
        return Meaning::Buffer;
    }
    for (theirs, hub) in PREFIXES {
        if let Some(rest) = name.strip_prefix(theirs) {
            return Meaning::Weight(format!("{hub}{rest}"));
        }
    }
    Meaning::Weight(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_spelling_gives_the_hub_name() {
        for (given, hub) in [
            ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
            ("language_model.model.norm.weight", "model.norm.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("model.visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
            ("visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
        ] {
            assert_eq!(meaning(given), Meaning::Weight(hub.to_owned()));
        }
        assert_eq!(meaning("model.rotary_emb.inv_freq"), Meaning::Buffer);
    }
}
