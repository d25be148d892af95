//! This machine: memory and cores.

use serde::Serialize;

/// What there is, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Machine {
    pub ram: u64,
    /// What could be had now without swapping.
    pub available: u64,
    pub cores: u64,
}

/// Asks /proc/meminfo and, in a container, its limit.
pub fn machine() -> Machine {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (ram, available) = (field(&info, "MemTotal"), field(&info, "MemAvailable"));
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(u64::MAX);
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    Machine { ram: ram.min(limit), available: available.min(limit), cores }
}

/// Bytes of a line such as `MemTotal:  24683 kB`; 0 if there is none.
fn field(info: &str, name: &str) -> u64 {
    let line = info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let info = "MemTotal:       24683920 kB\nMemFree: 1 kB\nMemAvailable:   24127604 kB\n";
        assert_eq!((field(info, "MemTotal"), field(info, "MemAvailable")), (24_683_920 << 10, 24_127_604 << 10));
        assert_eq!(field(info, "Mem"), 0);
        assert!(machine().cores >= 1);
    }
}
