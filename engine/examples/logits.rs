//! Writes ids, patches and the logits of every position of one prompt: `logits MODEL_DIR OUT.safetensors TEXT [IMAGE…]`.
//! `bench/peers/check_export.py` compares them with transformers'. Meant for short prompts: logits are \[tokens, vocab\].

use quorum_engine::Engine;
use quorum_model::Checkpoint;
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::path::Path;

struct Tensor(Dtype, Vec<usize>, Vec<u8>);

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.2)
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

fn floats(shape: Vec<usize>, x: &[f32]) -> Tensor {
    Tensor(Dtype::F32, shape, x.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn integers(shape: Vec<usize>, x: impl Iterator<Item = i32>) -> Tensor {
    Tensor(Dtype::I32, shape, x.flat_map(i32::to_le_bytes).collect())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, out, text, images @ ..] = args.as_slice() else {
        return Err("usage: logits MODEL_DIR OUT.safetensors TEXT [IMAGE…]".into());
    };
    let checkpoint = Checkpoint::open(Path::new(dir))?;
    let images = images.iter().map(|p| Ok(image::open(p)?.to_rgb8())).collect::<Result<Vec<_>, image::ImageError>>()?;
    let prompt = checkpoint.processor.encode_prompt(text, &images)?;
    let weights = checkpoint.load_weights()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let engine = Engine::new(&checkpoint.config, checkpoint.layout.clone(), threads)?;
    let logits = engine.logits(&weights, &prompt)?;
    let n = prompt.ids.len();
    let mut tensors = vec![
        ("ids", integers(vec![n], prompt.ids.iter().map(|&i| i as i32))),
        ("logits", floats(vec![n, logits.len() / n.max(1)], &logits)),
    ];
    if !prompt.images.is_empty() {
        let patches: Vec<f32> = prompt.images.iter().flat_map(|i| i.patches.iter().copied()).collect();
        let rows: usize = prompt.images.iter().map(|i| i.grid.iter().product::<usize>()).sum();
        tensors.push(("patches", floats(vec![rows, patches.len() / rows], &patches)));
        let grid = prompt.images.iter().flat_map(|i| i.grid).map(|g| g as i32);
        tensors.push(("grid", integers(vec![prompt.images.len(), 3], grid)));
    }
    safetensors::serialize_to_file(tensors, None, Path::new(out))?;
    println!("{n} positions, {} images → {out}", prompt.images.len());
    Ok(())
}
