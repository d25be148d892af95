//! How long a prompt will be, from its text and the sizes of its images alone: no pixel is touched. For planning, and for finding prompts that
//! a model cannot take before a run begins.

use super::Processor;
use crate::error::ModelError;

/// Length of one encoded prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptLength {
    /// Token ids, image pads expanded.
    pub tokens: usize,
    /// Image pads among them.
    pub image_tokens: usize,
    /// Patches of all images, before merging: rows of the vision tower.
    pub patches: usize,
}

impl Processor {
    /// The length of what [`Processor::encode_prompt`] makes of `text` and images of these (width, height), also where that is too long for the model.
    ///
    /// # Errors
    /// Marks and images differ in number, an image has an impossible shape, or the text does not render as a prompt with these images.
    pub fn prompt_length(&self, text: &str, images: &[(u32, u32)]) -> Result<PromptLength, ModelError> {
        let messages = self.conversation(None, text, images.len())?;
        let mut grids = Vec::with_capacity(images.len());
        for &(width, height) in images {
            let processor = self.images.as_ref().ok_or_else(super::blind)?;
            let (h, w) = processor.target_size(height as usize, width as usize)?;
            grids.push([1, h / processor.patch_size, w / processor.patch_size]);
        }
        let ids = self.conversation_ids(&messages)?;
        let image_tokens = self.images.as_ref().map_or(0, |p| grids.iter().map(|&g| p.tokens(g)).sum());
        let patches = grids.iter().map(|g| g.iter().product::<usize>()).sum();
        Ok(PromptLength { tokens: self.expand(&ids, &grids)?.len(), image_tokens, patches })
    }

    /// Positions the model has: prompt and response together must not pass them.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }
}
