//! Which worker gets weights from which: what the trees (`tree`) must know of the workers, who failed lately, and how each version spread.

mod tree;

pub use tree::{Distance, Form, Neighbours, Tree};

use crate::state::Seconds;
use quorum_core::metric;
use quorum_proto::v1;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A relay that was late or broke off is left alone for this long. One that sent wrong bytes is not used again until it joins anew.
const REST: Seconds = 60.0;
/// Versions whose spreading is remembered.
const KEPT: usize = 2;

/// What is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    Frozen,
    Version(u64),
}

impl Item {
    /// Of a message's fields.
    pub fn of(frozen: bool, version: u64) -> Self {
        if frozen { Self::Frozen } else { Self::Version(version) }
    }
}

/// Where a worker's newest weights came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Whence {
    pub version: u64,
    /// Empty = the coordinator.
    pub source: String,
    /// `grpc`, `relay`, `delta` or `nccl`.
    pub transport: &'static str,
    pub bytes: u64,
    pub seconds: f64,
    /// Steps from the coordinator.
    pub hops: usize,
}

#[derive(Debug, Clone)]
struct Peer {
    /// URL; empty = it hands nothing on.
    relay: String,
    address: Option<IpAddr>,
    rests_until: Seconds,
    newest: Option<Whence>,
}

#[derive(Debug, Default)]
struct Spread {
    tree: Tree,
    published: Seconds,
    /// When the last worker reported it, and by what transport.
    last: Option<(Seconds, &'static str)>,
}

#[derive(Debug, Default)]
struct Inside {
    peers: BTreeMap<String, Peer>,
    items: BTreeMap<Item, Spread>,
}

/// The trees of a run; cheap to clone.
#[derive(Debug, Clone)]
pub struct Fanout {
    inside: Arc<Mutex<Inside>>,
    began: Instant,
}

impl Default for Fanout {
    fn default() -> Self {
        Self { inside: Arc::default(), began: Instant::now() }
    }
}

/// The workers as the trees see them.
struct World<'a> {
    peers: &'a BTreeMap<String, Peer>,
    now: Seconds,
}

impl Neighbours for World<'_> {
    fn relays(&self, id: &str) -> bool {
        self.peers.get(id).is_some_and(|p| !p.relay.is_empty() && p.rests_until <= self.now)
    }

    fn distance(&self, a: &str, b: Option<&str>) -> Distance {
        let address = |id: &str| self.peers.get(id).and_then(|p| p.address);
        match (address(a), b.map(address)) {
            // The coordinator is on the same host if it is dialled over loopback.
            (Some(a), None) if a.is_loopback() => Distance::SameHost,
            (Some(a), Some(Some(b))) => distance(a, b),
            _ => Distance::Far,
        }
    }
}

fn distance(a: IpAddr, b: IpAddr) -> Distance {
    let same_subnet = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.octets()[..8] == b.octets()[..8],
        _ => false,
    };
    match (a == b, same_subnet) {
        (true, _) => Distance::SameHost,
        (_, true) => Distance::SameSubnet,
        _ => Distance::Far,
    }
}

impl Fanout {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Seconds {
        self.began.elapsed().as_secs_f64()
    }

    /// A worker joins (again): it holds nothing.
    pub fn join(&self, id: &str, relay: String, address: Option<IpAddr>) {
        let mut inside = self.inside();
        inside.items.values_mut().for_each(|s| s.tree.remove(id));
        inside.peers.insert(id.to_owned(), Peer { relay, address, rests_until: 0.0, newest: None });
    }

    /// A worker is gone.
    pub fn lose(&self, id: &str) {
        let mut inside = self.inside();
        inside.items.values_mut().for_each(|s| s.tree.remove(id));
        inside.peers.remove(id);
    }

    /// A version can be had from now on; how the version before it spread is booked.
    pub fn publish(&self, version: u64) {
        let now = self.now();
        let mut inside = self.inside();
        for spread in inside.items.iter_mut().filter(|(i, _)| **i != Item::Frozen).map(|(_, s)| s) {
            if let Some((last, transport)) = spread.last.take() {
                metric::WEIGHT_SYNC_DURATION_SECONDS.with([transport]).record(last - spread.published);
            }
        }
        inside.items.insert(Item::Version(version), Spread { published: now, ..Spread::default() });
        while inside.items.keys().filter(|i| **i != Item::Frozen).count() > KEPT {
            let Some(oldest) = inside.items.keys().find(|i| **i != Item::Frozen).copied() else { break };
            inside.items.remove(&oldest);
        }
    }

    /// Relays that failed a worker.
    pub fn failed(&self, by: &str, failures: &[v1::RelayFailure]) {
        let now = self.now();
        let mut inside = self.inside();
        for failure in failures {
            let id = failure.caller_id.as_str();
            let Some(peer) = inside.peers.get_mut(id) else { continue };
            let lies = failure.reason == "checksum";
            peer.rests_until = peer.rests_until.max(if lies { f64::INFINITY } else { now + REST });
            tracing::warn!(relay = id, by, reason = failure.reason, "relay failed; others are asked instead");
        }
    }

    /// Where `id` gets `item` in this form: a relay as (id, URL), or the coordinator. Remembers it, and whether it can hand it on.
    pub fn locate(&self, id: &str, item: Item, form: Form, fanout: usize, passive: bool) -> Option<(String, String)> {
        let now = self.now();
        let Inside { peers, items } = &mut *self.inside();
        let tree = &mut items.entry(item).or_default().tree;
        let source = tree.attach(id, form, fanout, passive, &World { peers, now })?;
        let relay = peers.get(&source).map(|p| p.relay.clone())?;
        Some((source, relay))
    }

    /// `id` holds `item`, verified.
    pub fn holds(&self, id: &str, item: Item, report: &v1::ReportWeightsRequest) {
        let now = self.now();
        let mut inside = self.inside();
        if !inside.peers.contains_key(id) {
            return;
        }
        // Versions that nobody can ask for any more need no tree.
        let Some(spread) = inside.items.get_mut(&item) else { return };
        let source = Some(report.source.as_str()).filter(|s| !s.is_empty());
        let form = if report.delta { Form::Delta(report.version.saturating_sub(1)) } else { Form::Whole };
        spread.tree.holds(id, source, form);
        let transport = match (source, report.delta) {
            _ if report.broadcast => "nccl",
            (_, true) => "delta",
            (Some(_), _) => "relay",
            (None, _) => "grpc",
        };
        spread.last = Some((now, transport));
        let hops = spread.tree.depth(id);
        if let (Item::Version(version), Some(peer)) = (item, inside.peers.get_mut(id)) {
            let (source, bytes, seconds) = (report.source.clone(), report.bytes, report.seconds);
            peer.newest = Some(Whence { version, source, transport, bytes, seconds, hops });
        }
    }

    /// Whether `id` may ask.
    pub fn knows(&self, id: &str) -> bool {
        self.inside().peers.contains_key(id)
    }

    /// Where the newest weights of `id` came from, and its relay's URL.
    pub fn whence(&self, id: &str) -> (Option<Whence>, String) {
        self.inside().peers.get(id).map(|p| (p.newest.clone(), p.relay.clone())).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fanout(workers: &[(&str, &str)]) -> Fanout {
        let fanout = Fanout::default();
        for (id, address) in workers {
            fanout.join(id, format!("http://{id}"), address.parse().ok());
        }
        fanout.publish(1);
        fanout
    }

    fn source(f: &Fanout, id: &str) -> Option<String> {
        f.locate(id, Item::Version(1), Form::Whole, 1, false).map(|s| s.0)
    }

    fn failure(id: &str, reason: &str) -> [v1::RelayFailure; 1] {
        [v1::RelayFailure { caller_id: id.into(), reason: reason.into() }]
    }

    #[test]
    fn a_relay_that_fails_is_passed_over() {
        let f = fanout(&[("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")]);
        assert_eq!((source(&f, "a"), source(&f, "b")), (None, Some("a".into())));
        f.failed("b", &failure("a", "timeout"));
        assert_eq!(source(&f, "b"), None, "a rests, and there is nobody else");
        f.join("a", "http://a".into(), None);
        assert_eq!(source(&f, "c"), Some("b".into()));
        f.lose("b");
        assert_eq!(source(&f, "c"), None);
    }

    #[test]
    fn a_liar_is_not_asked_again_before_it_joins_anew() {
        let f = fanout(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
        source(&f, "a");
        f.failed("b", &failure("a", "checksum"));
        assert_eq!(f.inside().peers["a"].rests_until, f64::INFINITY);
        assert_eq!(source(&f, "b"), None);
        f.join("a", "http://a".into(), None);
        source(&f, "a");
        assert!(f.inside().peers["a"].rests_until == 0.0);
    }

    #[test]
    fn the_nearest_holder_is_asked_and_shown() {
        let f = fanout(&[("a", "10.0.0.1"), ("b", "10.0.1.1"), ("c", "10.0.1.9"), ("d", "10.0.1.9")]);
        for (id, from) in [("a", ""), ("b", "a")] {
            let report = v1::ReportWeightsRequest { version: 1, source: from.into(), bytes: 4, ..Default::default() };
            f.holds(id, Item::Version(1), &report);
        }
        assert_eq!(source(&f, "c"), Some("b".into()), "of its subnet");
        assert_eq!(source(&f, "d"), Some("c".into()), "of its host, though c is still receiving");
        let (whence, relay) = f.whence("b");
        let whence = whence.unwrap();
        assert_eq!(
            (whence.source.as_str(), whence.transport, whence.hops, relay.as_str()),
            ("a", "relay", 2, "http://b")
        );
        assert_eq!(distance("::1".parse().unwrap(), "10.0.0.1".parse().unwrap()), Distance::Far);
    }
}
