//! From a question to the text the model sees: image placeholders and the suffix. The chat template is the model's business.

pub use quorum_core::config::ImagePlacement;

/// Stands in a question where an image goes.
pub const IMAGE_PLACEHOLDER: &str = "<image>";

/// The method's suffix, which `data.suffix = "method"` stands for.
pub const METHOD_SUFFIX: &str = "\nPlease reason step by step, and put your final answer within \\boxed{}.";

/// The question with one placeholder for each of `images` images.
///
/// # Errors
/// The reason, which says what to do, when the numbers differ.
pub fn place_images(question: &str, images: usize, placement: ImagePlacement) -> Result<String, String> {
    let found = question.matches(IMAGE_PLACEHOLDER).count();
    let before = |text: &str| IMAGE_PLACEHOLDER.repeat(images) + text;
    match placement {
        ImagePlacement::First => Ok(before(&question.replace(IMAGE_PLACEHOLDER, ""))),
        _ if found == images => Ok(question.to_string()),
        ImagePlacement::FirstIfNone if found == 0 => Ok(before(question)),
        _ => {
            let cure = match found {
                0 => "add `<image>` where each image goes, or set data.image_placement=\"first_if_none\"",
                _ => "write `<image>` once for each image, or set data.image_placement=\"first\"",
            };
            Err(format!("the question has {found} `<image>` but the record has {images} image(s): {cure}"))
        }
    }
}

/// The user's turn: question and `data.suffix`, where "method" stands for [`METHOD_SUFFIX`].
pub fn prompt(question: &str, suffix: &str) -> String {
    let suffix = if suffix == "method" { METHOD_SUFFIX } else { suffix };
    format!("{question}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ImagePlacement::{AsWritten, First, FirstIfNone};

    #[test]
    fn a_question_keeps_its_own_placeholders_unless_told_otherwise() {
        for placement in [AsWritten, FirstIfNone] {
            assert_eq!(place_images("a <image> b", 1, placement).unwrap(), "a <image> b");
            assert!(place_images("<image>Why?", 2, placement).unwrap_err().contains("once for each image"));
        }
        assert_eq!(place_images("a <image>b", 2, First).unwrap(), "<image><image>a b");
        assert_eq!(place_images("no image", 0, First).unwrap(), "no image");
    }

    #[test]
    fn missing_placeholders_are_added_unless_the_text_must_have_them() {
        let reason = place_images("Why?", 2, AsWritten).unwrap_err();
        assert!(
            reason.contains("0 `<image>`") && reason.contains("data.image_placement=\"first_if_none\""),
            "{reason}"
        );
        assert_eq!(place_images("Why?", 2, FirstIfNone).unwrap(), "<image><image>Why?");
        assert!(place_images("<image>Why?", 0, FirstIfNone).unwrap_err().contains("0 image(s)"));
    }

    #[test]
    fn the_suffix_may_be_named() {
        assert_eq!(prompt("<image>Why?", "\nThink."), "<image>Why?\nThink.");
        assert!(prompt("Why?", "method").ends_with("step by step, and put your final answer within \\boxed{}."));
    }
}
