//! Answers from a file beside an unlabelled data set, for the ground-truth comparison alone.

use super::Dataset;
use super::build::Cells;
use super::jsonl::Object;
use super::lines::Lines;
use crate::error::DataError;
use crate::fault::Fault;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Longest line, bytes.
const MAX_LINE: u64 = 1 << 20;

impl Dataset {
    /// Fills in answers from JSON lines `{"row": 3, "answer": "12"}` or `{"id": "q-3", "answer": "12"}`. Labels of records that were set aside are ignored. Returns how many records now have an answer.
    ///
    /// # Errors
    /// The first line that is no such object; nothing is changed then.
    pub fn attach_labels(&mut self, path: &Path) -> Result<usize, DataError> {
        let io = |e| DataError::io(path, e);
        let mut by_row = HashMap::new();
        let mut by_id = HashMap::new();
        for (i, line) in Lines::open(path, MAX_LINE).map_err(io)?.enumerate() {
            let fail = |reason: String| DataError::Label { path: path.to_path_buf(), line: i + 1, reason };
            let line = line.map_err(io)?.ok_or_else(|| fail(format!("longer than {MAX_LINE} bytes")))?;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let object: Object = serde_json::from_slice(&line).map_err(|e| fail(format!("not a JSON object ({e})")))?;
            let text = |key: &str| object.text(key).map_err(|f: Fault| fail(f.reason));
            let answer = text("answer")?.ok_or_else(|| fail("no `answer`".to_string()))?;
            match (object.0.get("row").and_then(Value::as_u64), text("id")?) {
                (Some(row), _) => drop(by_row.insert(row, answer)),
                (None, Some(id)) => drop(by_id.insert(id, answer)),
                (None, None) => return Err(fail("neither `row` nor `id`".to_string())),
            }
        }
        for record in &mut self.records {
            let by_id = record.id.as_ref().and_then(|id| by_id.get(id));
            if let Some(answer) = by_row.get(&record.row).or(by_id) {
                record.answer = Some(answer.clone());
            }
        }
        Ok(self.records.iter().filter(|r| r.answer.is_some()).count())
    }
}
