//! Image geometry, resizing and patches against the reference.

use crate::{fixture, json, rgb};
use image::RgbImage;
use quorum_model::{AlphaMode, Checkpoint, ImageProcessor, resize_bicubic, smart_resize, to_rgb};
use safetensors::SafeTensors;
use serde_json::Value;

/// The image processor of a part ("patch14", "patch16") of the fixture.
fn processor(part: &Value) -> ImageProcessor {
    let mut vision = Checkpoint::open(&fixture("qwen2_5_vl")).unwrap().config.vision.unwrap();
    vision.patch_size = part["preprocessor_config"]["patch_size"].as_u64().unwrap() as usize;
    ImageProcessor::from_json("preprocessor_config.json", part["preprocessor_config"].to_string().as_bytes(), &vision)
        .unwrap()
}

#[test]
fn smart_resize_equals_the_reference() {
    let expected = json("images_expected.json");
    let rows = expected["smart_resize"]["rows"].as_array().unwrap();
    assert!(rows.len() > 50);
    for row in rows {
        let n: Vec<Option<usize>> = serde_json::from_value(row.clone()).unwrap();
        let [factor, min, max, h, w] = std::array::from_fn(|i| n[i].unwrap());
        // The reference raises where the fixture has null.
        assert_eq!(smart_resize(h, w, factor, min, max).ok(), n[5].zip(n[6]), "{row}");
    }
    assert!(smart_resize(0, 10, 28, 3136, 37632).is_err());
}

#[test]
fn resizing_is_bit_exact_with_pil() {
    let expected = json("images_expected.json");
    let mut compared = 0;
    for part in ["patch14", "patch16"] {
        let processor = processor(&expected[part]);
        for (file, case) in expected[part]["images"].as_object().unwrap() {
            let stem = file.strip_suffix(".png").unwrap();
            let decoded = image::open(fixture("images").join(file)).unwrap();
            for (mode, suffix) in [(AlphaMode::White, "pil"), (AlphaMode::Drop, "pil_dropalpha")] {
                let source = to_rgb(&decoded, mode);
                let (h, w) = processor.target_size(source.height() as usize, source.width() as usize).unwrap();
                assert_eq!(serde_json::json!([h, w]), case["resized_hw"], "{part} {file}");
                let path = fixture("images/resized").join(format!("{stem}.{part}.{suffix}.png"));
                if !path.exists() {
                    continue;
                }
                let reference: RgbImage = image::open(&path).unwrap().to_rgb8();
                assert!(resize_bicubic(&source, w, h) == reference, "{} differs", path.display());
                compared += 1;
            }
        }
    }
    println!("{compared} resized images equal bit for bit");
    assert!(compared >= 17, "{compared}");
}

#[test]
fn pixel_values_equal_the_reference() {
    let expected = json("images_expected.json");
    let bytes = std::fs::read(fixture("images_pixel_values_full.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (mut worst, mut full) = (0f32, 0);
    for part in ["patch14", "patch16"] {
        let processor = processor(&expected[part]);
        for (file, case) in expected[part]["images"].as_object().unwrap() {
            let encoded = processor.encode(&rgb(&format!("images/{file}"))).unwrap();
            let case = &case["pil"];
            assert_eq!(serde_json::json!(encoded.grid), case["grid_thw"]);
            let dim = case["dim"].as_u64().unwrap() as usize;
            assert_eq!(encoded.patches.len(), case["n_patches"].as_u64().unwrap() as usize * dim);
            let mut check = |got: &[f32], wanted: Vec<f32>| {
                assert_eq!(got.len(), wanted.len());
                worst = got.iter().zip(wanted).fold(worst, |w, (a, b)| w.max((a - b).abs()));
            };
            check(&encoded.patches[..8], serde_json::from_value(case["first8"].clone()).unwrap());
            check(
                &encoded.patches[encoded.patches.len() - 8..],
                serde_json::from_value(case["last8"].clone()).unwrap(),
            );
            let sum: f64 = encoded.patches.iter().map(|&x| f64::from(x)).sum();
            assert!(
                (sum - case["sum"].as_f64().unwrap()).abs() < 0.01 * encoded.patches.len() as f64 * 1e-4,
                "{part} {file}: {sum}"
            );
            let name = format!("{part}.{}.pixel_values_t0", file.strip_suffix(".png").unwrap());
            let Ok(view) = tensors.tensor(&name) else { continue };
            let wanted: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            // The fixture keeps the first of the two equal time steps of every channel.
            let area = dim / 6;
            let first: Vec<f32> = encoded.patches.chunks(area).step_by(2).flatten().copied().collect();
            let second: Vec<f32> = encoded.patches.chunks(area).skip(1).step_by(2).flatten().copied().collect();
            assert_eq!(first, second);
            check(&first, wanted);
            full += 1;
        }
    }
    println!("pixel values: worst difference {worst:e}, {full} images in full");
    assert!(worst <= 1e-5 && full == 5, "{worst} {full}");
}
