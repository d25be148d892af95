//! Numbers in order from one counter-based stream.

use quorum_core::seed::Stream;

pub struct Draw {
    stream: Stream,
    counter: u64,
}

impl Draw {
    pub fn new(name: &str, numbers: &[u64]) -> Self {
        Self { stream: Stream::named(name, numbers), counter: 0 }
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.counter += 1;
        self.stream.uniform(self.counter)
    }

    /// Uniform in [-limit, limit).
    pub fn around(&mut self, limit: f64) -> f64 {
        (2.0 * self.uniform() - 1.0) * limit
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.counter += 1;
        self.stream.below(n as u64, self.counter) as usize
    }

    /// One element.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let i = self.below(from.len());
        from.get(i)
    }
}
