//! What the learner may publish and commit, and in which order. A version known to the ledger may only come back with the same digest (INV-8, INV-10).

use super::phase::Phase;
use super::run::RunState;

/// What becomes of a published version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishVerdict {
    /// New to this coordinator: keep it.
    Keep,
    /// An older version on the way to the newest one: right, but nobody needs it.
    Known,
    /// Not now; nothing changes.
    Refused(String),
    /// The bits differ from what the ledger says: the run cannot go on.
    Diverged(String),
}

/// What becomes of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitVerdict {
    /// Make it durable, then call `commit`.
    Fresh,
    /// A replay, or the same commit again, with the right digest.
    Replayed,
    Refused(String),
    Diverged(String),
}

impl RunState {
    /// Judges `version` with `digest` before it is kept.
    pub fn judge_publish(&self, version: u64, digest: &str) -> PublishVerdict {
        if let Some(known) = self.digests.get(&version) {
            if known != digest {
                return PublishVerdict::Diverged(diverged(version, known, digest));
            }
            let newest = version >= self.served.unwrap_or(0);
            return if newest { PublishVerdict::Keep } else { PublishVerdict::Known };
        }
        match self.phase {
            _ if version == 0 && self.committed == 0 => PublishVerdict::Keep,
            Phase::Train { step } if version == step + 1 => PublishVerdict::Keep,
            phase => PublishVerdict::Refused(format!(
                "version {version} cannot be published now: {} steps are committed and the run is {}",
                self.committed,
                phase.describe()
            )),
        }
    }

    /// The store holds `version` now. `digest` is remembered for version 0; later ones become binding with their commit.
    pub fn published(&mut self, now: f64, version: u64, digest: &str) {
        self.progress_at = self.progress_at.max(now);
        if version == 0 {
            self.digests.entry(0).or_insert_with(|| digest.to_owned());
        }
        self.served = Some(self.served.map_or(version, |s| s.max(version)));
        self.offered = Some((version, digest.to_owned()));
    }

    /// Judges the commit of `step`.
    pub fn judge_commit(&self, step: u64, version: u64, digest: &str) -> CommitVerdict {
        if version != step + 1 {
            return CommitVerdict::Refused(format!(
                "the commit of step {step} must name version {}, not {version}",
                step + 1
            ));
        }
        if step < self.committed {
            return match self.digests.get(&version) {
                Some(known) if known == digest => CommitVerdict::Replayed,
                Some(known) => CommitVerdict::Diverged(diverged(version, known, digest)),
                None => CommitVerdict::Refused(format!("the ledger has no digest of version {version}")),
            };
        }
        if self.phase != (Phase::Train { step }) {
            return CommitVerdict::Refused(format!(
                "step {step} cannot be committed: the run is {}",
                self.phase.describe()
            ));
        }
        match &self.offered {
            Some((v, d)) if *v == version && d == digest => CommitVerdict::Fresh,
            _ => CommitVerdict::Refused(format!("version {version} with digest {digest} was not published")),
        }
    }

    /// The learner does something that changes nothing, such as a replay.
    pub fn learner_lives(&mut self, now: f64) {
        self.progress_at = self.progress_at.max(now);
    }

    /// The commit of `step` is durable: the next phase opens.
    pub fn commit(&mut self, now: f64, step: u64, digest: &str) {
        if step != self.committed {
            return;
        }
        self.digests.insert(step + 1, digest.to_owned());
        self.committed += 1;
        self.progress_at = self.progress_at.max(now);
        self.done.clear();
        self.advance(now);
    }
}

fn diverged(version: u64, known: &str, digest: &str) -> String {
    let step = version.saturating_sub(1);
    if version == 0 {
        return format!(
            "the start weights have digest {digest}, but this run began with {known}: the model directory changed"
        );
    }
    format!(
        "the replay of step {step} gave weights {digest}, but the ledger says {known}: results are bit-identical on one kind of CPU only"
    )
}
