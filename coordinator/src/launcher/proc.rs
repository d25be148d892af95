//! What /proc says of a process: whether it is stopped, whose child it is, and the processor time it had.

/// Signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    /// By a signal or a debugger.
    pub stopped: bool,
    pub parent: u32,
    /// Clock ticks in user and kernel mode, all threads.
    pub ticks: u64,
}

/// Of a process of this machine; none if there is no such process.
pub(super) fn life(pid: u32) -> Option<Life> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state ppid …`; the name may hold blanks and brackets. Ticks are fields 14 and 15.
fn parse(stat: &str) -> Option<Life> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let mut ticks = fields.skip(9).map(str::parse::<u64>);
    Some(Life { stopped: matches!(state, "T" | "t"), parent, ticks: ticks.next()?.ok()? + ticks.next()?.ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_ticks_are_read() {
        let line = "42 (a) b (c) T 1 42 42 0 -1 4194560 100 0 0 0 17 5 0 0 20 0 3 0 100 1000 10";
        assert_eq!(parse(line), Some(Life { stopped: true, parent: 1, ticks: 22 }));
        assert_eq!(parse("nonsense"), None);
        assert!(life(std::process::id()).is_some_and(|l| !l.stopped));
    }
}
