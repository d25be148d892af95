//! The ledger on real files: durability order, keys that bite, and files that are no ledgers.

use super::*;
use std::fs;
use std::path::Path;

fn group(step: u64, slot: u32) -> Write {
    Write::Group {
        step,
        slot,
        prompt: 5,
        version: step,
        samples: 3,
        vote: "{}".into(),
        rewards: "[]".into(),
        worker: "w".into(),
        body: vec![slot as u8, 1, 2],
    }
}

fn commit(step: u64, checkpoint: &str) -> Write {
    Write::Commit {
        step,
        version: step + 1,
        digest: format!("d{}", step + 1),
        metrics: format!("{{\"step\":{step}}}"),
        timings: "{}".into(),
        checkpoint: checkpoint.into(),
        manifest: "m".into(),
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_reopening() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("ledger.db");
    let (ledger, history) = Ledger::open(&path).unwrap();
    assert_eq!((history.epoch, history.committed()), (1, 0));
    // Many at once share transactions; each is answered.
    let mut answers = Vec::new();
    for slot in (0..50).rev() {
        answers.push(ledger.write(vec![group(0, slot)]).await);
    }
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    ledger.commit(vec![commit(0, "step-000001"), Write::Seconds { epoch: 1, seconds: 2.5 }]).await.unwrap();
    ledger.commit(vec![group(1, 3), Write::Meta { key: "run_id", value: "r".into() }]).await.unwrap();
    let slots: Vec<u32> = ledger.groups(0).await.unwrap().iter().map(|g| g.0).collect();
    assert_eq!(slots, (0..50).collect::<Vec<_>>(), "in slot order whatever the order of arrival");

    // A second ledger on the same file sees all of it, as one after a crash does.
    let (again, history) = Ledger::open(&path).unwrap();
    assert_eq!((history.epoch, history.committed(), history.samples), (2, 1, 153));
    assert_eq!(history.open_groups, [(1, 3)]);
    assert_eq!(history.seconds, 2.5);
    assert_eq!(history.checkpoints()[0].name, "step-000001");
    assert_eq!(history.meta["run_id"], "r");
    again.commit(vec![Write::Prune { below: 1, keep: 0 }]).await.unwrap();
    let groups = again.groups(0).await.unwrap();
    assert!(groups.len() == 50 && groups.iter().all(|g| g.1.is_none()), "tokens go, the votes stay");
    assert!(again.groups(1).await.unwrap()[0].1.is_some());
}

#[tokio::test]
async fn bodies_are_kept_up_to_a_size_and_the_oldest_go_first() {
    let tmp = tempfile::tempdir().unwrap();
    let (ledger, _) = Ledger::open(&tmp.path().join("ledger.db")).unwrap();
    for step in 0..6 {
        ledger.commit(vec![group(step, 0), group(step, 1), commit(step, "")]).await.unwrap();
    }
    let kept = async || {
        let mut steps = Vec::new();
        for step in 0..6 {
            let bodies = ledger.groups(step).await.unwrap();
            assert!(bodies.iter().all(|b| b.1.is_some() == bodies[0].1.is_some()), "a step goes whole");
            if bodies[0].1.is_some() {
                steps.push(step);
            }
        }
        steps
    };
    // A step has two bodies of 3 bytes. Steps 4 and 5 are needed and do not count.
    for (keep, left) in [(24, vec![0, 1, 2, 3, 4, 5]), (13, vec![2, 3, 4, 5]), (13, vec![2, 3, 4, 5]), (0, vec![4, 5])]
    {
        ledger.commit(vec![Write::Prune { below: 4, keep }]).await.unwrap();
        assert_eq!(kept().await, left, "keep {keep}");
    }
}

#[tokio::test]
async fn nothing_is_written_twice_or_by_halves() {
    let tmp = tempfile::tempdir().unwrap();
    let (ledger, _) = Ledger::open(&tmp.path().join("ledger.db")).unwrap();
    ledger.commit(vec![commit(0, "")]).await.unwrap();
    // The second change of the request fails: the first leaves no trace (INV-10).
    assert!(ledger.commit(vec![group(1, 0), commit(0, "")]).await.is_err());
    assert!(ledger.groups(1).await.unwrap().is_empty());
    ledger.commit(vec![group(1, 0)]).await.unwrap();
    assert!(ledger.commit(vec![group(1, 0)]).await.is_err());
}

#[test]
fn files_that_are_no_ledgers_are_refused_by_name() {
    let tmp = tempfile::tempdir().unwrap();
    let message = |path: &Path| Ledger::open(path).err().map(|e| e.to_string()).unwrap_or_default();
    let text = tmp.path().join("text.db");
    fs::write(&text, "this is no database, it only looks like a file").unwrap();
    assert!(message(&text).contains("text.db: not a ledger"), "{}", message(&text));
    let foreign = tmp.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(message(&foreign).contains("another program"), "{}", message(&foreign));
    let later = tmp.path().join("later.db");
    drop(Ledger::open(&later).unwrap());
    rusqlite::Connection::open(&later).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(message(&later).contains("schema 99"), "{}", message(&later));
    assert!(message(&tmp.path().join("no/such/dir.db")).contains("dir.db"));
}

#[tokio::test]
async fn a_damaged_ledger_is_found() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("ledger.db");
    let (ledger, _) = Ledger::open(&path).unwrap();
    for slot in 0..200 {
        ledger.commit(vec![group(0, slot)]).await.unwrap();
    }
    drop(ledger);
    // The thread leaves one file behind.
    for _ in 0..200 {
        if fs::metadata(path.with_extension("db-wal")).map_or(true, |m| m.len() == 0) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    assert!(end > 12_000);
    bytes[end - 6000..].fill(0xA5);
    fs::write(&path, bytes).unwrap();
    let e = Ledger::open(&path).err().unwrap().to_string();
    assert!(e.contains("damaged") && e.contains("ledger.db"), "{e}");
}

#[tokio::test]
async fn a_newer_epoch_fences_the_older_coordinator() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("ledger.db");
    let (old, _) = Ledger::open(&path).unwrap();
    old.commit(vec![group(0, 0)]).await.unwrap();
    let (new, history) = Ledger::open(&path).unwrap();
    assert_eq!(history.epoch, 2);
    let e = old.commit(vec![group(0, 1)]).await.unwrap_err().to_string();
    assert!(e.contains("epoch 2 has begun") && e.contains("epoch 1"), "{e}");
    new.commit(vec![group(0, 1)]).await.unwrap();
    assert_eq!(new.groups(0).await.unwrap().len(), 2);
}
