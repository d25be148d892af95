//! Whole prompts: ids and positions of the fixture's cases, and prompts that do not fit their images.

use crate::{FIXTURES, fixture, ids, json, rgb};
use image::RgbImage;
use quorum_model::{Checkpoint, Processor, TemplateOptions};
use safetensors::SafeTensors;
use serde_json::Value;

#[test]
fn ids_and_positions_equal_the_reference() {
    for family in FIXTURES {
        let processor = Checkpoint::open(&fixture(family)).unwrap().processor;
        let bytes = std::fs::read(fixture(family).join("expected.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let expected = json(&format!("{family}/expected.json"));
        let cases = expected["cases"].as_array().unwrap();
        assert!(cases.len() >= 3);
        for case in cases {
            check_case(family, &processor, &tensors, case);
        }
    }
}

fn check_case(family: &str, processor: &Processor, tensors: &SafeTensors, case: &Value) {
    let name = format!("{family} {}", case["name"].as_str().unwrap());
    let arguments = case["template_kwargs"].as_object().cloned().unwrap_or_default();
    let processor = processor.with_template_options(TemplateOptions::from_variables(arguments));
    let files = case["images"].as_array().unwrap().iter();
    let images: Vec<RgbImage> = files.map(|f| rgb(&format!("images/{}", f.as_str().unwrap()))).collect();
    assert_eq!(processor.render(&case["messages"]).unwrap(), case["rendered_text"].as_str().unwrap());
    let prompt = processor.encode_messages(&case["messages"], &images).unwrap();
    assert_eq!(prompt.ids, ids(&case["input_ids"]), "{name}");
    let (n, delta) = (prompt.ids.len() as i64, case["rope_delta"].as_i64().unwrap_or(0));
    assert_eq!(i64::from(prompt.next_position) - n, delta, "{name}");
    let Ok(view) = tensors.tensor(&format!("{}.position_ids", case["name"].as_str().unwrap())) else {
        assert!(processor.image_processor().is_none(), "{name} has no positions to compare with");
        assert_eq!(prompt.positions, [(); 3].map(|()| (0..n as i32).collect::<Vec<_>>()), "{name}");
        return;
    };
    let grids: Vec<[usize; 3]> = prompt.images.iter().map(|i| i.grid).collect();
    assert_eq!(serde_json::json!(grids), case["image_grid_thw"], "{name}");
    let wanted: Vec<i32> = view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as i32).collect();
    assert_eq!(prompt.positions.concat(), wanted, "{name}");
}

#[test]
fn marked_text_equals_the_same_conversation() {
    let processor = Checkpoint::open(&fixture("qwen2_5_vl")).unwrap().processor;
    let cases = json("qwen2_5_vl/expected.json");
    let wanted =
        |name: &str| ids(&cases["cases"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap()["input_ids"]);
    let two = [rgb("images/img_84x56.png"), rgb("images/img_56x56.png")];
    assert_eq!(
        processor.encode_prompt("Compare: <image><image>Which is larger?", &two).unwrap().ids,
        wanted("two_images")
    );
    assert_eq!(processor.encode_prompt("What is 3x + 7 when x = 5?", &[]).unwrap().ids, wanted("text_only"));
    let system = processor.encode_prompt_with_system(
        Some("Answer with the option letter."),
        "<image>Find the angle. Choices: (A) 10 (B) 12",
        &[rgb("images/img_100x75.png")],
    );
    assert_eq!(system.unwrap().ids, wanted("img100"));
}

#[test]
fn the_length_of_a_prompt_is_known_without_pixels() {
    let processor = Checkpoint::open(&fixture("qwen2_5_vl")).unwrap().processor;
    let images = [rgb("images/img_84x56.png"), rgb("images/img_100x75.png")];
    let sizes: Vec<(u32, u32)> = images.iter().map(RgbImage::dimensions).collect();
    for (text, n) in [("What is 3x + 7 when x = 5?", 0), ("<image>Why?", 1), ("Compare: <image> and <image>", 2)] {
        let encoded = processor.encode_prompt(text, &images[..n]).unwrap();
        let length = processor.prompt_length(text, &sizes[..n]).unwrap();
        let patches: usize = encoded.images.iter().map(|i| i.grid.iter().product::<usize>()).sum();
        assert_eq!((length.tokens, length.image_tokens, length.patches), (encoded.ids.len(), patches / 4, patches));
    }
    assert!(processor.prompt_length(&"word ".repeat(5000), &[]).unwrap().tokens > processor.max_positions());
    let spelled = "<image>What is <|image_pad|>?";
    let encoded = processor.encode_prompt(spelled, &images[..1]).unwrap();
    assert_eq!(processor.prompt_length(spelled, &sizes[..1]).unwrap().tokens, encoded.ids.len());
}

#[test]
fn a_prompt_that_does_not_fit_its_images_is_refused() {
    let processor = Checkpoint::open(&fixture("qwen2_5_vl")).unwrap().processor;
    let image = rgb("images/img_56x56.png");
    let error = |text: &str, n: usize| processor.encode_prompt(text, &vec![image.clone(); n]).unwrap_err().to_string();
    assert_eq!(
        error("How many?", 1),
        "prompt: it has 0 <image> marks but 1 images; write <image> once where each image goes"
    );
    assert!(error("<image><image>How many?", 1).contains("2 <image> marks but 1 images"));
    let video = serde_json::json!([{"role": "user", "content": [{"type": "video"}]}]);
    assert!(processor.encode_messages(&video, &[]).unwrap_err().to_string().contains("video"));
    let unmarked = serde_json::json!([{"role": "user", "content": [{"type": "image"}]}]);
    assert!(processor.encode_messages(&unmarked, &[]).unwrap_err().to_string().contains("1 image tokens but 0 images"));
    assert!(error(&"word ".repeat(5000), 0).contains("has 4096 positions"));
    let text_only = Checkpoint::open(&fixture("qwen2_text")).unwrap().processor;
    let blind = text_only.encode_prompt("<image>What is it?", &[image]).unwrap_err().to_string();
    assert!(blind.contains("no vision tower"), "{blind}");
    let thin = RgbImage::new(1000, 2);
    assert!(processor.encode_prompt("<image>", &[thin]).unwrap_err().to_string().contains("1000×2 pixels"));
}
