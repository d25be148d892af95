//! Who may write below a prefix: the coordinator with the highest epoch. Each epoch is created once, so two coordinators never hold the same one.

use super::MirrorError;
use super::store::Store;
use serde_json::{Value, json};

const FOLDER: &str = "epochs";

/// The highest epoch that was claimed; 0 = none.
pub(super) async fn newest(store: &Store) -> Result<u64, MirrorError> {
    let names = store.list(FOLDER).await?;
    Ok(names.iter().filter_map(|n| n.rsplit('/').next()?.parse().ok()).max().unwrap_or(0))
}

/// Claims `epoch` for this coordinator.
pub(super) async fn claim(store: &Store, run_id: &str, epoch: u64) -> Result<(), MirrorError> {
    let theirs = newest(store).await?;
    if theirs > 0 {
        let holder = store.read(&name(theirs)).await?;
        let holder: Value = serde_json::from_slice(&holder).unwrap_or_default();
        let other = holder.get("run_id").and_then(Value::as_str).unwrap_or_default();
        if other != run_id {
            let (own, theirs) = (run_id.to_owned(), other.to_owned());
            return Err(MirrorError::Foreign { place: store.place.clone(), own, theirs });
        }
    }
    // Differs from process to process: a repetition of the request finds its own words.
    let started = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos());
    let words =
        json!({"run_id": run_id, "epoch": epoch, "process": std::process::id(), "started": started.to_string()});
    let words = words.to_string();
    if theirs >= epoch
        || (!store.create(&name(epoch), words.as_bytes()).await? && store.read(&name(epoch)).await? != words.as_bytes())
    {
        return Err(MirrorError::Fenced { place: store.place.clone(), own: epoch, theirs: theirs.max(epoch) });
    }
    Ok(())
}

/// Fails if a newer coordinator has taken over.
pub(super) async fn check(store: &Store, epoch: u64) -> Result<(), MirrorError> {
    match newest(store).await? {
        theirs if theirs > epoch => Err(MirrorError::Fenced { place: store.place.clone(), own: epoch, theirs }),
        _ => Ok(()),
    }
}

fn name(epoch: u64) -> String {
    format!("{FOLDER}/{epoch:010}")
}
