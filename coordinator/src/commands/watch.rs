//! `coordinator status --watch`: the run once a second until it ends. On a terminal a screen that is redrawn in place; in a pipe a line when something
//! changed.

use super::status::Asking;
use crate::show::{news, screen, sentence};
use anyhow::{anyhow, bail};
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

const EVERY: Duration = Duration::from_secs(1);
/// Questions without an answer, one after the other, after which the coordinator is gone.
const TRIES: u32 = 3;
/// Size of a terminal that does not tell it.
const USUAL: (u16, u16) = (24, 80);

/// Whether stdout can be redrawn.
pub(super) fn on_terminal() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// The screen as it fits the terminal.
pub(super) fn fitting(status: &Value) -> Vec<String> {
    let (rows, columns) = console::Term::stdout().size_checked().unwrap_or(USUAL);
    screen(status, columns.into(), usize::from(rows).saturating_sub(1))
}

pub(super) fn watch(asking: &Asking) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let result = runtime.block_on(follow(asking.clone()));
    // A question may still wait for its answer.
    runtime.shutdown_background();
    result
}

async fn follow(asking: Asking) -> anyhow::Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut view = View::open();
    let mut beats = tokio::time::interval(EVERY);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut missed = 0;
    loop {
        let asking = asking.clone();
        let answer = async {
            beats.tick().await;
            tokio::task::spawn_blocking(move || asking.ask()).await
        };
        let answer = tokio::select! {
            answer = answer => answer?,
            _ = interrupt.recv() => return Ok(ExitCode::from(130)),
            _ = terminate.recv() => return Ok(ExitCode::from(143)),
        };
        match answer {
            Ok(status) => {
                missed = 0;
                if !view.show(status) {
                    return Ok(ExitCode::SUCCESS);
                }
                match view.state() {
                    "complete" => return Ok(ExitCode::SUCCESS),
                    "running" => {}
                    other => bail!("{}", view.ended(other)),
                }
            }
            Err(error) => {
                missed += 1;
                let Some(last) = &view.last else { return Err(error) };
                if missed == TRIES {
                    let place = sentence(last);
                    return Err(anyhow!("the coordinator went away; it was last seen at: {place} ({error:#})"));
                }
            }
        }
    }
}

/// What was shown, and where.
struct View {
    terminal: bool,
    last: Option<Value>,
}

impl View {
    fn open() -> Self {
        let terminal = on_terminal();
        if terminal {
            // The alternate screen without a cursor: what stood there comes back.
            print(b"\x1b[?1049h\x1b[?25l");
        }
        Self { terminal, last: None }
    }

    /// Shows a status. False if nobody reads any more.
    fn show(&mut self, status: Value) -> bool {
        let shown = if self.terminal {
            let lines = fitting(&status).iter().map(|line| format!("{line}\x1b[K\r\n")).collect::<String>();
            print(format!("\x1b[H{lines}\x1b[J").as_bytes())
        } else if self.last.as_ref().is_none_or(|last| news(last) != news(&status)) {
            print(format!("{}\n", sentence(&status)).as_bytes())
        } else {
            true
        };
        self.last = Some(status);
        shown
    }

    fn text(&self, key: &str) -> &str {
        self.last.as_ref().and_then(|s| s.get(key)?.as_str()).unwrap_or_default()
    }

    fn state(&self) -> &str {
        // A coordinator that says nothing of it is an older one, and runs.
        match self.text("state") {
            "" => "running",
            state => state,
        }
    }

    fn ended(&self, state: &str) -> String {
        let dir = self.text("run_dir");
        match self.text("reason") {
            "" => format!("the run was {state}; go on with: coordinator --resume {dir}"),
            reason => format!("the run {state}: {reason}; go on with: coordinator --resume {dir}"),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.terminal {
            print(b"\x1b[?25h\x1b[?1049l");
            // What was seen last stays in sight.
            let lines = self.last.as_ref().map(fitting).unwrap_or_default();
            print(lines.iter().map(|line| format!("{line}\n")).collect::<String>().as_bytes());
        }
    }
}

/// False if nobody reads any more.
fn print(bytes: &[u8]) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).is_ok()
}
