//! What listeners are told: the overview as text, and what of it is worth telling.

use serde_json::Value;
use std::time::{Duration, Instant};

/// Listeners who ask within this time get the same.
const FRESH: Duration = Duration::from_millis(500);
/// A member not heard of for this long is shown as late.
const LATE_SECONDS: f64 = 6.0;

/// The overview at one moment.
pub struct News {
    at: Instant,
    /// As it is sent.
    pub text: String,
    /// The same without clocks: while it stays, nothing is sent.
    pub lasting: String,
}

impl News {
    pub fn of(overview: &Value) -> Self {
        Self { at: Instant::now(), text: overview.to_string(), lasting: lasting(overview.clone()).to_string() }
    }

    pub fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH
    }
}

/// Without the fields that change by themselves; of the time since a member was last seen it stays whether that is long.
fn lasting(mut overview: Value) -> Value {
    let Some(status) = overview.get_mut("status").and_then(Value::as_object_mut) else { return overview };
    status.remove("seconds");
    for member in status.get_mut("members").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(member) = member.as_object_mut() else { continue };
        member.remove("joined_seconds_ago");
        if let Some(seen) = member.get_mut("last_seen_seconds_ago") {
            *seen = seen.as_f64().is_some_and(|s| s > LATE_SECONDS).into();
        }
    }
    overview
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn clocks_alone_are_no_news() {
        let of = |seconds: f64, seen: f64, leases: u64| {
            let member = json!({"id": "worker-0", "leases": leases, "joined_seconds_ago": seconds, "last_seen_seconds_ago": seen});
            News::of(&json!({"committed": 3, "status": {"seconds": seconds, "members": [member]}}))
        };
        let first = of(10.0, 0.5, 2);
        assert_eq!(first.lasting, of(11.0, 1.5, 2).lasting);
        assert_ne!(first.text, of(11.0, 1.5, 2).text);
        assert_ne!(first.lasting, of(11.0, 1.5, 3).lasting, "a lease is news");
        assert_ne!(first.lasting, of(20.0, 7.0, 2).lasting, "and so is silence");
    }
}
