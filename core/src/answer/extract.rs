//! Taking the final answer out of a response. What it means is not decided here.

use serde::{Deserialize, Serialize};

/// `[vote.extract]`: where an answer may stand. Only the last balanced box counts unless a fallback is switched on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExtractRule {
    /// Without a box, take what follows the last "final answer is" or "answer:".
    pub phrase: bool,
    /// Without box and phrase, take the last number.
    pub last_number: bool,
}

/// The final answer of a response, trimmed; `None` if there is none or it is empty.
pub fn extract(text: &str, rule: &ExtractRule) -> Option<String> {
    let found = match last_box(text) {
        Some(content) => Some(content),
        None if rule.phrase => phrase(text),
        None => None,
    };
    let found = if found.is_none() && rule.last_number { last_number(text) } else { found };
    found.map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned)
}

/// Content of the `\boxed{…}` or `\fbox{…}` that starts last among the balanced ones.
fn last_box(text: &str) -> Option<&str> {
    // One pass with a stack of the open braces; the entry of a box remembers where its content starts.
    let bytes = text.as_bytes();
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut best: Option<(usize, usize)> = None;
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            // `\{` and `\}` are signs, not groups; `\\boxed` is a doubled backslash, so one is skipped at a time.
            b'\\' => {
                if let Some(len) = box_command(&bytes[i..]) {
                    open.push(Some(i + len));
                    i += len;
                    continue;
                }
                if matches!(bytes.get(i + 1), Some(b'{' | b'}')) {
                    i += 1;
                }
            }
            b'{' => open.push(None),
            b'}' => {
                if let Some(Some(start)) = open.pop()
                    && best.is_none_or(|(s, _)| start > s)
                {
                    best = Some((start, i));
                }
            }
            _ => {}
        }
        i += 1;
    }
    best.and_then(|(start, end)| text.get(start..end))
}

/// Length of `\boxed{` or `\fbox{` (blanks before the brace allowed) at the start of `bytes`.
fn box_command(bytes: &[u8]) -> Option<usize> {
    let name = [&b"\\boxed"[..], b"\\fbox"].into_iter().find(|n| bytes.starts_with(n))?;
    let blanks = bytes[name.len()..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    let brace = name.len() + blanks;
    (bytes.get(brace) == Some(&b'{')).then_some(brace + 1)
}

fn phrase(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    let start = ["final answer is", "final answer:", "the answer is", "answer:"]
        .iter()
        .filter_map(|p| lower.rfind(p).map(|i| i + p.len()))
        .max()?;
    let line = text.get(start..)?.trim_start_matches([':', ' ', '*']).lines().next()?;
    Some(line.trim_end_matches(['*', ' ', '.']))
}

fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let inside = |i: usize| {
        let b = bytes[i];
        b.is_ascii_digit() || (b == b'.' && i > 0 && bytes[i - 1].is_ascii_digit())
    };
    let mut start = end - 1;
    while start > 0 && inside(start - 1) {
        start -= 1;
    }
    if start > 0 && bytes[start - 1] == b'-' && (start == 1 || !bytes[start - 2].is_ascii_alphanumeric()) {
        start -= 1;
    }
    text.get(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed(text: &str) -> Option<String> {
        extract(text, &ExtractRule::default())
    }

    #[test]
    fn a_later_broken_box_does_not_hide_an_earlier_one() {
        assert_eq!(boxed("\\boxed{1} then \\boxed{2").as_deref(), Some("1"));
        assert_eq!(boxed("{ \\boxed{1} then {").as_deref(), Some("1"));
        assert_eq!(boxed("\\boxed{\\left\\{1\\right.}").as_deref(), Some("\\left\\{1\\right."));
        assert_eq!(boxed("\\boxed{1}\\boxed{ }"), None);
    }

    #[test]
    fn fallbacks_are_off_unless_asked_for() {
        let text = "So the final answer is **-3.5**.";
        assert_eq!(boxed(text), None);
        let rule = ExtractRule { phrase: true, last_number: false };
        assert_eq!(extract(text, &rule).as_deref(), Some("-3.5"));
        let rule = ExtractRule { phrase: false, last_number: true };
        assert_eq!(extract(text, &rule).as_deref(), Some("-3.5"));
        assert_eq!(extract("of 7 to 12.", &rule).as_deref(), Some("12"));
        assert_eq!(extract("\\boxed{4} or 5", &rule).as_deref(), Some("4"));
    }

    #[test]
    fn a_megabyte_of_braces_is_one_pass() {
        assert_eq!(boxed(&"\\boxed{".repeat(200_000)), None);
        assert_eq!(boxed(&format!("{}\\boxed{{5}}", "{".repeat(1_000_000))).as_deref(), Some("5"));
    }
}
