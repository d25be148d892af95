//! How calls between processes of one group end: with a result, or with an error that names who is late. Which library carries them is others' business.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Asks, while a call waits, whether it should go on; `Some` is why not.
pub type Interrupt = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// How long one call may wait, and what else may end it.
#[derive(Clone)]
pub struct Patience {
    /// Deadline of one call.
    pub deadline: Duration,
    /// Looked at while waiting, several times a second.
    pub interrupt: Interrupt,
}

impl Patience {
    /// Waits for `deadline`, whatever happens elsewhere.
    pub fn new(deadline: Duration) -> Self {
        Self { deadline, interrupt: Arc::new(|| None) }
    }

    /// `Ok` while a call that began at `start` may still wait. `late` names the ranks that have not come, where that is known.
    ///
    /// # Errors
    /// The deadline is over, or the interrupt speaks.
    pub fn check(
        &self,
        operation: &str,
        start: Instant,
        late: impl FnOnce() -> Vec<usize>,
    ) -> Result<(), CollectiveError> {
        if let Some(reason) = (self.interrupt)() {
            return Err(CollectiveError::Interrupted { operation: operation.into(), reason });
        }
        if start.elapsed() < self.deadline {
            return Ok(());
        }
        let late = Late(late());
        Err(CollectiveError::Late { operation: operation.into(), seconds: start.elapsed().as_secs_f64(), late })
    }
}

/// Ranks that are late; empty = the library cannot tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late(pub Vec<usize>);

impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("another rank is late or lost"),
            [one] => write!(f, "rank {one} is late or lost"),
            many => {
                write!(f, "ranks {} are late or lost", many.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// Why a call of the group failed. The group is of no use afterwards.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CollectiveError {
    #[error("{operation}: waited {seconds:.1} s, {late}; the group must form anew")]
    Late { operation: String, seconds: f64, late: Late },
    #[error("{operation}: given up, {reason}")]
    Interrupted { operation: String, reason: String },
    #[error("{operation}: {reason} (after {seconds:.1} s); the group must form anew")]
    Failed { operation: String, seconds: f64, reason: String },
    #[error("{operation}: {reason}; please report this")]
    Arguments { operation: &'static str, reason: String },
}

impl CollectiveError {
    /// `reason` ended an operation that began at `start`.
    pub fn failed(operation: &str, start: Instant, reason: String) -> Self {
        Self::Failed { operation: operation.to_owned(), seconds: start.elapsed().as_secs_f64(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_names_who_is_late() {
        let soon = Patience::new(Duration::ZERO);
        let error = soon.check("all_gather", Instant::now(), || vec![2, 3]).unwrap_err().to_string();
        assert!(error.contains("all_gather") && error.contains("ranks 2, 3 are late"), "{error}");
        let asked = Patience { deadline: Duration::from_secs(9), interrupt: Arc::new(|| Some("fenced".into())) };
        let error = asked.check("barrier", Instant::now(), Vec::new).unwrap_err();
        assert_eq!(error, CollectiveError::Interrupted { operation: "barrier".into(), reason: "fenced".into() });
    }
}
