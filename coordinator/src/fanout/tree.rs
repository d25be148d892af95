//! Who takes a version from whom: a tree grown as workers ask, with the coordinator at its root. Pure; the same questions in the same order
//! give the same tree.

use std::collections::BTreeMap;

/// What a worker fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Whole,
    /// The difference from this version.
    Delta(u64),
}

/// How far apart two machines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    SameHost,
    SameSubnet,
    Far,
}

#[derive(Debug, Clone)]
struct Node {
    /// `None` = the coordinator.
    parent: Option<String>,
    form: Form,
    /// Holds the version, verified.
    holds: bool,
    order: u64,
    /// It hands nothing on.
    passive: bool,
}

/// Who has and who takes one version.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    next: u64,
}

/// What the tree must know of the workers.
pub trait Neighbours {
    /// Whether `id` hands on what it has, now.
    fn relays(&self, id: &str) -> bool;
    /// From `a` to `b`, `None` being the coordinator.
    fn distance(&self, a: &str, b: Option<&str>) -> Distance;
}

impl Tree {
    /// Gives `id` a source and remembers it: a relay, or `None` for the coordinator. The coordinator serves at most `fanout` workers
    /// and a relay `fanout` at a time, unless no relay has room; 0 = all from the coordinator. Nearest first, then who holds the version already,
    /// then the shallowest.
    pub fn attach(
        &mut self,
        id: &str,
        form: Form,
        fanout: usize,
        passive: bool,
        world: &dyn Neighbours,
    ) -> Option<String> {
        self.unlink(id);
        let parent = if fanout == 0 { None } else { self.choose(id, form, fanout, world) };
        let order = self.next;
        self.next += 1;
        let node = Node { parent: parent.clone(), form, holds: false, order, passive };
        self.nodes.insert(id.to_owned(), node);
        parent
    }

    /// `id` holds the version: it no longer takes its source's time.
    pub fn holds(&mut self, id: &str, source: Option<&str>, form: Form) {
        let order = self.next;
        self.next += 1;
        let fresh = Node { parent: None, form, holds: true, order, passive: false };
        let node = self.nodes.entry(id.to_owned()).or_insert(fresh);
        node.holds = true;
        node.form = form;
        node.parent = source.map(str::to_owned);
    }

    /// `id` is gone; whoever took from it will ask again.
    pub fn remove(&mut self, id: &str) {
        self.nodes.remove(id);
    }

    /// Workers that hold the version.
    pub fn holders(&self) -> usize {
        self.nodes.values().filter(|n| n.holds).count()
    }

    /// Steps from the coordinator to `id`; a source that is gone counts as the coordinator.
    pub fn depth(&self, id: &str) -> usize {
        let mut depth = 0;
        let mut at = self.nodes.get(id);
        while let Some(node) = at {
            depth += 1;
            at = node.parent.as_ref().and_then(|p| self.nodes.get(p));
        }
        depth
    }

    fn unlink(&mut self, id: &str) {
        if let Some(node) = self.nodes.get_mut(id) {
            (node.parent, node.holds) = (None, false);
        }
    }

    fn choose(&self, id: &str, form: Form, fanout: usize, world: &dyn Neighbours) -> Option<String> {
        let taking = self.taking();
        let root = self.nodes.iter().filter(|(n, node)| node.parent.is_none() && *n != id).count();
        let mut best = (root < fanout).then(|| ((world.distance(id, None), false, 0, root, 0), None));
        for (name, node) in &self.nodes {
            let busy = taking.get(name.as_str()).copied().unwrap_or(0);
            let fits = node.form == form || (node.holds && form == Form::Whole);
            if name == id || busy >= fanout || !fits || node.passive || !world.relays(name) || self.descends(name, id) {
                continue;
            }
            let key = (world.distance(id, Some(name)), !node.holds, self.depth(name), busy, node.order);
            if best.as_ref().is_none_or(|(lowest, _)| key < *lowest) {
                best = Some((key, Some(name)));
            }
        }
        best.and_then(|(_, name)| name.cloned())
    }

    /// How many are taking from each relay now.
    fn taking(&self) -> BTreeMap<&str, usize> {
        let mut taking = BTreeMap::new();
        for node in self.nodes.values().filter(|n| !n.holds) {
            if let Some(parent) = &node.parent {
                *taking.entry(parent.as_str()).or_insert(0) += 1;
            }
        }
        taking
    }

    /// Whether what `id` sends reaches `below`.
    fn descends(&self, below: &str, id: &str) -> bool {
        let mut at = self.nodes.get(below);
        while let Some(parent) = at.and_then(|n| n.parent.as_deref()) {
            if parent == id {
                return true;
            }
            at = self.nodes.get(parent);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Worker `wN` stands on host `N % hosts`; those in `quiet` hand nothing on.
    struct World {
        hosts: usize,
        quiet: BTreeSet<usize>,
    }

    fn number(id: &str) -> usize {
        id[1..].parse().unwrap()
    }

    impl Neighbours for World {
        fn relays(&self, id: &str) -> bool {
            !self.quiet.contains(&number(id))
        }

        fn distance(&self, a: &str, b: Option<&str>) -> Distance {
            match b {
                Some(b) if self.hosts > 1 && number(a) % self.hosts == number(b) % self.hosts => Distance::SameHost,
                _ => Distance::Far,
            }
        }
    }

    fn all(hosts: usize) -> World {
        World { hosts, quiet: BTreeSet::new() }
    }

    fn grown(n: usize, fanout: usize, world: &World) -> Tree {
        let mut tree = Tree::default();
        for i in 0..n {
            tree.attach(&format!("w{i}"), Form::Whole, fanout, false, world);
        }
        tree
    }

    /// Every worker reaches the coordinator, and nobody serves more than `fanout` at once.
    fn sound(tree: &Tree, fanout: usize) {
        for id in tree.nodes.keys() {
            let (mut at, mut steps) = (id.clone(), 0);
            while let Some(parent) = tree.nodes.get(&at).and_then(|n| n.parent.clone()) {
                at = parent;
                steps += 1;
                assert!(steps <= tree.nodes.len(), "{id} takes from itself");
            }
        }
        assert!(tree.taking().values().all(|n| *n <= fanout), "{:?}", tree.taking());
    }

    #[test]
    fn depth_is_logarithmic_and_the_coordinator_serves_fanout() {
        for (n, fanout, deepest) in [(4, 4, 1), (20, 4, 2), (84, 4, 3), (1000, 4, 5), (62, 2, 5), (1000, 32, 2)] {
            let tree = grown(n, fanout, &all(1));
            sound(&tree, fanout);
            let depth = tree.nodes.keys().map(|id| tree.depth(id)).max();
            assert_eq!(depth, Some(deepest), "{n} workers, fanout {fanout}");
            assert_eq!(tree.nodes.values().filter(|v| v.parent.is_none()).count(), fanout.min(n));
        }
        assert!(grown(50, 0, &all(1)).nodes.values().all(|n| n.parent.is_none()));
    }

    #[test]
    fn a_late_joiner_takes_from_a_holder_on_its_own_host() {
        let world = all(5);
        let mut tree = grown(20, 4, &world);
        for i in 0..19 {
            tree.holds(&format!("w{i}"), None, Form::Whole);
        }
        assert_eq!(
            tree.attach("w23", Form::Whole, 4, false, &world).as_deref(),
            Some("w3"),
            "w3, w8, w13 hold; w3 was first"
        );
        assert_eq!(
            tree.attach("w24", Form::Whole, 4, false, &world).as_deref(),
            Some("w9"),
            "a holder before w19, which is fetching; w4 is busy with that"
        );
    }

    #[test]
    fn a_delta_comes_from_who_fetches_that_delta_and_a_whole_from_any_holder() {
        let world = all(1);
        let mut tree = Tree::default();
        assert_eq!(tree.attach("w0", Form::Delta(3), 1, false, &world), None);
        assert_eq!(
            tree.attach("w1", Form::Whole, 1, false, &world),
            None,
            "w0 cannot hand on the whole yet: the coordinator must"
        );
        assert_eq!(tree.attach("w2", Form::Delta(3), 1, false, &world).as_deref(), Some("w0"));
        tree.holds("w2", Some("w0"), Form::Delta(3));
        assert_eq!(
            tree.attach("w4", Form::Whole, 1, false, &world).as_deref(),
            Some("w2"),
            "it holds the version: the shallower w1 is still fetching"
        );
    }

    proptest! {
        #[test]
        fn no_history_makes_a_cycle_or_an_orphan(
            fanout in 1usize..6,
            hosts in 1usize..5,
            quiet in prop::collection::btree_set(0usize..40, 0..30),
            events in prop::collection::vec((0u8..4, 0usize..40, any::<bool>()), 1..200),
        ) {
            let world = World { hosts, quiet };
            let (mut tree, mut again) = (Tree::default(), Tree::default());
            for (kind, n, delta) in events {
                let id = format!("w{n}");
                let form = if delta { Form::Delta(1) } else { Form::Whole };
                match kind {
                    0 | 1 => {
                        let source = tree.attach(&id, form, fanout, false, &world);
                        prop_assert_eq!(&source, &again.attach(&id, form, fanout, false, &world), "not deterministic");
                        if let Some(s) = source {
                            prop_assert!(tree.nodes.contains_key(&s) && world.relays(&s) && s != id);
                        }
                    }
                    2 => {
                        let source = tree.nodes.get(&id).and_then(|n| n.parent.clone());
                        tree.holds(&id, source.as_deref(), form);
                        again.holds(&id, source.as_deref(), form);
                    }
                    _ => {
                        tree.remove(&id);
                        again.remove(&id);
                    }
                }
                sound(&tree, fanout);
            }
        }

        #[test]
        fn with_relays_the_coordinator_never_serves_more_than_fanout(n in 1usize..120, fanout in 1usize..9) {
            let tree = grown(n, fanout, &all(1));
            prop_assert!(tree.nodes.values().filter(|v| v.parent.is_none()).count() <= fanout);
        }
    }
}
