//! One child process: started, watched, its stderr kept, started again with backoff.

use super::plan::Launch;
use super::{ChildEvent, Roster, proc};
use quorum_core::client::RUN_FAILED;
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Deaths inside `WINDOW` after which a child is given up.
const DEATHS: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Last lines of stderr kept for messages.
const LINES: usize = 20;
const LONGEST_LINE: usize = 2000;
/// How long the last words of a child that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Time without any processor time after which a silent child is ended.
const WATCHED: Duration = Duration::from_secs(2);

type Tail = Arc<Mutex<VecDeque<String>>>;

enum State {
    /// To be started at this time.
    Due(Instant),
    Running(std::process::Child, Option<JoinHandle<()>>),
    /// Left by itself because the run is complete or has failed, or given up.
    Over,
}

pub(super) struct Child {
    launch: Launch,
    log: PathBuf,
    state: State,
    deaths: VecDeque<Instant>,
    tail: Tail,
    roster: Roster,
    /// A process of it does not answer: which, since when it is watched, and the processor time it had then.
    suspect: Option<(u32, Instant, u64)>,
    /// It was killed because it did not answer.
    hung: bool,
}

impl Child {
    pub(super) fn new(launch: Launch, logs: &Path, roster: Roster) -> Self {
        let log = logs.join(format!("{}.log", launch.name));
        let (state, deaths, tail) = (State::Due(Instant::now()), VecDeque::new(), Tail::default());
        Self { launch, log, state, deaths, tail, roster, suspect: None, hung: false }
    }

    /// The process with this id does not answer. If it is this child's, or one that this child started, the child is ended, unless the process still
    /// computes: then it was only starved, and comes back.
    pub(super) fn suspect(&mut self, pid: u32) {
        let State::Running(process, _) = &self.state else { return };
        let own = |life: &proc::Life| process.id() == pid || (self.launch.group && life.parent == process.id());
        match proc::life(pid).filter(own) {
            Some(life) if life.stopped => self.end_hung(),
            Some(life) => self.suspect = Some((pid, Instant::now(), life.ticks)),
            None => {}
        }
    }

    fn watch_suspect(&mut self) {
        let Some((pid, since, ticks)) = self.suspect.filter(|_| self.running()) else { return };
        let Some(life) = proc::life(pid) else { return self.suspect = None };
        if life.ticks > ticks {
            self.suspect = None;
        } else if life.stopped || since.elapsed() > WATCHED {
            self.end_hung();
        }
    }

    fn end_hung(&mut self) {
        if let State::Running(process, _) = &mut self.state {
            self.hung = true;
            if let (true, Ok(group)) = (self.launch.group, i32::try_from(process.id())) {
                // SAFETY: a signal to the group of a child that is not reaped yet, so the id is still its own.
                unsafe { libc::kill(-group, libc::SIGKILL) };
            }
            // An error means that it has ended already.
            let _ = process.kill();
        }
    }

    pub(super) fn running(&self) -> bool {
        matches!(self.state, State::Running(..))
    }

    /// Looks once: starts it if it is due, notices its end.
    pub(super) fn look(&mut self, restart: bool) -> Vec<ChildEvent> {
        self.watch_suspect();
        match &mut self.state {
            State::Over => Vec::new(),
            State::Due(when) if restart && *when <= Instant::now() => match self.spawn() {
                Ok(()) => Vec::new(),
                Err(e) => {
                    self.state = State::Over;
                    let program = self.launch.program.display();
                    vec![ChildEvent::GaveUp {
                        reason: format!("{} cannot be started ({program}): {e}", self.launch.name),
                    }]
                }
            },
            State::Due(_) => Vec::new(),
            State::Running(process, reader) => match process.try_wait() {
                Ok(None) => Vec::new(),
                Ok(Some(status)) => {
                    let (pid, reader) = (process.id(), reader.take());
                    hear_out(reader);
                    self.ended(pid, status)
                }
                Err(e) => {
                    tracing::error!("{}: {e}", self.launch.name);
                    Vec::new()
                }
            },
        }
    }

    fn spawn(&mut self) -> std::io::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let parent = std::process::id();
        let mut command = Command::new(&self.launch.program);
        command.args(&self.launch.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(Stdio::piped());
        if self.launch.group && is_root() {
            // mpirun asks root twice; whoever runs the coordinator as root has decided already.
            command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
        }
        // Ctrl-C reaches the coordinator alone, which then stops its children in order.
        command.process_group(0);
        // SAFETY: prctl, getppid and _exit are async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // The parent may have died before the line above.
                if libc::getppid().unsigned_abs() != parent {
                    libc::_exit(1);
                }
                Ok(())
            });
        }
        let mut process = command.spawn()?;
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let reader = process.stderr.take().and_then(|pipe| {
            let tail = self.tail.clone();
            std::thread::Builder::new().name("child log".into()).spawn(move || copy(pipe, log, &tail)).ok()
        });
        self.roster.held().insert(self.launch.name.clone(), process.id());
        self.state = State::Running(process, reader);
        Ok(())
    }

    fn ended(&mut self, pid: u32, status: ExitStatus) -> Vec<ChildEvent> {
        let mut events = vec![ChildEvent::Gone { pid }];
        events.extend(self.launch.group.then_some(ChildEvent::GroupGone));
        self.roster.held().remove(&self.launch.name);
        let hung = std::mem::take(&mut self.hung);
        self.suspect = None;
        if status.success() || status.code() == Some(i32::from(RUN_FAILED)) {
            self.state = State::Over;
            return events;
        }
        let now = Instant::now();
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|t| now - *t > WINDOW) {
            self.deaths.pop_front();
        }
        let why = match hung {
            true => format!("{} (process {pid} did not answer any more and was killed)", describe(status)),
            false => format!("{}{}", describe(status), self.last_words(status)),
        };
        if self.deaths.len() >= DEATHS {
            self.state = State::Over;
            let reason = format!(
                "{} died {DEATHS} times within {} s; the last time by {why} (log: {})",
                self.launch.name,
                WINDOW.as_secs(),
                self.log.display()
            );
            events.push(ChildEvent::GaveUp { reason });
            return events;
        }
        let doublings = u32::try_from(self.deaths.len() - 1).unwrap_or(16);
        let pause = FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE);
        self.state = State::Due(now + pause);
        events.push(ChildEvent::Restart { name: self.launch.name.clone(), why });
        events
    }

    /// The last line of stderr that tells of an error; after an exit by itself, any last line.
    fn last_words(&self, status: ExitStatus) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let telling = |l: &&String| {
            let told = ["panicked at", "noticed that process rank", "\"level\":\"ERROR\""];
            l.starts_with("error") || told.iter().any(|words| l.contains(words))
        };
        let any = tail.iter().rfind(|l| !l.starts_with("---")).filter(|_| status.code().is_some());
        tail.iter().rev().find(telling).or(any).map(|l| format!(": {}", message(l))).unwrap_or_default()
    }

    pub(super) fn ask_to_stop(&self) {
        if let State::Running(process, _) = &self.state
            && let Ok(pid) = i32::try_from(process.id())
        {
            // SAFETY: a signal to a child that is not reaped yet, so the id is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }

    pub(super) fn still_running(&mut self) -> bool {
        match &mut self.state {
            State::Running(process, _) => matches!(process.try_wait(), Ok(None)),
            State::Due(_) | State::Over => false,
        }
    }

    pub(super) fn kill(&mut self) {
        if let State::Running(process, _) = &mut self.state {
            // An error means that it has ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
        self.state = State::Over;
    }
}

/// What a line says: of a JSON line its message.
fn message(line: &str) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_str(line).ok();
    let message = parsed.as_ref().and_then(|line| line.get("message")?.as_str());
    message.unwrap_or(line).to_owned()
}

fn is_root() -> bool {
    // SAFETY: geteuid cannot fail and touches nothing.
    unsafe { libc::geteuid() == 0 }
}

/// Waits until the pipe is empty. A process that the child has left behind may hold it open for longer: that one is not waited for.
fn hear_out(reader: Option<JoinHandle<()>>) {
    let began = Instant::now();
    while reader.as_ref().is_some_and(|r| !r.is_finished()) && began.elapsed() < LAST_WORDS {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Copies stderr to the log and keeps the last lines.
fn copy(pipe: ChildStderr, mut log: std::fs::File, tail: &Tail) {
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        // A full disk must not stop the child.
        let _ = log.write_all(&line);
        let text: String = String::from_utf8_lossy(&line).trim_end().chars().take(LONGEST_LINE).collect();
        if !text.is_empty() {
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == LINES {
                tail.pop_front();
            }
            tail.push_back(text);
        }
        line.clear();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown cause".into(),
    }
}
