//! Which part of a gradient batch a rank computes: whole lanes, so that each lane sums what it sums in a learner of one rank.

/// The place of one rank in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub rank: usize,
    pub world: usize,
    /// Lanes of the whole group: pack i of a gradient batch belongs to lane i % lanes, lane l to rank l % world.
    pub lanes: usize,
}

impl Share {
    /// Everything, on one rank.
    pub fn all(lanes: usize) -> Self {
        Self { rank: 0, world: 1, lanes: lanes.max(1) }
    }

    /// The rank of pack `i` of a gradient batch.
    pub fn owner(&self, i: usize) -> usize {
        i % self.lanes % self.world
    }

    /// Whether pack `i` of a gradient batch is of this rank.
    pub fn owns(&self, i: usize) -> bool {
        self.owner(i) == self.rank
    }

    /// Lanes of this rank: number k of them is lane `k·world + rank` of the group. Its packs go round them as the packs of all ranks go round all lanes.
    pub fn own_lanes(&self) -> usize {
        self.lanes.saturating_sub(self.rank).div_ceil(self.world)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_packs_go_round_own_lanes_as_all_packs_go_round_all_lanes() {
        for lanes in 1..=9 {
            for world in 1..=lanes {
                let shares: Vec<Share> = (0..world).map(|rank| Share { rank, world, lanes }).collect();
                assert_eq!(shares.iter().map(Share::own_lanes).sum::<usize>(), lanes);
                for share in &shares {
                    let own = (0..40).filter(|i| share.owns(*i));
                    for (k, i) in own.enumerate() {
                        let lane = k % share.own_lanes() * world + share.rank;
                        assert_eq!(lane, i % lanes, "pack {i} of rank {} of {world}, {lanes} lanes", share.rank);
                    }
                }
                let owners = |i: usize| shares.iter().filter(|s| s.owns(i)).count();
                assert!((0..40).all(|i| owners(i) == 1), "every pack has one owner");
            }
        }
    }
}
