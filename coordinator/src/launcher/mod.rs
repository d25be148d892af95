//! Starts workers and learner beside this executable and keeps them running. One plain thread owns the child processes, because a parent-death
//! signal is tied to the thread that started the child. Nothing here knows the run; it reports deaths and gives up after too many.

mod child;
mod group;
mod plan;
mod probe;
mod proc;
#[cfg(test)]
mod tests;

pub use plan::{Launch, LaunchError, Wanted, check, plan};

use child::Child;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);
/// Time for a child to leave by itself after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

const RUNNING: u8 = 0;
/// Children may end; none is started again.
const FINISHING: u8 = 1;
const STOPPING: u8 = 2;

/// What happened to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildEvent {
    /// Its process ended; its leases are free.
    Gone { pid: u32 },
    /// A starter of learner ranks ended, and they with it.
    GroupGone,
    /// It died and is started again.
    Restart { name: String, why: String },
    /// It died too often.
    GaveUp { reason: String },
}

/// Names and process ids of the children that run now; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<BTreeMap<String, u32>>>);

impl Roster {
    /// (name, process id), by name.
    pub fn list(&self) -> Vec<(String, u32)> {
        self.held().iter().map(|(name, pid)| (name.clone(), *pid)).collect()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that a process does not answer any more; cheap to clone.
#[derive(Debug, Clone)]
pub struct Hung(mpsc::Sender<u32>);

impl Hung {
    /// Ends the child with this process id if it does nothing any more, and starts it again as after any death. Other processes are left alone.
    pub fn process(&self, pid: u32) {
        // Without a launcher there is no child.
        let _ = self.0.send(pid);
    }
}

/// The receiving end, for the launcher.
pub type HungInbox = mpsc::Receiver<u32>;

/// Both ends.
pub fn hung() -> (Hung, HungInbox) {
    let (sender, inbox) = mpsc::channel();
    (Hung(sender), inbox)
}

/// The running children.
pub struct Launcher {
    order: Arc<AtomicU8>,
    thread: Option<JoinHandle<()>>,
}

impl Launcher {
    /// Starts all children.
    ///
    /// # Errors
    /// The thread cannot be started. A child that cannot be started is reported as `GaveUp`.
    pub fn start(
        launches: Vec<Launch>,
        logs: PathBuf,
        roster: Roster,
        hung: HungInbox,
        report: impl Fn(ChildEvent) + Send + 'static,
    ) -> Result<Self, LaunchError> {
        let order = Arc::new(AtomicU8::new(RUNNING));
        let seen = order.clone();
        let thread = std::thread::Builder::new()
            .name("launcher".into())
            .spawn(move || {
                let children = launches.into_iter().map(|l| Child::new(l, &logs, roster.clone())).collect();
                supervise(children, &seen, &hung, &report);
            })
            .map_err(LaunchError::Thread)?;
        Ok(Self { order, thread: Some(thread) })
    }

    /// The run is over: waits for children to leave by themselves, then asks, then kills.
    pub fn finish(mut self, patience: Duration) {
        self.order.store(FINISHING, Ordering::Release);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && self.thread.as_ref().is_some_and(|t| !t.is_finished()) {
            std::thread::sleep(POLL);
        }
        self.halt();
    }

    fn halt(&mut self) {
        self.order.store(STOPPING, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the launcher's thread failed");
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.halt();
    }
}

fn supervise(mut children: Vec<Child>, order: &AtomicU8, hung: &HungInbox, report: &dyn Fn(ChildEvent)) {
    loop {
        for pid in hung.try_iter() {
            // One that is stopped takes no other signal than SIGKILL; its end is seen below like any death.
            children.iter_mut().for_each(|c| c.suspect(pid));
        }
        let order = order.load(Ordering::Acquire);
        if order == STOPPING {
            return end_all(&mut children);
        }
        for child in &mut children {
            for event in child.look(order == RUNNING) {
                report(event);
            }
        }
        if order == FINISHING && children.iter().all(|c| !c.running()) {
            return;
        }
        std::thread::sleep(POLL);
    }
}

fn end_all(children: &mut [Child]) {
    children.iter().for_each(Child::ask_to_stop);
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && children.iter_mut().any(Child::still_running) {
        std::thread::sleep(POLL);
    }
    children.iter_mut().for_each(Child::kill);
}
