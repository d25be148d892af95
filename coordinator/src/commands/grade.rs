//! `coordinator grade`: the same decision that votes and evaluation make, on pairs of answers.

use anyhow::{Context, anyhow};
use quorum_core::answer::equivalent;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::Path;

/// Prints each line with the verdict. A reader that has had enough (`| head`) is no error.
pub(super) fn grade(pairs: &Path) -> anyhow::Result<()> {
    match grade_all(pairs) {
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        other => other,
    }
}

fn grade_all(pairs: &Path) -> anyhow::Result<()> {
    let input: Box<dyn BufRead> = if pairs == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(pairs).with_context(|| format!("cannot open {}", pairs.display()))?))
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    for (i, line) in input.lines().enumerate() {
        let place = || format!("{}, line {}", pairs.display(), i + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let graded = graded(&line).map_err(|e| anyhow!("{}: {e}", place()))?;
        writeln!(out, "{graded}")?;
    }
    out.flush()?;
    Ok(())
}

/// The line with `"equivalent"` added.
fn graded(line: &str) -> Result<String, String> {
    let mut object: Map<String, Value> = serde_json::from_str(line).map_err(|e| format!("not a JSON object ({e})"))?;
    let text = |key: &str| match object.get(key) {
        Some(Value::String(s)) => Ok(s.clone()),
        // A missing answer equals nothing.
        Some(Value::Null) => Ok(String::new()),
        Some(Value::Number(n)) => Ok(n.to_string()),
        _ => Err(format!("`{key}` is missing or no text")),
    };
    let (a, b) = (text("a")?, text("b")?);
    object.insert("equivalent".into(), equivalent(&a, &b).into());
    Ok(Value::Object(object).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_kept_and_the_verdict_added() {
        assert_eq!(graded(r#"{"id":0,"a":"5","b":"5"}"#).unwrap(), r#"{"id":0,"a":"5","b":"5","equivalent":true}"#);
        assert!(graded(r#"{"a":"5","b":"6"}"#).unwrap().contains("\"equivalent\":false"));
        assert!(graded(r#"{"a":"5"}"#).unwrap_err().contains("`b`"));
        assert!(graded("nonsense").unwrap_err().contains("JSON"));
    }
}
