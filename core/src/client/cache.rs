//! A least-recently-used cache of blobs, bounded in bytes.

use std::collections::HashMap;
use std::sync::Arc;

struct Held {
    bytes: Arc<[u8]>,
    used: u64,
}

/// Blobs by content hash. A blob larger than the whole budget is not kept.
pub struct ByteCache {
    held: HashMap<String, Held>,
    budget: usize,
    size: usize,
    clock: u64,
}

impl ByteCache {
    /// A cache of at most `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { held: HashMap::new(), budget, size: 0, clock: 0 }
    }

    /// The blob, now the most recently used one.
    pub fn get(&mut self, hash: &str) -> Option<Arc<[u8]>> {
        self.clock += 1;
        let held = self.held.get_mut(hash)?;
        held.used = self.clock;
        Some(held.bytes.clone())
    }

    /// Keeps a blob and drops the least recently used ones beyond the budget.
    pub fn put(&mut self, hash: String, bytes: Arc<[u8]>) {
        if bytes.len() > self.budget {
            return;
        }
        self.clock += 1;
        self.size += bytes.len();
        if let Some(old) = self.held.insert(hash, Held { bytes, used: self.clock }) {
            self.size -= old.bytes.len();
        }
        while self.size > self.budget {
            let Some(oldest) = self.held.iter().min_by_key(|(_, h)| h.used).map(|(k, _)| k.clone()) else { return };
            if let Some(old) = self.held.remove(&oldest) {
                self.size -= old.bytes.len();
            }
        }
    }

    /// Bytes held.
    pub fn size(&self) -> usize {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: usize) -> Arc<[u8]> {
        vec![7u8; n].into()
    }

    #[test]
    fn the_least_recently_used_blob_goes_first() {
        let mut cache = ByteCache::new(10);
        cache.put("a".into(), blob(4));
        cache.put("b".into(), blob(4));
        assert!(cache.get("a").is_some());
        cache.put("c".into(), blob(4));
        assert!(cache.get("b").is_none() && cache.get("a").is_some() && cache.get("c").is_some());
        assert_eq!(cache.size(), 8);
    }

    #[test]
    fn size_counts_what_is_held() {
        let mut cache = ByteCache::new(10);
        cache.put("a".into(), blob(4));
        cache.put("a".into(), blob(6));
        cache.put("huge".into(), blob(11));
        assert_eq!(cache.size(), 6);
        assert!(cache.get("huge").is_none());
    }
}
