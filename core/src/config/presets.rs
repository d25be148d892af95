//! Published data sets by name: the `[data]` keys that fit their layouts. A preset stands between the defaults and the file: explicit keys win. No network.

use toml::{Table, Value};

/// Name, and the `[data]` keys it sets. Columns as in the section.
const PRESETS: [(&str, &str); 4] = [
    (
        "geometry3k",
        r#"
        question_column = "problem|question"
        image_column = "images|image"
        answer_column = "answer|ground_truth|none"
        response_column = "none"
        suffix = "method""#,
    ),
    (
        "geoqa",
        r#"
        question_column = "problem|question"
        image_column = "image|images"
        answer_column = "solution|answer|none"
        answer_form = "tagged"
        response_column = "none"
        suffix = "method""#,
    ),
    (
        "mmr1",
        r#"
        question_column = "problem|question|query|prompt"
        image_column = "images|image"
        answer_column = "answer|solution|ground_truth|none"
        answer_form = "tagged"
        response_column = "none"
        suffix = "method""#,
    ),
    (
        "mathvista",
        r#"
        question_column = "question|query"
        image_column = "decoded_image|image"
        answer_column = "answer|none"
        answer_form = "letter"
        response_column = "none"
        id_column = "pid|none"
        template = "{question}\n{choices}"
        suffix = "method""#,
    ),
];

/// The names of all presets.
pub fn preset_names() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

/// The `[data]` keys of a preset; empty for an unknown name.
pub fn preset(name: &str) -> Table {
    let text = PRESETS.iter().find(|(n, _)| *n == name).map_or("", |(_, text)| text);
    text.parse().unwrap_or_default()
}

/// Puts the preset that the overlays (weakest first) ask for into the defaults.
pub(super) fn apply<'a>(defaults: &mut Table, overlays: impl Iterator<Item = &'a Table>) {
    let asked = overlays.filter_map(|o| o.get("data")?.get("preset")?.as_str()).last();
    if let (Some(name), Some(Value::Table(data))) = (asked, defaults.get_mut("data")) {
        data.extend(preset(name));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DataSection, load};
    use super::*;

    #[test]
    fn every_preset_is_a_valid_section() {
        for name in preset_names() {
            let section: DataSection = Value::Table(preset(name)).try_into().unwrap();
            assert!(!preset(name).is_empty() && section.suffix == "method", "{name}");
        }
    }

    #[test]
    fn explicit_keys_win_over_the_preset_even_at_their_default() {
        let set = |items: &[&str]| load(None, &items.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let plain = set(&["data.preset=mathvista"]).unwrap().data;
        assert_eq!((plain.template.as_str(), plain.id_column.as_str()), ("{question}\n{choices}", "pid|none"));
        let own = set(&["data.answer_column=label", "data.preset=mathvista", "data.answer_form=as_written"]).unwrap();
        assert_eq!((own.data.answer_column.as_str(), own.data.suffix.as_str()), ("label", "method"));
        assert_eq!(own.data.answer_form, super::super::AnswerForm::AsWritten);
        let again = super::super::from_toml(&super::super::to_toml(&own).unwrap(), "resolved").unwrap();
        assert_eq!(again, own);
        let unknown = set(&["data.preset=geometry"]).unwrap_err().to_string();
        assert!(unknown.contains("data.preset") && unknown.contains("geometry3k"), "{unknown}");
    }
}
