//! `coordinator grade`: the same decision that votes and evaluation make, on pairs of answers.

use anyhow::Context;
use quorum_core::answer::{self, Notation};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::Path;

/// Prints each line with the verdict. A reader that has had enough (`| head`) is no error.
pub(super) fn grade(pairs: &Path, notation: Notation) -> anyhow::Result<()> {
    match grade_all(pairs, notation) {
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        other => other,
    }
}

fn grade_all(pairs: &Path, notation: Notation) -> anyhow::Result<()> {
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
        let graded = graded(&line, notation).with_context(place)?;
        writeln!(out, "{graded}")?;
    }
    out.flush()?;
    Ok(())
}

/// The line with `"equivalent"` added.
fn graded(line: &str, notation: Notation) -> anyhow::Result<Value> {
    let object: Value = serde_json::from_str(line).context("the line is not JSON")?;
    Ok(answer::grade(&object, notation)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_kept_and_the_verdict_added() {
        let graded = |line| graded(line, Notation::Common);
        let text = graded(r#"{"id":0,"a":"5","b":"5"}"#).unwrap().to_string();
        assert_eq!(text, r#"{"id":0,"a":"5","b":"5","equivalent":true}"#);
        assert_eq!(graded(r#"{"a":"5","b":"6"}"#).unwrap()["equivalent"], false);
        assert!(graded(r#"{"a":"5"}"#).unwrap_err().to_string().contains("\"b\""));
        assert!(graded("nonsense").unwrap_err().to_string().contains("JSON"));
    }
}
