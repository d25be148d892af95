//! The parity fixture `tests/fixtures/qwen2_5_vl`: checkpoint, prompts as the reference saw them, expected tensors.

use quorum_model::{Checkpoint, EncodedImage, EncodedPrompt};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::PathBuf;

pub struct Fixture {
    pub checkpoint: Checkpoint,
    pub slab: Vec<f32>,
    pub expected: Value,
    tensors: Vec<u8>,
    pixels: Vec<u8>,
}

impl Fixture {
    pub fn open() -> Self {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"));
        let dir = root.join("qwen2_5_vl");
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let slab = checkpoint.load_weights().unwrap();
        let expected = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
        let tensors = std::fs::read(dir.join("expected.safetensors")).unwrap();
        let pixels = std::fs::read(root.join("images_pixel_values_full.safetensors")).unwrap();
        Self { checkpoint, slab, expected, tensors, pixels }
    }

    pub fn case_names(&self) -> Vec<String> {
        let cases = self.expected["cases"].as_array().unwrap();
        cases.iter().map(|case| case["name"].as_str().unwrap().to_owned()).collect()
    }

    /// A case's prompt from expected ids, positions and pixel values, so that no tokenizer or image code takes part.
    pub fn prompt(&self, name: &str) -> EncodedPrompt {
        let case = self.expected["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap();
        let ids: Vec<u32> = numbers(&case["input_ids"]);
        let flat = self.ints(&format!("{name}.position_ids"));
        let axis = |i: usize| flat[i * ids.len()..(i + 1) * ids.len()].iter().map(|&p| p as i32).collect::<Vec<_>>();
        let grids = case["image_grid_thw"].as_array().unwrap();
        let files = case["images"].as_array().unwrap();
        let images = files.iter().zip(grids).map(|(file, grid)| self.image(file.as_str().unwrap(), numbers(grid)));
        let next_position = ids.len() as i32 + case["rope_delta"].as_i64().unwrap() as i32;
        EncodedPrompt { images: images.collect(), positions: [axis(0), axis(1), axis(2)], next_position, ids }
    }

    /// Both temporal frames of a still image are the same.
    fn image(&self, file: &str, grid: Vec<usize>) -> EncodedImage {
        let name = format!("patch14.{}.pixel_values_t0", file.trim_end_matches(".png"));
        let frame = floats(&self.pixels, &name);
        let channels = frame.chunks(14 * 14).flat_map(|channel| [channel, channel].concat());
        EncodedImage { grid: [grid[0], grid[1], grid[2]], patches: channels.collect() }
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        floats(&self.tensors, name)
    }

    pub fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.tensors).unwrap().tensor(name).is_ok()
    }

    pub fn ints(&self, name: &str) -> Vec<i64> {
        let tensors = SafeTensors::deserialize(&self.tensors).unwrap();
        let data = tensors.tensor(name).unwrap().data();
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

fn floats(file: &[u8], name: &str) -> Vec<f32> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let data = tensors.tensor(name).unwrap().data();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn numbers<T: TryFrom<u64>>(value: &Value) -> Vec<T> {
    let convert = |v: &Value| T::try_from(v.as_u64().unwrap()).ok().unwrap();
    value.as_array().unwrap().iter().map(convert).collect()
}
