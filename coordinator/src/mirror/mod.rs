//! A copy of the run in an S3 bucket (`run.mirror = "s3://bucket/prefix"`): after the commit of a checkpoint its files, a consistent copy of the ledger,
//! the configuration and the evaluations are uploaded, and a manifest last, which is only created and never replaced. What has no manifest is never
//! read, so a torn upload cannot be used. A failed upload is a warning; the next checkpoint tries again.
//!
//! Keys below the prefix: `epochs/EEEEEEEEEE` (who may write: the newest), `snapshots/SSSSSSSSSS-EEEEEEEEEE/…` and `snapshots/SSSSSSSSSS-EEEEEEEEEE.json`
//! (S = steps, E = epoch). The network part is behind the cargo feature `s3`.

#[cfg(feature = "s3")]
mod claim;
#[cfg(feature = "s3")]
mod manifest;
mod place;
#[cfg(feature = "s3")]
mod restore;
#[cfg(feature = "s3")]
mod store;
#[cfg(all(test, feature = "s3"))]
mod tests;
#[cfg(feature = "s3")]
mod upload;

#[cfg(feature = "s3")]
pub use restore::restore;
#[cfg(feature = "s3")]
pub use upload::Mirror;

pub use place::Place;

/// Why the mirror cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MirrorError {
    #[error("`{0}` is no place for a mirror; give s3://BUCKET/PREFIX")]
    Address(String),
    #[error(
        "this coordinator was built without S3: build it with `cargo build --release --features quorum-coordinator/s3`"
    )]
    NotBuilt,
    #[error(
        "{place}: {action}: {reason}; are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for another server, AWS_ENDPOINT_URL set?"
    )]
    Store { place: Place, action: String, reason: String },
    #[error(
        "{place}: another coordinator writes there under epoch {theirs}, this one has epoch {own}: stop one of them; go on with --resume {place} --run-dir DIR"
    )]
    Fenced { place: Place, own: u64, theirs: u64 },
    #[error("{place} holds run {theirs}, this is run {own}: choose another run.mirror, or remove what is there")]
    Foreign { place: Place, own: String, theirs: String },
    #[error("{place} holds no complete copy of a run{passed_over}")]
    Nothing { place: Place, passed_over: String },
    #[error("{path}: {reason}")]
    Local { path: String, reason: String },
}

/// The place that `run.mirror` names, if any.
///
/// # Errors
/// It is no place, or this build cannot write to one.
pub fn wanted(text: &str) -> Result<Option<Place>, MirrorError> {
    match text {
        "" => Ok(None),
        _ if cfg!(not(feature = "s3")) => Err(MirrorError::NotBuilt),
        _ => Place::parse(text).map(Some),
    }
}

/// Without the feature there is none: `start` says how to build it.
#[cfg(not(feature = "s3"))]
#[derive(Debug, Clone)]
pub enum Mirror {}

#[cfg(not(feature = "s3"))]
impl Mirror {
    /// Always refuses.
    ///
    /// # Errors
    /// `NotBuilt`.
    pub async fn start(_: Place, _: &crate::rundir::RunDir, _: &str, _: u64, _: u32) -> Result<Self, MirrorError> {
        Err(MirrorError::NotBuilt)
    }

    /// Never called: there is no value.
    pub fn offer(&self, _: &crate::ledger::CheckpointRow) {
        match *self {}
    }

    /// Never called: there is no value.
    pub async fn fenced(&self) -> String {
        match *self {}
    }

    /// Never called: there is no value.
    pub async fn finish(&self, _: std::time::Duration) {
        match *self {}
    }
}

/// Always refuses.
///
/// # Errors
/// `NotBuilt`.
#[cfg(not(feature = "s3"))]
pub async fn restore(_: &Place, _: &std::path::Path) -> Result<u64, MirrorError> {
    Err(MirrorError::NotBuilt)
}
