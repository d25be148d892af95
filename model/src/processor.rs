//! Text and images → model input: chat template, tokenizer, image patches, image-token expansion and positions together.

mod length;
mod options;

pub use length::PromptLength;
pub use options::TemplateOptions;

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::pixels::{EncodedImage, ImageProcessor};
use crate::positions::rope_positions;
use crate::template::{ChatTemplate, template_source};
use crate::tokens::TextTokenizer;
use image::RgbImage;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Where an image goes in a prompt's text.
pub const IMAGE_MARK: &str = "<image>";

/// One prompt as the model takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedPrompt {
    /// Token ids, image pads expanded.
    pub ids: Vec<u32>,
    /// Rotary positions per axis (temporal, height, width), each as long as `ids`.
    pub positions: [Vec<i32>; 3],
    /// Position, on all axes, of the first generated token.
    pub next_position: i32,
    /// Images in order of their pads.
    pub images: Vec<EncodedImage>,
}

/// Everything that turns text and images into model input and ids back into text.
#[derive(Debug, Clone)]
pub struct Processor {
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    options: TemplateOptions,
    images: Option<ImageProcessor>,
    image_token: Option<u32>,
    video_token: Option<u32>,
    max_positions: usize,
}

impl Processor {
    /// From a checkpoint's side files.
    ///
    /// # Errors
    /// Names the file that is missing or broken.
    pub(crate) fn from_files(files: &BTreeMap<String, Vec<u8>>, config: &ModelConfig) -> Result<Self, ModelError> {
        let tokenizer = TextTokenizer::from_files(files, config)?;
        let template = ChatTemplate::parse(&template_source(files)?)?;
        let images = match &config.vision {
            None => None,
            Some(vision) => {
                let found = ["preprocessor_config.json", "processor_config.json"]
                    .into_iter()
                    .find_map(|f| Some((f, files.get(f)?)));
                let (file, bytes) =
                    found.ok_or_else(|| missing("preprocessor_config.json", "copy it from the checkpoint's source"))?;
                Some(ImageProcessor::from_json(file, bytes, vision)?)
            }
        };
        let (image_token, video_token, max_positions) =
            (config.image_token_id, config.video_token_id, config.text.max_positions);
        let options = TemplateOptions::default();
        Ok(Self { tokenizer, template, options, images, image_token, video_token, max_positions })
    }

    /// The same processor with these choices for the chat template. The vocabulary is shared.
    pub fn with_template_options(&self, options: TemplateOptions) -> Self {
        Self { options, ..self.clone() }
    }

    /// The choices for the chat template.
    pub fn template_options(&self) -> &TemplateOptions {
        &self.options
    }

    /// One user turn. `text` holds [`IMAGE_MARK`] where each image goes; the generation prompt is added.
    ///
    /// # Errors
    /// The number of marks differs from the number of images, an image cannot be encoded, or the prompt is too long.
    pub fn encode_prompt(&self, text: &str, images: &[RgbImage]) -> Result<EncodedPrompt, ModelError> {
        self.encode_prompt_with_system(None, text, images)
    }

    /// As [`Self::encode_prompt`], after a system turn. `None` takes that of the template options, if any.
    ///
    /// # Errors
    /// As for [`Self::encode_prompt`].
    pub fn encode_prompt_with_system(
        &self,
        system: Option<&str>,
        text: &str,
        images: &[RgbImage],
    ) -> Result<EncodedPrompt, ModelError> {
        let messages = self.conversation(system, text, images.len())?;
        self.encode_messages(&messages, images)
    }

    /// One user turn, after the system turn if there is one, as templates take it.
    fn conversation(&self, system: Option<&str>, text: &str, images: usize) -> Result<Value, ModelError> {
        let marks = text.matches(IMAGE_MARK).count();
        if marks != images {
            let problem = format!(
                "it has {marks} {IMAGE_MARK} marks but {images} images; write {IMAGE_MARK} once where each image goes"
            );
            return Err(ModelError::Prompt(problem));
        }
        if images > 0 && self.images.is_none() {
            return Err(blind());
        }
        let content = if marks == 0 { Value::from(text) } else { interleave(text) };
        let mut messages = vec![];
        messages.extend(system.or(self.options.system.as_deref()).map(|s| json!({"role": "system", "content": s})));
        messages.push(json!({"role": "user", "content": content}));
        Ok(Value::from(messages))
    }

    /// Any conversation in the form chat templates take: a JSON list of `{role, content}`; the generation prompt is added.
    ///
    /// # Errors
    /// The template refuses it, the images do not match its image parts, an image cannot be encoded, or the prompt is too long.
    pub fn encode_messages(&self, messages: &Value, images: &[RgbImage]) -> Result<EncodedPrompt, ModelError> {
        let ids = self.conversation_ids(messages)?;
        let images = self.encode_images(images)?;
        let grids: Vec<[usize; 3]> = images.iter().map(|i| i.grid).collect();
        let ids = self.expand(&ids, &grids)?;
        if ids.is_empty() {
            return Err(ModelError::Prompt("it has no tokens; the chat template wrote nothing".to_owned()));
        }
        if ids.len() > self.max_positions {
            let problem = format!(
                "it has {} tokens but the model has {} positions; shorten it or lower max_pixels",
                ids.len(),
                self.max_positions
            );
            return Err(ModelError::Prompt(problem));
        }
        let merge = self.images.as_ref().map_or(1, |p| p.merge_size);
        let positions = rope_positions(&ids, self.image_token, &grids, merge)?;
        Ok(EncodedPrompt { ids, positions: positions.axes, next_position: positions.next, images })
    }

    fn encode_images(&self, images: &[RgbImage]) -> Result<Vec<EncodedImage>, ModelError> {
        match &self.images {
            Some(processor) => images.iter().map(|image| processor.encode(image)).collect(),
            None if images.is_empty() => Ok(Vec::new()),
            None => Err(blind()),
        }
    }

    /// The text of a conversation before tokenizing, one image token an image.
    ///
    /// # Errors
    /// The template refuses it.
    pub fn render(&self, messages: &Value) -> Result<String, ModelError> {
        self.template.render(messages, true, &self.options.variables(self.tokenizer.named()))
    }

    /// Ids of a conversation, one image token an image. Control tokens spelled out in the messages stay ordinary text.
    fn conversation_ids(&self, messages: &Value) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode_conversation(messages, |m| self.render(m))
    }

    /// One pad a merged cell instead of one an image.
    fn expand(&self, ids: &[u32], grids: &[[usize; 3]]) -> Result<Vec<u32>, ModelError> {
        if self.video_token.is_some_and(|v| ids.contains(&v)) {
            return Err(ModelError::Prompt("it holds a video, which is not supported; use still images".to_owned()));
        }
        let pads = ids.iter().filter(|&&id| Some(id) == self.image_token).count();
        if pads != grids.len() {
            let problem = format!(
                "it has {pads} image tokens but {} images; the chat template must write one for each image",
                grids.len()
            );
            return Err(ModelError::Prompt(problem));
        }
        let mut counts = grids.iter().map(|&g| self.images.as_ref().map_or(1, |p| p.tokens(g)));
        let mut out = Vec::with_capacity(ids.len());
        for &id in ids {
            let times = if Some(id) == self.image_token { counts.next().unwrap_or(1) } else { 1 };
            out.extend(std::iter::repeat_n(id, times));
        }
        Ok(out)
    }

    /// Ids of plain text: no template, nothing added.
    ///
    /// # Errors
    /// The tokenizer cannot represent the text.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode(text)
    }

    /// Text of `ids`; invalid UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ModelError> {
        self.tokenizer.decode(ids, skip_special)
    }

    /// Ids that end a completion: generation_config.json's list, then the tokenizer's eos.
    pub fn stop_tokens(&self) -> &[u32] {
        self.tokenizer.stop()
    }

    /// Ids never sampled, ascending: image, video, vision marks, turn start, pad and bos unless they stop, and ids without a token.
    pub fn forbidden_tokens(&self) -> Vec<u32> {
        self.tokenizer.forbidden().to_vec()
    }

    /// The tokenizer alone.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The image processor of a vision-language model.
    pub fn image_processor(&self) -> Option<&ImageProcessor> {
        self.images.as_ref()
    }
}

fn blind() -> ModelError {
    ModelError::Prompt("it has images but the model has no vision tower; use a vision-language checkpoint".to_owned())
}

fn missing(file: &str, remedy: &str) -> ModelError {
    ModelError::MissingFile { place: "checkpoint".to_owned(), file: file.to_owned(), remedy: remedy.to_owned() }
}

/// Text and image parts in the order of the marks.
fn interleave(text: &str) -> Value {
    let mut parts = Vec::new();
    for (i, piece) in text.split(IMAGE_MARK).enumerate() {
        if i > 0 {
            parts.push(json!({"type": "image"}));
        }
        if !piece.is_empty() {
            parts.push(json!({"type": "text", "text": piece}));
        }
    }
    Value::from(parts)
}
