//! Where everything of a model lies in the slabs, found once and checked against the shapes.

use super::finder::{Finder, Sizes};
use super::vision::VisionPlan;
use crate::block::Block;
use crate::error::EngineError;
use crate::families;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::params::Param;
use quorum_model::{ModelConfig, Partition, TextConfig};

/// A model as ranges and shapes; it owns no weights.
#[derive(Debug, Clone)]
pub struct Plan {
    pub config: ModelConfig,
    pub vision: Option<VisionPlan>,
    /// Token embedding \[vocab, hidden\].
    pub embed: Param,
    pub blocks: Vec<Block>,
    pub norm: Norm,
    /// The embedding itself when it is tied.
    pub head: Linear,
    pub sizes: Sizes,
}

impl Plan {
    /// Finds every tensor of `config` in the two slabs.
    pub fn new(config: &ModelConfig, parts: &Partition) -> Result<Self, EngineError> {
        let mut f = Finder::new(parts);
        let t = &config.text;
        check_text(t)?;
        let vision = families::vision(&mut f, config)?;
        if vision.as_ref().is_some_and(|v| v.deepstack.len() > t.num_layers) {
            return Err(EngineError::Shape("more deepstack mergers than decoder layers".into()));
        }
        let embed = f.tensor(&config.embedding_name(), &[t.vocab_size, t.hidden_size])?;
        let blocks = (0..t.num_layers).map(|i| families::decoder_block(&mut f, config, i)).collect::<Result<_, _>>()?;
        let weight = f.tensor(&config.text_name("norm.weight"), &[t.hidden_size])?;
        let norm = Norm::Rms { weight, eps: t.rms_norm_eps };
        let head = f.linear(&[(&config.head_name(), t.vocab_size)], t.hidden_size, &[])?;
        Ok(Self { config: config.clone(), vision, embed, blocks, norm, head, sizes: f.sizes() })
    }

    /// Every linear layer.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let vision = self.vision.iter().flat_map(VisionPlan::linears);
        vision.chain(self.blocks.iter().flat_map(Block::linears)).chain([&self.head])
    }
}

fn check_text(t: &TextConfig) -> Result<(), EngineError> {
    if t.num_kv_heads == 0
        || !t.num_heads.is_multiple_of(t.num_kv_heads)
        || t.head_dim == 0
        || !t.head_dim.is_multiple_of(2)
    {
        let (h, kv, hd) = (t.num_heads, t.num_kv_heads, t.head_dim);
        return Err(EngineError::Shape(format!(
            "{h} heads, {kv} key-value heads, head_dim {hd}: heads must be a multiple of key-value heads and head_dim even"
        )));
    }
    let sections: usize = t.mrope_section.iter().sum();
    if !t.mrope_section.is_empty() && (t.mrope_section.len() != 3 || sections != t.head_dim / 2) {
        return Err(EngineError::Shape(format!(
            "mrope_section {:?} must have three parts that add up to head_dim / 2 = {}",
            t.mrope_section,
            t.head_dim / 2
        )));
    }
    if t.hidden_size == 0 || t.vocab_size == 0 || t.num_layers == 0 || t.intermediate_size == 0 {
        return Err(EngineError::Shape(
            "hidden_size, vocab_size, num_hidden_layers and intermediate_size must be positive".into(),
        ));
    }
    Ok(())
}
