//! What one of several devices holds of a model: the heads and the hidden columns of the decoder's blocks that are its own. A shard has a
//! plan of its own, whose blocks have its shapes; a parameter keeps its address in the slab, and [`Holdings`] says which part of it is here.

use crate::block::Block;
use crate::error::EngineError;
use crate::kernels::attention::Heads;
use crate::linear::{Adapter, Linear};
use crate::mlp::{Act, Mlp};
use crate::model::plan::Plan;
use crate::params::Param;
use quorum_model::TextConfig;
use std::borrow::Cow;
use std::collections::HashMap;
use std::iter;
use std::ops::Range;

/// Some columns of some stretches of rows of a matrix.
#[derive(Debug, PartialEq)]
struct Slice {
    rows: Vec<Range<usize>>,
    columns: Range<usize>,
    width: usize,
}

impl Slice {
    /// Its elements as ascending stretches of the parameter's.
    fn stretches(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let (columns, width) = (&self.columns, self.width);
        self.rows.iter().flat_map(move |r| {
            // Whole rows lie together.
            let step = if columns.len() == width { r.len().max(1) } else { 1 };
            r.clone().step_by(step).map(move |row| row * width + columns.start..(row + step - 1) * width + columns.end)
        })
    }
}

/// Which part of each parameter a shard holds, and whose gradient counts.
#[derive(Debug, Default)]
pub struct Holdings {
    rank: usize,
    /// By slab and start. What is not here is held whole by every shard, with the same gradient; what is here without a slice is held whole, and
    /// the shards' gradients are parts of a sum.
    parts: HashMap<(bool, usize), Option<Slice>>,
}

impl Holdings {
    /// Whether this shard's gradient of the parameter is wanted.
    pub fn counts(&self, p: &Param) -> bool {
        p.trained() && (self.rank == 0 || self.parts.contains_key(&(true, p.range.start)))
    }

    fn slice(&self, p: &Param) -> Option<&Slice> {
        self.parts.get(&(p.trained(), p.range.start))?.as_ref()
    }

    /// This shard's share of elements `from..` of a parameter.
    pub fn share<'a>(&self, p: &Param, from: usize, values: &'a [f32]) -> Cow<'a, [f32]> {
        let Some(slice) = self.slice(p) else { return values.into() };
        let here = from..from + values.len();
        let inside = slice.stretches().map(|s| s.start.max(here.start)..s.end.min(here.end)).filter(|s| !s.is_empty());
        let mut own = Vec::new();
        inside.for_each(|s| own.extend_from_slice(&values[s.start - from..s.end - from]));
        own.into()
    }

    /// Adds this shard's `values` to a whole parameter `to` of the trainable slab.
    pub fn add(&self, p: &Param, values: &[f32], to: &mut [f32]) {
        let add = |to: &mut [f32], from: &[f32]| to.iter_mut().zip(from).for_each(|(to, x)| *to += x);
        let Some(slice) = self.slice(p) else { return add(to, values) };
        let mut rest = values;
        for stretch in slice.stretches() {
            let (own, others) = rest.split_at(stretch.len().min(rest.len()));
            add(&mut to[stretch], own);
            rest = others;
        }
    }
}

/// The plan and the holdings of shard `rank` of `world`.
///
/// # Errors
/// Names the counts that cannot be divided, and numbers of devices that divide them.
pub fn shard(plan: &Plan, rank: usize, world: usize) -> Result<(Plan, Holdings), EngineError> {
    check(&plan.config.text, world)?;
    let (mut own, mut holdings) = (plan.clone(), Holdings { rank, ..Holdings::default() });
    if world > 1 {
        let mut cut = Cut { rank, world, parts: HashMap::new() };
        own.blocks = plan.blocks.iter().map(|b| cut.block(b)).collect();
        holdings.parts = cut.parts;
    }
    Ok((own, holdings))
}

fn check(t: &TextConfig, world: usize) -> Result<(), EngineError> {
    // Beyond one kv head a device, devices that read the same one hold it each.
    let fits = |n: usize| {
        let kv = t.num_kv_heads.is_multiple_of(n) || n.is_multiple_of(t.num_kv_heads);
        kv && t.num_heads.is_multiple_of(n) && t.intermediate_size.is_multiple_of(n)
    };
    if world > 0 && fits(world) {
        return Ok(());
    }
    let others: Vec<String> = (1..=t.num_heads).filter(|&n| fits(n)).map(|n| n.to_string()).collect();
    Err(EngineError::Shape(format!(
        "{} heads, {} key-value heads and an MLP of {} cannot be shared evenly by {world} devices joined with +; a number that works: {}",
        t.num_heads,
        t.num_kv_heads,
        t.intermediate_size,
        others.join(", ")
    )))
}

/// Blocks being cut for one shard.
struct Cut {
    rank: usize,
    world: usize,
    parts: HashMap<(bool, usize), Option<Slice>>,
}

impl Cut {
    fn hold(&mut self, p: &Param, slice: Option<Slice>) {
        self.parts.insert((p.trained(), p.range.start), slice);
    }

    /// This shard's part of `n`, or the one it reads with others.
    fn part(&self, n: usize) -> Range<usize> {
        let first = self.rank * n / self.world;
        first..first + (n / self.world).max(1)
    }

    fn block(&mut self, b: &Block) -> Block {
        let Heads { heads, kv_heads, hd } = b.heads;
        let (q, kv) = (self.part(heads), self.part(kv_heads));
        let stretch = |first: usize, part: &Range<usize>| (first + part.start) * hd..(first + part.end) * hd;
        let rows = [stretch(0, &q), stretch(heads, &kv), stretch(heads + kv_heads, &kv)];
        for norm in b.qk_norm.iter().flat_map(|n| [&n.q, &n.k]) {
            self.hold(norm, None);
        }
        Block {
            qkv: self.rows(&b.qkv, &rows),
            out: self.columns(&b.out, stretch(0, &q)),
            mlp: self.mlp(&b.mlp),
            heads: Heads { heads: q.len(), kv_heads: kv.len(), hd },
            ..b.clone()
        }
    }

    fn mlp(&mut self, mlp: &Mlp) -> Mlp {
        let m = mlp.down.n_in;
        let own = self.part(m);
        let gated = (m + own.start)..(m + own.end);
        let rows = if mlp.act == Act::SwiGlu { vec![own.clone(), gated] } else { vec![own.clone()] };
        Mlp { up: self.rows(&mlp.up, &rows), act: mlp.act, down: self.columns(&mlp.down, own) }
    }

    /// A layer whose outputs are shared out: some of its rows. An adapter's A is everywhere, and its gradient a sum over the shards.
    fn rows(&mut self, l: &Linear, kept: &[Range<usize>]) -> Linear {
        let slice = |rows: &[Range<usize>], width| Some(Slice { rows: rows.to_vec(), columns: 0..width, width });
        self.hold(&l.weight.param, slice(kept, l.n_in));
        if let Some(bias) = &l.bias {
            self.hold(bias, slice(kept, 1));
        }
        let mut own = l.clone();
        own.n_out = kept.iter().map(Range::len).sum();
        own.weight.n_out = own.n_out;
        for a in &mut own.adapters {
            let (from, to) = (a.first, a.first + a.up.n_out);
            let inside = |r: &Range<usize>| r.start.clamp(from, to) - from..r.end.clamp(from, to) - from;
            let rows: Vec<_> = kept.iter().map(inside).filter(|r| !r.is_empty()).collect();
            self.hold(&a.down.param, None);
            self.hold(&a.up.param, slice(&rows, a.up.n_in));
            a.up.n_out = rows.iter().map(Range::len).sum();
            a.first = kept.iter().map(|r| r.end.min(from).saturating_sub(r.start)).sum();
        }
        own
    }

    /// A layer whose inputs are shared out: some of its columns. Its bias is everywhere; so is an adapter's B, whose gradient is a sum.
    fn columns(&mut self, l: &Linear, kept: Range<usize>) -> Linear {
        let slice = |rows, width| Some(Slice { rows: iter::once(0..rows).collect(), columns: kept.clone(), width });
        self.hold(&l.weight.param, slice(l.n_out, l.n_in));
        let mut own = l.clone();
        own.n_in = kept.len();
        own.weight.n_in = own.n_in;
        for Adapter { down, up, .. } in &mut own.adapters {
            self.hold(&down.param, slice(down.n_out, down.n_in));
            self.hold(&up.param, None);
            down.n_in = kept.len();
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_model::Part;

    #[test]
    fn shares_of_a_matrix_are_its_stretches() {
        let p = Param { part: Part::Trainable, range: 100..124 };
        let of = |slice| Holdings { rank: 1, parts: HashMap::from([((true, 100), slice)]) };
        let values: Vec<f32> = (0..24).map(|x| x as f32).collect();
        // Rows 1 and 4 of [6, 4]; columns 2 and 3 of it; the second half of it arriving alone.
        let rows = of(Some(Slice { rows: vec![1..2, 4..5], columns: 0..4, width: 4 }));
        assert_eq!(*rows.share(&p, 0, &values), [4.0, 5.0, 6.0, 7.0, 16.0, 17.0, 18.0, 19.0]);
        assert_eq!(*rows.share(&p, 12, &values[12..]), [16.0, 17.0, 18.0, 19.0]);
        let columns = of(Some(Slice { rows: vec![0..2, 2..6], columns: 2..4, width: 4 }));
        let share = columns.share(&p, 0, &values).into_owned();
        assert_eq!(share, [2.0, 3.0, 6.0, 7.0, 10.0, 11.0, 14.0, 15.0, 18.0, 19.0, 22.0, 23.0]);
        let mut whole = vec![0.0; 24];
        columns.add(&p, &share, &mut whole);
        let kept: Vec<f32> = values.iter().map(|&x| if x as usize % 4 >= 2 { x } else { 0.0 }).collect();
        assert_eq!(whole, kept);
        // Held whole with a part of the gradient; held whole with the same gradient as the first shard.
        assert_eq!(*of(None).share(&p, 0, &values), values);
        assert!(of(None).counts(&p) && !of(None).counts(&Param { range: 0..9, ..p.clone() }));
    }
}
