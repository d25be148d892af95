//! What a run of blocks keeps between the forward and the backward pass: everything, each block's input only (gradient checkpointing:
//! the forward pass is done again on the way back, bit for bit), or nothing.

use crate::block::{Activations, Block, BlockScratch, Rows, keep};
use crate::params::{Grads, Weights};

/// What is kept of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// For blocks that no gradient reaches.
    #[default]
    Nothing,
    /// The block's input.
    Input,
    /// All that the backward pass reads.
    All,
}

/// Activations of consecutive blocks; buffers are reused from batch to batch.
#[derive(Default)]
pub struct Tape {
    blocks: Vec<(Keep, Activations)>,
    /// Buffers of a block of which not all is kept.
    passing: Activations,
    x: Vec<f32>,
}

impl Tape {
    /// Runs block `i` on `x`. Returns its rotated q|k|v rows.
    pub fn forward(
        &mut self,
        i: usize,
        block: &Block,
        w: &Weights,
        rows: Rows,
        x: &mut [f32],
        what: Keep,
        s: &mut BlockScratch,
    ) -> &[f32] {
        if self.blocks.len() <= i {
            self.blocks.resize_with(i + 1, Default::default);
        }
        let (kept, own) = &mut self.blocks[i];
        *kept = what;
        if what == Keep::Input {
            keep(&mut own.x_in, &x[..rows.n * block.norm1.width()]);
        }
        let a = if what == Keep::All { own } else { &mut self.passing };
        block.forward(w, rows, x, a, what == Keep::All, s);
        &a.attention.qkv
    }

    /// Backward pass of block `i`, which must have been run with [`Keep::All`] or [`Keep::Input`].
    pub fn backward(
        &mut self,
        i: usize,
        block: &Block,
        w: &Weights,
        rows: Rows,
        dx: &mut [f32],
        grads: &mut Grads,
        s: &mut BlockScratch,
    ) {
        let (kept, own) = &self.blocks[i];
        debug_assert_ne!(*kept, Keep::Nothing);
        if *kept == Keep::All {
            block.backward(w, rows, own, dx, grads, s);
            return;
        }
        let n = rows.n * block.norm1.width();
        keep(&mut self.x, &own.x_in[..n]);
        block.forward(w, rows, &mut self.x[..n], &mut self.passing, true, s);
        block.backward(w, rows, &self.passing, dx, grads, s);
    }
}
