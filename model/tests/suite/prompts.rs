//! Whole prompts: ids and positions of the fixture's cases, and prompts that do not fit their images.

use crate::{fixture, ids, json, rgb};
use image::RgbImage;
use quorum_model::Checkpoint;
use safetensors::SafeTensors;

#[test]
fn ids_and_positions_equal_the_reference() {
    let processor = Checkpoint::open(&fixture("qwen2_5_vl")).unwrap().processor;
    let bytes = std::fs::read(fixture("qwen2_5_vl/expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let expected = json("qwen2_5_vl/expected.json");
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let images: Vec<RgbImage> = case["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| rgb(&format!("images/{}", f.as_str().unwrap())))
            .collect();
        assert_eq!(processor.render(&case["messages"]).unwrap(), case["rendered_text"].as_str().unwrap());
        let prompt = processor.encode_messages(&case["messages"], &images).unwrap();
        assert_eq!(prompt.ids, ids(&case["input_ids"]), "{name}");
        let grids: Vec<[usize; 3]> = prompt.images.iter().map(|i| i.grid).collect();
        assert_eq!(serde_json::json!(grids), case["image_grid_thw"], "{name}");
        let view = tensors.tensor(&format!("{name}.position_ids")).unwrap();
        let wanted: Vec<i32> = view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as i32).collect();
        assert_eq!(prompt.positions.concat(), wanted, "{name}");
        assert_eq!(
            i64::from(prompt.next_position) - prompt.ids.len() as i64,
            case["rope_delta"].as_i64().unwrap(),
            "{name}"
        );
    }
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
fn a_prompt_that_does_not_fit_its_images_is_refused() {
    let processor = Checkpoint::open(&fixture("qwen2_5_vl")).unwrap().processor;
    let image = rgb("images/img_56x56.png");
    let error = |text: &str, n: usize| processor.encode_prompt(text, &vec![image.clone(); n]).unwrap_err().to_string();
    assert_eq!(
        error("How many?", 1),
        "prompt: it has 0 <image> marks but 1 images; write <image> once where each image goes"
    );
    assert!(error("<image><image>How many?", 1).contains("2 <image> marks but 1 images"));
    assert!(error("<image>What is <|image_pad|>?", 1).contains("2 image tokens but 1 images"));
    assert!(error("<|video_pad|>", 0).contains("video"));
    assert!(error(&"word ".repeat(5000), 0).contains("has 4096 positions"));
    let thin = RgbImage::new(1000, 2);
    assert!(processor.encode_prompt("<image>", &[thin]).unwrap_err().to_string().contains("1000×2 pixels"));
}
