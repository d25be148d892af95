//! Losses of a gradient batch, pack by pack: what ranks tell each other, so that each adds them up in the order of one rank.

use quorum_core::objective::Stats;

/// What one pack adds to the losses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PackLosses {
    /// In sample order.
    pub sequences: Vec<SequencePart>,
    /// Σ entropy over the tokens, nats.
    pub entropy: f64,
    /// Largest |worker's log-prob − ours|, nats; 0 where nothing was compared.
    pub mismatch: f64,
}

/// What one sequence adds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SequencePart {
    pub policy: f64,
    /// β-weighted.
    pub kl: f64,
    pub stats: Stats,
}

/// Sums of one gradient batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BatchLosses {
    pub policy: f64,
    /// β-weighted.
    pub kl: f64,
    pub stats: Stats,
    pub entropy_sum: f64,
    /// Largest |worker's log-prob − ours|, nats; 0 where nothing was compared.
    pub mismatch: f64,
}

impl BatchLosses {
    /// Adds packs up in the order given.
    pub fn of<'a>(packs: impl IntoIterator<Item = &'a PackLosses>) -> Self {
        let mut out = Self::default();
        for pack in packs {
            for part in &pack.sequences {
                out.policy += part.policy;
                out.kl += part.kl;
                out.stats.merge(&part.stats);
            }
            out.entropy_sum += pack.entropy;
            out.mismatch = out.mismatch.max(pack.mismatch);
        }
        out
    }
}

/// Words of one sequence, and of a pack besides its sequences.
const SEQUENCE: usize = 10;
const PACK: usize = 3;

/// Packs as bytes, bit for bit.
pub fn to_bytes(packs: &[PackLosses]) -> Vec<u8> {
    let mut words: Vec<u64> = Vec::new();
    for pack in packs {
        words.extend([pack.sequences.len() as u64, pack.entropy.to_bits(), pack.mismatch.to_bits()]);
        for SequencePart { policy, kl, stats } in &pack.sequences {
            words.extend([policy.to_bits(), kl.to_bits(), stats.sequences, stats.tokens]);
            words.extend([stats.clipped_low, stats.clipped_high, stats.clipped_dual]);
            words.extend([stats.ratio_sum.to_bits(), stats.ratio_max.to_bits(), stats.kl_sum.to_bits()]);
        }
    }
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// What `to_bytes` made; none if it did not.
pub fn from_bytes(bytes: &[u8]) -> Option<Vec<PackLosses>> {
    let (words, []) = bytes.as_chunks::<8>() else { return None };
    let words: Vec<u64> = words.iter().map(|w| u64::from_le_bytes(*w)).collect();
    let mut rest = words.as_slice();
    let mut packs = Vec::new();
    while !rest.is_empty() {
        let (&[count, entropy, mismatch], tail) = rest.split_first_chunk::<PACK>()?;
        let (own, tail) = tail.split_at_checked(usize::try_from(count).ok()?.checked_mul(SEQUENCE)?)?;
        let sequences = own.as_chunks::<SEQUENCE>().0.iter().map(sequence).collect();
        packs.push(PackLosses { sequences, entropy: f64::from_bits(entropy), mismatch: f64::from_bits(mismatch) });
        rest = tail;
    }
    Some(packs)
}

fn sequence(words: &[u64; SEQUENCE]) -> SequencePart {
    let [policy, kl, sequences, tokens, clipped_low, clipped_high, clipped_dual, ratio_sum, ratio_max, kl_sum] = *words;
    let number = f64::from_bits;
    let stats = Stats {
        sequences,
        tokens,
        clipped_low,
        clipped_high,
        clipped_dual,
        ratio_sum: number(ratio_sum),
        ratio_max: number(ratio_max),
        kl_sum: number(kl_sum),
    };
    SequencePart { policy: number(policy), kl: number(kl), stats }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_travel_bit_for_bit_and_torn_ones_are_refused() {
        let part = |x: f64| SequencePart {
            policy: -x,
            kl: f64::NAN,
            stats: Stats { sequences: 1, tokens: 7, ratio_max: x, kl_sum: 0.1 * x, ..Stats::default() },
        };
        let packs = [
            PackLosses { sequences: vec![part(0.1), part(1e-300)], entropy: 0.7, mismatch: 1.0 },
            PackLosses::default(),
            PackLosses { sequences: vec![part(-0.0)], entropy: f64::INFINITY, mismatch: 0.0 },
        ];
        let bytes = to_bytes(&packs);
        assert_eq!(to_bytes(&from_bytes(&bytes).unwrap()), bytes);
        assert_eq!(from_bytes(&[]), Some(Vec::new()));
        for cut in 1..bytes.len() {
            // A cut between packs leaves whole ones.
            let whole = from_bytes(&bytes[..cut]).is_none_or(|packs| packs.len() < 3);
            assert!(whole, "{cut}");
        }
        assert_eq!(from_bytes(&[0xff; 24]), None);
    }
}
