//! Text and images → model input: chat template, tokenizer, image patches, image-token expansion and positions together.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::json::parse_object;
use crate::pixels::{EncodedImage, ImageProcessor};
use crate::positions::rope_positions;
use crate::template::ChatTemplate;
use crate::tokens::TextTokenizer;
use image::RgbImage;
use serde_json::{Map, Value, json};
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
        Ok(Self { tokenizer, template, images, image_token, video_token, max_positions })
    }

    /// One user turn. `text` holds [`IMAGE_MARK`] where each image goes; the generation prompt is added.
    ///
    /// # Errors
    /// The number of marks differs from the number of images, an image cannot be encoded, or the prompt is too long.
    pub fn encode_prompt(&self, text: &str, images: &[RgbImage]) -> Result<EncodedPrompt, ModelError> {
        self.encode_prompt_with_system(None, text, images)
    }

    /// As [`Self::encode_prompt`], after a system turn. `None` leaves it to the template (Qwen's has a default one).
    ///
    /// # Errors
    /// As for [`Self::encode_prompt`].
    pub fn encode_prompt_with_system(
        &self,
        system: Option<&str>,
        text: &str,
        images: &[RgbImage],
    ) -> Result<EncodedPrompt, ModelError> {
        let marks = text.matches(IMAGE_MARK).count();
        if marks != images.len() {
            let problem = format!(
                "it has {marks} {IMAGE_MARK} marks but {} images; write {IMAGE_MARK} once where each image goes",
                images.len()
            );
            return Err(ModelError::Prompt(problem));
        }
        let content = if marks == 0 { Value::from(text) } else { interleave(text) };
        let mut messages = vec![];
        messages.extend(system.map(|s| json!({"role": "system", "content": s})));
        messages.push(json!({"role": "user", "content": content}));
        self.encode_messages(&Value::from(messages), images)
    }

    /// Any conversation in the form chat templates take: a JSON list of `{role, content}`; the generation prompt is added.
    ///
    /// # Errors
    /// The template refuses it, the images do not match its image parts, an image cannot be encoded, or the prompt is too long.
    pub fn encode_messages(&self, messages: &Value, images: &[RgbImage]) -> Result<EncodedPrompt, ModelError> {
        let rendered = self.render(messages)?;
        let images = self.encode_images(images)?;
        let grids: Vec<[usize; 3]> = images.iter().map(|i| i.grid).collect();
        let ids = self.expand(&self.tokenizer.encode(&rendered)?, &grids)?;
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
            None => Err(ModelError::Prompt(
                "it has images but the model has no vision tower; use a vision-language checkpoint".to_owned(),
            )),
        }
    }

    /// The text of a conversation before tokenizing, one image token an image.
    ///
    /// # Errors
    /// The template refuses it.
    pub fn render(&self, messages: &Value) -> Result<String, ModelError> {
        self.template.render(messages, true, self.tokenizer.named())
    }

    /// One pad a merged cell instead of one an image.
    fn expand(&self, ids: &[u32], grids: &[[usize; 3]]) -> Result<Vec<u32>, ModelError> {
        if self.video_token.is_some_and(|v| ids.contains(&v)) {
            return Err(ModelError::Prompt("it holds a video, which is not supported; use still images".to_owned()));
        }
        let pads = ids.iter().filter(|&&id| Some(id) == self.image_token).count();
        if pads != grids.len() {
            let problem = format!(
                "it has {pads} image tokens but {} images; a question must not contain <|image_pad|> itself",
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

/// The chat template, from the first file that has one: chat_template.jinja, chat_template.json, tokenizer_config.json.
fn template_source(files: &BTreeMap<String, Vec<u8>>) -> Result<String, ModelError> {
    if let Some(bytes) = files.get("chat_template.jinja") {
        return String::from_utf8(bytes.clone())
            .map_err(|_| ModelError::Template("chat_template.jinja is not UTF-8; copy it again".to_owned()));
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        let Some(bytes) = files.get(file) else { continue };
        let map: Map<String, Value> = parse_object(file, bytes)?;
        match map.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(Value::String(source)) => return Ok(source.clone()),
            // Several named templates; the reference takes the one called "default".
            Some(Value::Array(named)) => {
                let default = named.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
                let source = default.and_then(|t| t.get("template")).and_then(Value::as_str);
                return source
                    .map(str::to_owned)
                    .ok_or_else(|| ModelError::key(file, "chat_template", "has no template named \"default\""));
            }
            Some(_) => return Err(ModelError::key(file, "chat_template", "must be a string")),
        }
    }
    Err(missing(
        "chat_template.json",
        "copy it, or a tokenizer_config.json with a chat_template, from the checkpoint's source",
    ))
}
