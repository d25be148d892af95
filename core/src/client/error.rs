//! What can go wrong between a process and its coordinator, sorted by what the process must do about it.

use tonic::{Code, Status};

/// Exit status of a worker or learner whose run has failed: not its own fault, and started again it waits for the run to go on.
pub const RUN_FAILED: u8 = 70;

/// Every message names the coordinator's address or the file concerned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// The address given on the command line cannot be used.
    #[error("coordinator address `{url}`: {reason}; give it as http://HOST:PORT, or https://HOST:PORT with TLS")]
    Address { url: String, reason: String },
    /// A token or CA file cannot be used.
    #[error("{what} {path}: {reason}")]
    File { what: &'static str, path: String, reason: String },
    /// Nobody answered in time.
    #[error(
        "coordinator {url} did not answer {call} within {seconds:.0} s (last: {last}); is it running, and is this its gRPC address?"
    )]
    Unreachable { url: String, call: &'static str, seconds: f64, last: String },
    /// The coordinator will never take this process.
    #[error("coordinator {url} refused {call}: {reason}")]
    Refused { url: String, call: &'static str, reason: String },
    /// The coordinator does not know the caller any more (it restarted, or gave the caller up): join again.
    #[error("coordinator {url} does not know this process any more: {reason}")]
    Fenced { url: String, reason: String },
    /// The coordinator has ended the run with an error.
    #[error("the run at coordinator {url} has failed: {reason}")]
    RunFailed { url: String, reason: String },
    /// The thing asked for is not there (any more).
    #[error("coordinator {url} has no {what}: {reason}")]
    Missing { url: String, what: String, reason: String },
    /// A passing failure; trying again may help.
    #[error("{call} at coordinator {url} failed: {reason}")]
    Transient { url: String, call: &'static str, reason: String },
    /// Bytes that do not have the promised digest.
    #[error("{what} from coordinator {url} arrived damaged: {reason}")]
    Damaged { url: String, what: String, reason: String },
    /// The coordinator speaks about something this build does not understand.
    #[error("coordinator {url} sent an unusable answer to {call}: {reason}; run processes of one Quorum version")]
    Protocol { url: String, call: &'static str, reason: String },
}

impl ClientError {
    /// Sorts a gRPC status by what the caller must do.
    pub(super) fn from_status(url: &str, call: &'static str, status: &Status) -> Self {
        let url = url.to_owned();
        let reason = describe(status);
        match status.code() {
            Code::FailedPrecondition => Self::Fenced { url, reason },
            Code::Aborted => Self::RunFailed { url, reason },
            Code::NotFound => Self::Missing { url, what: call.to_owned(), reason },
            Code::Unauthenticated if reason.contains("--token-file") => Self::Refused { url, call, reason },
            Code::Unauthenticated => {
                let reason = format!("{reason}; give --token-file with the coordinator's token");
                Self::Refused { url, call, reason }
            }
            Code::PermissionDenied
            | Code::InvalidArgument
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::AlreadyExists => Self::Refused { url, call, reason },
            _ => Self::Transient { url, call, reason },
        }
    }

    /// Whether the same call may succeed later without joining again.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient { .. } | Self::Damaged { .. } | Self::Unreachable { .. })
    }

    /// Whether the run is over because it failed.
    pub fn is_run_failed(&self) -> bool {
        matches!(self, Self::RunFailed { .. })
    }

    /// Whether the process must join again.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }
}

/// The status's message with its innermost cause: tonic hides "connection refused" two sources down.
fn describe(status: &Status) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    let mut innermost = None;
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    match (status.message(), innermost) {
        ("", None) => format!("{:?}", status.code()).to_lowercase(),
        ("", Some(cause)) => cause,
        (message, Some(cause)) if !message.contains(&cause) => format!("{message}: {cause}"),
        (message, _) => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_what_to_do() {
        let sort = |code| ClientError::from_status("http://x", "Lease", &Status::new(code, "because"));
        assert!(sort(Code::FailedPrecondition).is_fenced() && !sort(Code::PermissionDenied).is_fenced());
        assert!(sort(Code::Unavailable).is_transient() && sort(Code::DeadlineExceeded).is_transient());
        assert!(!sort(Code::PermissionDenied).is_transient());
        let failed = sort(Code::Aborted);
        assert!(failed.is_run_failed() && !failed.is_transient() && !failed.is_fenced(), "{failed}");
        let token = sort(Code::Unauthenticated).to_string();
        assert!(token.contains("http://x") && token.contains("--token-file"), "{token}");
    }
}
