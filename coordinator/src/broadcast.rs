//! Broadcast rounds: who takes a version together with the learner over a fabric of its GPUs. Workers that wait for a round are its members; those
//! that do not, and those of other fabrics, take the stream of chunks. A round that fails costs its deadline.

use crate::state::Seconds;
use quorum_proto::v1;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long a fabric is left alone after a round that failed although everybody came.
const REST: Seconds = 60.0;
/// Bytes a second that a fabric is expected to carry at least, digests included.
const SLOWEST: f64 = 100e6;
/// What a member may take to tell how its round ended, beyond the deadline.
const GRACE: Seconds = 5.0;

/// A worker that waits for a round.
#[derive(Debug)]
struct Waiting {
    fabric: String,
    /// Newest version it holds.
    holds: Option<u64>,
    /// Tells this wait from a later one of the same worker.
    ticket: u64,
    answer: oneshot::Sender<v1::BroadcastReply>,
}

/// A round under way, and how it ended for each member so far: `None` = it has not said.
#[derive(Debug)]
struct Round {
    version: u64,
    ticket: u64,
    began: Seconds,
    members: BTreeMap<String, Option<String>>,
}

impl Round {
    /// Whether `version` came before all members had told of this one and failed for none: nobody is late yet.
    fn is_overtaken(&self, version: u64) -> bool {
        self.version < version && self.members.values().flatten().all(String::is_empty)
    }
}

#[derive(Debug, Default)]
struct Inside {
    waiting: BTreeMap<String, Waiting>,
    /// By fabric.
    rounds: BTreeMap<String, Round>,
    rests_until: BTreeMap<String, Seconds>,
    tickets: u64,
}

/// The rounds of a run; cheap to clone.
#[derive(Debug, Clone)]
pub struct Broadcasts {
    inside: Arc<Mutex<Inside>>,
    began: Instant,
}

impl Default for Broadcasts {
    fn default() -> Self {
        Self { inside: Arc::default(), began: Instant::now() }
    }
}

/// What the learner sends.
#[derive(Debug, Clone)]
pub struct Announced {
    pub learner: String,
    pub fabric: String,
    pub version: u64,
    pub digest: String,
    pub bytes: u64,
    /// Unique id of the communicator.
    pub id: bytes::Bytes,
    /// Seconds for forming the group; the bytes have their time beside it.
    pub seconds: f64,
}

/// How a round ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub version: u64,
    /// Members that said nothing by the end.
    pub late: Vec<String>,
    /// (member, why) of those it failed for.
    pub failed: Vec<(String, String)>,
}

impl Broadcasts {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Seconds {
        self.began.elapsed().as_secs_f64()
    }

    /// Workers that wait for a round over `fabric`.
    pub fn waiting(&self, fabric: &str) -> usize {
        self.inside().waiting.values().filter(|w| w.fabric == fabric).count()
    }

    /// Waits at most `patience` for a round over `fabric` of a version newer than `holds`.
    pub async fn wait(
        &self,
        id: &str,
        fabric: &str,
        holds: Option<u64>,
        patience: Duration,
    ) -> Option<v1::BroadcastReply> {
        let (answer, answered) = oneshot::channel();
        let place = {
            let mut inside = self.inside();
            inside.tickets += 1;
            let ticket = inside.tickets;
            inside.waiting.insert(id.to_owned(), Waiting { fabric: fabric.to_owned(), holds, ticket, answer });
            Place { inside: self.inside.clone(), id: id.to_owned(), ticket }
        };
        let round = tokio::time::timeout(patience, answered).await.ok()?.ok();
        drop(place);
        round
    }

    /// Begins a round with all who wait for it, and sees to its end; what the learner is told. Nobody waits, or the fabric rests: no members.
    pub fn begin(&self, what: Announced) -> v1::BroadcastReply {
        let now = self.now();
        let seconds = what.seconds + what.bytes as f64 / SLOWEST;
        let ticket;
        let reply = {
            let mut inside = self.inside();
            match inside.rounds.remove(&what.fabric) {
                Some(before) if before.is_overtaken(what.version) => {
                    tracing::debug!(version = before.version, fabric = what.fabric, "a newer version came first");
                }
                Some(before) => drop(inside.conclude(&what.fabric, before, now)),
                None => {}
            }
            inside.rests_until.retain(|_, until| *until > now);
            let members = inside.plan(&what);
            if members.len() < 2 {
                return v1::BroadcastReply::default();
            }
            inside.tickets += 1;
            ticket = inside.tickets;
            let round = Round {
                version: what.version,
                ticket,
                began: now,
                members: members.iter().map(|id| (id.clone(), None)).collect(),
            };
            inside.rounds.insert(what.fabric.clone(), round);
            let reply = v1::BroadcastReply {
                version: what.version,
                collective_id: what.id,
                members,
                weights_digest: what.digest,
                weights_bytes: what.bytes,
                seconds,
            };
            for id in reply.members.iter().skip(1) {
                // Who has gone meanwhile is missed at the deadline, and named.
                let _ = inside.waiting.remove(id).map(|w| w.answer.send(reply.clone()));
            }
            reply
        };
        let (all, fabric) = (self.clone(), what.fabric);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs_f64((seconds + GRACE).clamp(0.0, 1e6))).await;
            all.end(&fabric, ticket);
        });
        reply
    }

    /// `id` says how the round of `version` ended for it; the verdict when all have.
    pub fn tell(&self, id: &str, fabric: &str, version: u64, failure: String) -> Option<Verdict> {
        let now = self.now();
        let mut inside = self.inside();
        let round = inside.rounds.get_mut(fabric).filter(|r| r.version == version)?;
        *round.members.get_mut(id)? = Some(failure);
        if round.members.values().any(Option::is_none) {
            return None;
        }
        let round = inside.rounds.remove(fabric)?;
        Some(inside.conclude(fabric, round, now))
    }

    /// The time of a round is over: members that have said nothing are late.
    fn end(&self, fabric: &str, ticket: u64) -> Option<Verdict> {
        let now = self.now();
        let mut inside = self.inside();
        inside.rounds.get(fabric).filter(|r| r.ticket == ticket)?;
        let round = inside.rounds.remove(fabric)?;
        Some(inside.conclude(fabric, round, now))
    }
}

impl Inside {
    /// Members by rank, the learner first: workers of the fabric that wait and are still there, and do not hold the version.
    fn plan(&self, what: &Announced) -> Vec<String> {
        if self.rests_until.contains_key(&what.fabric) {
            return Vec::new();
        }
        let fits = |w: &Waiting| {
            w.fabric == what.fabric && w.holds.is_none_or(|held| held < what.version) && !w.answer.is_closed()
        };
        let workers = self.waiting.iter().filter(|(id, w)| fits(w) && **id != what.learner);
        std::iter::once(&what.learner).chain(workers.map(|(id, _)| id)).cloned().collect()
    }

    /// Says how a round went. Members that are lost do not come back to the next one by themselves; what failed with all members there would fail
    /// again, so the fabric rests.
    fn conclude(&mut self, fabric: &str, round: Round, now: Seconds) -> Verdict {
        let mut verdict = Verdict { version: round.version, late: Vec::new(), failed: Vec::new() };
        let members = round.members.len();
        for (id, outcome) in round.members {
            match outcome {
                None => verdict.late.push(id),
                Some(failure) if !failure.is_empty() => verdict.failed.push((id, failure)),
                Some(_) => {}
            }
        }
        let (version, seconds) = (round.version, now - round.began);
        if verdict.late.is_empty() && verdict.failed.is_empty() {
            tracing::debug!(version, fabric, members, seconds, "weights broadcast");
            return verdict;
        }
        if verdict.late.is_empty() {
            self.rests_until.insert(fabric.to_owned(), now + REST);
        }
        let late = verdict.late.join(", ");
        let failed = verdict.failed.iter().map(|(id, why)| format!("{id}: {why}")).collect::<Vec<_>>().join("; ");
        tracing::warn!(
            version,
            fabric,
            members,
            late,
            failed,
            "a weight broadcast failed: the stream of chunks serves"
        );
        verdict
    }
}

/// A worker's wait; gives its place up when it ends in any way.
struct Place {
    inside: Arc<Mutex<Inside>>,
    id: String,
    ticket: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if inside.waiting.get(&self.id).is_some_and(|w| w.ticket == self.ticket) {
            inside.waiting.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(version: u64, fabric: &str) -> Announced {
        let (learner, fabric, digest) = ("learner".into(), fabric.into(), "d".into());
        Announced { learner, fabric, version, digest, bytes: 200_000_000, id: vec![7; 128].into(), seconds: 10.0 }
    }

    /// Workers wait; the receivers keep their places.
    fn waiting(all: &Broadcasts, workers: &[(&str, &str, Option<u64>)]) -> Vec<oneshot::Receiver<v1::BroadcastReply>> {
        let place = |&(id, fabric, holds): &(&str, &str, Option<u64>)| {
            let (answer, answered) = oneshot::channel();
            let waiting = Waiting { fabric: fabric.to_owned(), holds, ticket: 0, answer };
            all.inside().waiting.insert(id.to_owned(), waiting);
            answered
        };
        workers.iter().map(place).collect()
    }

    #[tokio::test]
    async fn a_round_is_of_those_of_the_fabric_who_wait_for_it() {
        let all = Broadcasts::default();
        let workers =
            [("c", "ib", None), ("a", "ib", Some(3)), ("b", "roce", None), ("d", "ib", Some(4)), ("e", "ib", None)];
        let mut places = waiting(&all, &workers);
        drop(places.pop());
        let told = all.begin(announced(4, "ib"));
        assert_eq!(told.members, ["learner", "a", "c"], "not: another fabric, one that holds it, one that has gone");
        assert_eq!((told.version, told.weights_digest.as_str(), told.seconds), (4, "d", 12.0));
        let mut answers: Vec<_> = places.iter_mut().map(|p| p.try_recv().ok()).collect();
        assert_eq!(answers.remove(0), Some(told.clone()));
        assert_eq!(answers, [Some(told), None, None]);
        assert!(all.begin(announced(5, "nvlink")).members.is_empty(), "nobody waits there");
        // Members are no longer waiting: the next version finds those who are.
        assert_eq!(all.begin(announced(5, "ib")).members, ["learner", "d"]);
    }

    #[tokio::test]
    async fn who_says_nothing_is_late_and_the_others_go_on() {
        let all = Broadcasts::default();
        let _places = waiting(&all, &[("a", "ib", None), ("b", "ib", None)]);
        all.begin(announced(1, "ib"));
        assert_eq!(all.tell("a", "ib", 1, "waited 12 s".into()), None);
        assert_eq!(all.tell("a", "ib", 7, String::new()), None, "another version");
        assert_eq!(all.tell("learner", "ib", 1, "waited 12 s".into()), None);
        let ticket = all.inside().rounds["ib"].ticket;
        assert_eq!(all.end("ib", ticket - 1), None, "the clock of a round before");
        let verdict = all.end("ib", ticket).unwrap();
        assert_eq!((verdict.late, verdict.failed.len()), (vec!["b".to_owned()], 2));
        assert_eq!(all.end("ib", ticket), None);
        let _places = waiting(&all, &[("a", "ib", None)]);
        assert_eq!(all.begin(announced(2, "ib")).members, ["learner", "a"], "without b it may work");
    }

    #[tokio::test]
    async fn a_round_that_a_newer_version_overtakes_has_nobody_late() {
        let all = Broadcasts::default();
        let _places = waiting(&all, &[("a", "ib", None)]);
        all.begin(announced(1, "ib"));
        all.tell("learner", "ib", 1, String::new());
        let overtaken = |by| all.inside().rounds["ib"].is_overtaken(by);
        assert!(overtaken(2) && !overtaken(1), "a second announcement of the same version is no newer one");
        all.inside().rounds.get_mut("ib").unwrap().members.insert("learner".into(), Some("reset".into()));
        assert!(!overtaken(2), "a failure is told all the same");
    }

    #[tokio::test]
    async fn a_fabric_that_fails_with_everybody_there_rests() {
        let all = Broadcasts::default();
        let _places = waiting(&all, &[("a", "ib", None)]);
        all.begin(announced(1, "ib"));
        assert_eq!(all.tell("learner", "ib", 1, String::new()), None);
        let verdict = all.tell("a", "ib", 1, "another SHA-256".into()).unwrap();
        assert_eq!(verdict.failed, [("a".to_owned(), "another SHA-256".to_owned())]);
        let _places = waiting(&all, &[("a", "ib", None), ("b", "roce", None)]);
        assert!(all.begin(announced(2, "ib")).members.is_empty());
        assert_eq!(all.begin(announced(2, "roce")).members, ["learner", "b"]);
        all.inside().rests_until.insert("ib".into(), 0.0);
        assert_eq!(all.begin(announced(3, "ib")).members, ["learner", "a"]);
    }

    #[tokio::test]
    async fn a_wait_that_ends_gives_its_place_up() {
        let all = Broadcasts::default();
        assert_eq!(all.wait("a", "ib", None, Duration::from_millis(20)).await, None);
        assert!(all.inside().waiting.is_empty());
        let (one, two) = (all.clone(), all.clone());
        let first = tokio::spawn(async move { one.wait("a", "ib", None, Duration::from_secs(60)).await });
        while all.inside().waiting.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let second = tokio::spawn(async move { two.wait("a", "ib", None, Duration::from_secs(60)).await });
        assert_eq!(first.await.unwrap(), None, "it asks anew");
        assert_eq!(all.begin(announced(1, "ib")).members, ["learner", "a"]);
        assert_eq!(second.await.unwrap().unwrap().version, 1);
    }
}
