//! Which groups asked the same question, in order.

use std::collections::{HashMap, VecDeque};

/// Groups remembered: of longer runs the newest.
const KEPT: usize = 200_000;

/// (step, slot) of the groups of each question.
#[derive(Debug, Default)]
pub struct Visits {
    by_prompt: HashMap<u64, VecDeque<(u64, u32)>>,
    order: VecDeque<u64>,
    /// The newest step seen may still get groups: it is read again.
    open: Vec<(u64, u32)>,
    next: u64,
}

impl Visits {
    /// Step to read from: the newest one again, because it may have been open.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Adds a group; one that is there already changes nothing.
    pub fn push(&mut self, step: u64, slot: u32, prompt: u64) {
        if step > self.next {
            self.open.clear();
            self.next = step;
        }
        if step < self.next || self.open.contains(&(step, slot)) {
            return;
        }
        self.open.push((step, slot));
        self.by_prompt.entry(prompt).or_default().push_back((step, slot));
        self.order.push_back(prompt);
        if self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
            && let Some(visits) = self.by_prompt.get_mut(&oldest)
        {
            visits.pop_front();
            if visits.is_empty() {
                self.by_prompt.remove(&oldest);
            }
        }
    }

    /// Groups of a question, oldest first.
    pub fn of(&self, prompt: u64) -> Vec<(u64, u32)> {
        self.by_prompt.get(&prompt).map(|v| v.iter().copied().collect()).unwrap_or_default()
    }

    /// The group before `step` that asked this question.
    pub fn before(&self, prompt: u64, step: u64) -> Option<(u64, u32)> {
        self.by_prompt.get(&prompt)?.iter().rev().find(|(s, _)| *s < step).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_step_is_read_again_without_doubles() {
        let mut v = Visits::default();
        for (step, slot, prompt) in [(0, 0, 7), (0, 1, 8), (1, 0, 7)] {
            v.push(step, slot, prompt);
        }
        assert_eq!(v.next(), 1);
        for (step, slot, prompt) in [(1, 0, 7), (1, 1, 9), (2, 0, 7)] {
            v.push(step, slot, prompt);
        }
        assert_eq!(v.of(7), [(0, 0), (1, 0), (2, 0)]);
        assert_eq!((v.of(9), v.before(7, 2), v.before(7, 0)), (vec![(1, 1)], Some((1, 0)), None));
    }
}
