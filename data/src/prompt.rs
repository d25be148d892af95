//! From a question to the text the model sees: image placeholders and the suffix. The chat template is the model's business.

pub use quorum_core::config::ImagePlacement;

/// Stands in a question where an image goes.
pub const IMAGE_PLACEHOLDER: &str = "<image>";

/// The question with one placeholder for each of `images` images.
///
/// # Errors
/// The reason, which says what to do, when the numbers differ.
pub fn place_images(question: &str, images: usize, placement: ImagePlacement) -> Result<String, String> {
    let found = question.matches(IMAGE_PLACEHOLDER).count();
    if found == images {
        return Ok(question.to_string());
    }
    if found == 0 && placement == ImagePlacement::First {
        return Ok(IMAGE_PLACEHOLDER.repeat(images) + question);
    }
    let cure = match (found, placement) {
        (0, _) => "add `<image>` where each image goes, or set data.image_placement=\"first\"",
        _ => "write `<image>` once for each image",
    };
    Err(format!("the question has {found} `<image>` but the record has {images} image(s): {cure}"))
}

/// The user's turn: question and suffix (`data.prompt_suffix`; METHOD's is `\nPlease reason step by step, and put your final answer within \boxed{}.`).
pub fn prompt(question: &str, suffix: &str) -> String {
    format!("{question}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_keeps_its_own_placeholders() {
        for placement in [ImagePlacement::AsWritten, ImagePlacement::First] {
            assert_eq!(place_images("a <image> b", 1, placement).unwrap(), "a <image> b");
        }
        assert_eq!(prompt("<image>Why?", "\nThink."), "<image>Why?\nThink.");
    }

    #[test]
    fn missing_placeholders_are_added_only_when_asked_for() {
        let reason = place_images("Why?", 2, ImagePlacement::AsWritten).unwrap_err();
        assert!(reason.contains("0 `<image>`") && reason.contains("data.image_placement=\"first\""), "{reason}");
        assert_eq!(place_images("Why?", 2, ImagePlacement::First).unwrap(), "<image><image>Why?");
        assert!(place_images("<image>Why?", 2, ImagePlacement::First).unwrap_err().contains("once for each image"));
    }
}
