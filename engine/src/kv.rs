//! Keys and values of decoding: one prefix a group, shared by its rows, and each row's own continuation.

use crate::kernels::attention::{Heads, Segment};
use crate::kernels::gemm::{NR, Panels, pack_rows, pack_transposed, padded};
use crate::kernels::numbers::Values;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens of responses stored, and room for them, in all batches that this process is decoding.
static STORED: AtomicUsize = AtomicUsize::new(0);
static ROOM: AtomicUsize = AtomicUsize::new(0);

/// Share of the rooms for keys and values of responses that is filled, over all batches of this process; 0 while nothing is decoded.
pub fn kv_usage_ratio() -> f64 {
    let (stored, room) = (STORED.load(Ordering::Relaxed), ROOM.load(Ordering::Relaxed));
    if room == 0 { 0.0 } else { (stored as f64 / room as f64).min(1.0) }
}

/// The part of one batch in [`kv_usage_ratio`], for as long as it lives.
pub(crate) struct KvCount {
    stored: usize,
    room: usize,
}

impl KvCount {
    /// Room for `tokens` tokens.
    pub fn new(tokens: usize) -> Self {
        ROOM.fetch_add(tokens, Ordering::Relaxed);
        Self { stored: 0, room: tokens }
    }

    /// `tokens` more are stored.
    pub fn add(&mut self, tokens: usize) {
        self.stored += tokens;
        STORED.fetch_add(tokens, Ordering::Relaxed);
    }
}

impl Drop for KvCount {
    fn drop(&mut self) {
        STORED.fetch_sub(self.stored, Ordering::Relaxed);
        ROOM.fetch_sub(self.room, Ordering::Relaxed);
    }
}

/// Keys and values of a prompt, per layer and kv head, ready for the attention kernel.
#[derive(Default)]
pub struct PrefixKv {
    pub len: usize,
    layers: Vec<Vec<f32>>,
}

fn prefix_sizes(h: Heads, len: usize) -> (usize, usize) {
    (padded(len) * h.hd, padded(h.hd) * len)
}

impl PrefixKv {
    /// Adds the next layer from rows of q|k|v (`ld` apart) that start at the prefix.
    pub fn push(&mut self, h: Heads, len: usize, qkv: &[f32], ld: usize) {
        let (ks, vs) = prefix_sizes(h, len);
        self.len = len;
        let mut layer = vec![0.0; (ks + vs) * h.kv_heads];
        for (g, out) in layer.chunks_exact_mut(ks + vs).enumerate() {
            let (k, v) = out.split_at_mut(ks);
            pack_transposed(h.hd, len, &qkv[(h.heads + g) * h.hd..], ld, k);
            pack_rows(len, h.hd, &qkv[(h.heads + h.kv_heads + g) * h.hd..], ld, v);
        }
        self.layers.push(layer);
    }

    /// The segment of one layer and kv head.
    pub fn segment(&self, h: Heads, layer: usize, g: usize) -> Segment<'_> {
        let (ks, vs) = prefix_sizes(h, self.len);
        let (k, v) = self.layers[layer][g * (ks + vs)..(g + 1) * (ks + vs)].split_at(ks);
        Segment { k: Panels::new(k, h.hd), v: Panels::new(v, self.len), len: self.len, first: None }
    }
}

/// Keys and values of the tokens that rows generated, in slots of equal capacity.
pub struct OwnKv {
    heads: Heads,
    capacity: usize,
    layers: Vec<Vec<f32>>,
    count: KvCount,
}

impl OwnKv {
    /// Room for `tokens` tokens in each of `slots` rows.
    pub fn new(heads: Heads, layers: usize, slots: usize, tokens: usize) -> Self {
        let capacity = padded(tokens.max(1));
        let per_slot = heads.kv_heads * capacity * (heads.hd + padded(heads.hd));
        let layers = (0..layers).map(|_| vec![0.0; slots * per_slot]).collect();
        Self { heads, capacity, layers, count: KvCount::new(slots * tokens) }
    }

    fn place(&self, slot: usize, g: usize) -> (usize, usize) {
        let (ks, vs) = (self.capacity * self.heads.hd, self.capacity * padded(self.heads.hd));
        let at = (slot * self.heads.kv_heads + g) * (ks + vs);
        (at, at + ks)
    }

    /// Stores key and value number `t` of a row from its q|k|v.
    pub fn append(&mut self, layer: usize, slot: usize, t: usize, qkv: &[f32]) {
        let Heads { heads, kv_heads, hd } = self.heads;
        if layer == 0 {
            self.count.add(1);
        }
        for g in 0..kv_heads {
            let (k_at, v_at) = self.place(slot, g);
            let key = &qkv[(heads + g) * hd..][..hd];
            let value = &qkv[(heads + kv_heads + g) * hd..][..hd];
            let capacity = self.capacity;
            let store = &mut self.layers[layer];
            let panel = k_at + (t / NR) * hd * NR + t % NR;
            for (i, &x) in key.iter().enumerate() {
                store[panel + i * NR] = x;
            }
            for (p, part) in value.chunks(NR).enumerate() {
                store[v_at + (p * capacity + t) * NR..][..part.len()].copy_from_slice(part);
            }
        }
    }

    /// The first `len` tokens of a row.
    pub fn segment(&self, layer: usize, slot: usize, g: usize, len: usize) -> Segment<'_> {
        let (k, v) = self.place(slot, g);
        let store = &self.layers[layer];
        let end = k + self.capacity * (self.heads.hd + padded(self.heads.hd));
        let values = Panels { data: Values::F32(&store[v..end]), stride: self.capacity * NR };
        Segment { k: Panels::new(&store[k..v], self.heads.hd), v: values, len, first: None }
    }
}
