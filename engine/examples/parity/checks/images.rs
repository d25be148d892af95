//! Images: resizing and pixel values against PIL's, ids and positions of the cases.

use super::tensors::Tensors;
use super::{Fixture, Report, Result, ids, max_diff};
use image::RgbImage;
use quorum_model::{AlphaMode, EncodedPrompt, TemplateOptions, resize_bicubic, to_rgb};
use serde_json::Value;
use std::path::Path;

fn open(path: &Path) -> Result<RgbImage> {
    let image = image::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(to_rgb(&image, AlphaMode::White))
}

/// A case's messages and images as model input.
pub fn encode(f: &Fixture, case: &Value) -> Result<EncodedPrompt> {
    let names = case["images"].as_array().map_or(&[][..], Vec::as_slice);
    let images = names
        .iter()
        .filter_map(Value::as_str)
        .map(|n| open(&f.dir.join("../images").join(n)))
        .collect::<Result<Vec<_>>>()?;
    let options = TemplateOptions::from_variables(case["template_kwargs"].as_object().cloned().unwrap_or_default());
    let processor = f.checkpoint.processor.with_template_options(options);
    Ok(processor.encode_messages(&case["messages"], &images)?)
}

/// Resizing and pixel values of the shared images, where they lie beside the directory.
pub fn check(f: &Fixture, report: &mut Report) -> Result<()> {
    let shared = f.dir.join("..");
    let Some(processor) = f.checkpoint.processor.image_processor() else { return Ok(()) };
    let Ok(bytes) = std::fs::read(shared.join("images_expected.json")) else { return Ok(()) };
    let expected: Value = serde_json::from_slice(&bytes)?;
    let values = Tensors::read(&shared.join("images_pixel_values_full.safetensors"))?;
    let patch = format!("patch{}", processor.patch_size);
    for (name, info) in expected[&patch]["images"].as_object().into_iter().flatten() {
        let stem = name.trim_end_matches(".png");
        let original = open(&shared.join("images").join(name))?;
        let (w, h) =
            (info["resized_hw"][1].as_u64().unwrap_or(0) as u32, info["resized_hw"][0].as_u64().unwrap_or(0) as u32);
        let target = processor.target_size(original.height() as usize, original.width() as usize)?;
        report.equal(&format!("images.{stem}.size"), &target, &(h as usize, w as usize));
        let by_pil = shared.join("images/resized").join(format!("{stem}.{patch}.pil.png"));
        let ours = resize_bicubic(&original, w as usize, h as usize);
        // Without a reference there is nothing to resize, or the pixel values below stand for it.
        let reference = if by_pil.exists() { open(&by_pil)? } else { ours.clone() };
        let levels = ours.as_raw().iter().zip(reference.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(255);
        let levels = if ours.dimensions() == reference.dimensions() { f64::from(levels) } else { f64::INFINITY };
        report.check(&format!("images.{stem}.resize"), levels, 1.0);
        let encoded = processor.encode(&reference)?;
        report.equal(
            &format!("images.{stem}.grid"),
            &encoded.grid.map(|x| x as u32).to_vec(),
            &ids(&info["pil"]["grid_thw"]),
        );
        pixels(info, &encoded.patches, stem, report);
        if let Some((shape, want)) = values.f32(&format!("{patch}.{stem}.pixel_values_t0")) {
            let frame = shape[2] * shape[3];
            let first = |t: usize| {
                encoded
                    .patches
                    .chunks_exact(frame)
                    .enumerate()
                    .filter(move |(i, _)| i % 2 == t)
                    .flat_map(|x| x.1)
                    .copied()
                    .collect::<Vec<_>>()
            };
            report.check(&format!("images.{stem}.pixel_values.frame0"), max_diff(&first(0), &want), 1e-5);
            report.check(&format!("images.{stem}.pixel_values.frame1"), max_diff(&first(1), &want), 1e-5);
        }
    }
    Ok(())
}

/// Ends and sums of the pixel values, for images without full reference values.
fn pixels(info: &Value, patches: &[f32], stem: &str, report: &mut Report) {
    let floats = |v: &Value| {
        v.as_array().into_iter().flatten().filter_map(|x| x.as_f64().map(|x| x as f32)).collect::<Vec<f32>>()
    };
    let pil = &info["pil"];
    let ends = max_diff(&patches[..8.min(patches.len())], &floats(&pil["first8"]));
    let tail = max_diff(&patches[patches.len().saturating_sub(8)..], &floats(&pil["last8"]));
    report.check(&format!("images.{stem}.pixel_ends"), ends.max(tail), 1e-5);
    let sum: f64 = patches.iter().map(|&x| f64::from(x)).sum();
    let per_value = (sum - pil["sum"].as_f64().unwrap_or(f64::NAN)).abs() / patches.len() as f64;
    report.check(&format!("images.{stem}.pixel_mean"), per_value, 1e-5);
}
