//! Who drives a run directory. A file lock keeps two coordinators of one machine apart; this file keeps those of two machines apart, where the lock
//! of a shared file system may not reach. The owner renews `owner.json` every few seconds; another machine takes over only what was not renewed for
//! a while, and an owner that finds another name in the file stops.

use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

const FILE: &str = "owner.json";

/// How often the file is renewed, and after how long without it the owner counts as dead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub renew: Duration,
    pub stale: Duration,
}

impl Pace {
    /// Stale is longer than a shared file system keeps attributes and shorter than a user's patience.
    pub(crate) const USUAL: Self = Self { renew: Duration::from_secs(2), stale: Duration::from_secs(15) };
}

/// A coordinator as it is written into the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub host: String,
    pub pid: u32,
    /// Of the kernel that runs: processes of one boot share file locks.
    boot: String,
    /// Of this start of this process.
    nonce: String,
    /// Rises with every renewal.
    beat: u64,
}

impl Owner {
    /// This process.
    pub(crate) fn own() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let host = std::env::var("SLURMD_NODENAME").unwrap_or_else(|_| read("/proc/sys/kernel/hostname"));
        let (pid, boot) = (std::process::id(), read("/proc/sys/kernel/random/boot_id"));
        Self { host, pid, boot, nonce: read("/proc/sys/kernel/random/uuid"), beat: 0 }
    }

    #[cfg(test)]
    fn elsewhere(host: &str) -> Self {
        Self { host: host.into(), boot: host.into(), ..Self::own() }
    }
}

/// Why a directory cannot be had.
#[derive(Debug)]
pub(crate) enum Denied {
    Held(Owner),
    Io(PathBuf, io::Error),
}

/// The right to drive a directory, renewed until it is dropped.
#[derive(Debug)]
pub(crate) struct Ownership {
    lost: Arc<Mutex<Option<String>>>,
    /// Dropped to end the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Ownership {
    /// Takes `dir`; waits until a former owner on another machine has been silent for long enough.
    pub(crate) fn take(dir: &Path, own: Owner, pace: Pace) -> Result<Self, Denied> {
        let path = dir.join(FILE);
        let failed = |e| Denied::Io(path.clone(), e);
        if !create(&path, &own).map_err(failed)? {
            let before = settled(&path, &own, pace)?;
            replace(&path, &own).map_err(failed)?;
            if before {
                // Two may have found it stale; the later writer wins.
                std::thread::sleep(pace.renew / 2);
            }
            match read(&path).map_err(failed)? {
                Some(now) if now.nonce != own.nonce => return Err(Denied::Held(now)),
                _ => {}
            }
        }
        let lost = Arc::new(Mutex::new(None));
        let (stop, stopped) = mpsc::channel();
        let told = lost.clone();
        let spawned =
            std::thread::Builder::new().name("owner".into()).spawn(move || renew(&path, own, pace, &stopped, &told));
        let thread = spawned.map_err(|e| Denied::Io(dir.join(FILE), e))?;
        Ok(Self { lost, stop: Some(stop), thread: Some(thread) })
    }

    /// Why the right is gone, if it is.
    pub(crate) fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

/// Waits until nobody renews the file. True if its owner was on another machine.
fn settled(path: &Path, own: &Owner, pace: Pace) -> Result<bool, Denied> {
    let failed = |e| Denied::Io(path.to_path_buf(), e);
    let Some(first) = read(path).map_err(failed)? else { return Ok(true) };
    if first.boot == own.boot {
        // The file lock, which we hold, reaches whoever this was.
        return Ok(false);
    }
    let began = Instant::now();
    while began.elapsed() < pace.stale {
        std::thread::sleep(pace.renew / 4);
        match read(path).map_err(failed)? {
            Some(now) if now != first => return Err(Denied::Held(now)),
            Some(_) => {}
            None => return Ok(true),
        }
    }
    Ok(true)
}

fn renew(path: &Path, mut own: Owner, pace: Pace, stopped: &mpsc::Receiver<()>, lost: &Mutex<Option<String>>) {
    while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(pace.renew) {
        match read(path) {
            Ok(Some(now)) if now.nonce != own.nonce => {
                let reason =
                    format!("the run directory was taken over by a coordinator on {} (process {})", now.host, now.pid);
                *lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                return;
            }
            Ok(_) => {
                own.beat += 1;
                // One that cannot be written is told by the ledger soon.
                let _ = replace(path, &own);
            }
            Err(e) => tracing::warn!("{}: {e}", path.display()),
        }
    }
    if read(path).is_ok_and(|now| now.is_some_and(|now| now.nonce == own.nonce)) {
        let _ = fs::remove_file(path);
    }
}

/// None: there is no such file, or it says nothing.
fn read(path: &Path) -> io::Result<Option<Owner>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// False if there is one.
fn create(path: &Path, own: &Owner) -> io::Result<bool> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => fill(&mut file, own).map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

fn replace(path: &Path, own: &Owner) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", own.nonce));
    let written =
        File::create(&temporary).and_then(|mut f| fill(&mut f, own)).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn fill(file: &mut File, own: &Owner) -> io::Result<()> {
    let text = serde_json::to_string(own).map_err(io::Error::other)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Pace = Pace { renew: Duration::from_millis(40), stale: Duration::from_millis(400) };

    fn host(denied: Denied) -> String {
        match denied {
            Denied::Held(owner) => owner.host,
            Denied::Io(path, e) => panic!("{}: {e}", path.display()),
        }
    }

    #[test]
    fn a_living_owner_on_another_machine_keeps_its_directory() {
        let tmp = tempfile::tempdir().unwrap();
        let held = Ownership::take(tmp.path(), Owner::elsewhere("a"), QUICK).unwrap();
        assert_eq!(host(Ownership::take(tmp.path(), Owner::elsewhere("b"), QUICK).unwrap_err()), "a");
        assert_eq!(held.lost(), None);
        drop(held);
        let began = Instant::now();
        drop(Ownership::take(tmp.path(), Owner::elsewhere("b"), QUICK).unwrap());
        assert!(began.elapsed() < QUICK.stale, "a clean end leaves nothing to wait for");
    }

    #[test]
    fn a_dead_owner_is_succeeded_after_a_while_and_stops_if_it_was_only_asleep() {
        let tmp = tempfile::tempdir().unwrap();
        let asleep = Pace { renew: Duration::from_millis(900), ..QUICK };
        let first = Ownership::take(tmp.path(), Owner::elsewhere("a"), asleep).unwrap();
        let began = Instant::now();
        let second = Ownership::take(tmp.path(), Owner::elsewhere("b"), QUICK).unwrap();
        assert!(began.elapsed() >= QUICK.stale);
        std::thread::sleep(Duration::from_millis(1000));
        assert!(first.lost().unwrap().contains("taken over by a coordinator on b"));
        drop(first);
        assert_eq!(second.lost(), None);
        assert_eq!(read(&tmp.path().join(FILE)).unwrap().unwrap().host, "b", "the loser leaves the file alone");
    }

    #[test]
    fn of_two_that_start_at_once_one_gets_it() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join(FILE), serde_json::to_string(&Owner::elsewhere("dead")).unwrap()).unwrap();
        let start = |name: &'static str| {
            let dir = tmp.path().to_path_buf();
            std::thread::spawn(move || Ownership::take(&dir, Owner::elsewhere(name), QUICK))
        };
        let results = ["a", "b", "c"].map(start).map(|t| t.join().unwrap());
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
    }

    #[test]
    fn a_dead_owner_of_this_machine_is_succeeded_at_once() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join(FILE), serde_json::to_string(&Owner::own()).unwrap()).unwrap();
        let began = Instant::now();
        drop(Ownership::take(tmp.path(), Owner::own(), Pace::USUAL).unwrap());
        assert!(began.elapsed() < Duration::from_secs(1));
        fs::write(tmp.path().join(FILE), "").unwrap();
        drop(Ownership::take(tmp.path(), Owner::own(), QUICK).unwrap());
    }
}
