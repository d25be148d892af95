//! Records that a run does not use: found bad or too long before it starts, or set aside while it ran. Listed in RUN_DIR/set-aside.jsonl with
//! file, row and reason; the file is made anew from data and ledger at every start.

use crate::evaluate::{purpose_name, purpose_of};
use crate::ledger::QuarantineRow;
use crate::material::Material;
use quorum_core::types::Purpose;
use serde::{Deserialize, Serialize};

/// Name of the list in the run directory.
pub const FILE: &str = "set-aside.jsonl";
/// Records named in the report and at the end of a run; the file has all.
const SHOWN: usize = 5;

/// One record that is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// `train` or `test`.
    pub set: String,
    pub file: String,
    /// Row in the data set, from 0.
    pub row: u64,
    pub reason: String,
    /// Step or version under which it failed; absent for what was found before the start.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<u64>,
}

impl std::fmt::Display for Aside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, row {}: {}", self.file, self.row, self.reason)
    }
}

/// How many were set aside, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsideReport {
    /// Before the start: bad or too long records.
    pub train: u64,
    pub test: u64,
    /// While it ran.
    pub running: u64,
    pub first: Vec<Aside>,
}

impl AsideReport {
    /// All of them.
    pub fn count(&self) -> u64 {
        self.train + self.test + self.running
    }
}

/// A prompt that was quarantined while the run went on.
pub fn quarantined(material: &Material, row: &QuarantineRow) -> Aside {
    let reasons: Vec<String> = serde_json::from_str(&row.reasons).unwrap_or_else(|_| vec![row.reasons.clone()]);
    let purpose = purpose_of(&row.purpose).unwrap_or(Purpose::Train);
    of_row(material, purpose, row.step, row.row, &reasons)
}

/// The same from its parts.
pub fn of_row(material: &Material, purpose: Purpose, step: u64, row: u64, reasons: &[String]) -> Aside {
    let mut told: Vec<&str> = reasons.iter().map(String::as_str).collect();
    told.dedup();
    let set = if purpose == Purpose::Train { "train" } else { "test" };
    let reason = format!("{} ({})", told.join("; "), purpose_name(purpose));
    Aside { set: set.into(), file: material.file_of(purpose).display().to_string(), row, reason, step: Some(step) }
}

/// Everything set aside, data first, then what was quarantined.
pub fn all(material: &Material, quarantine: &[QuarantineRow]) -> Vec<Aside> {
    let before = material.set_aside().map(|(set, s)| Aside {
        set: set.into(),
        file: s.file.display().to_string(),
        row: s.row,
        reason: s.reason.clone(),
        step: None,
    });
    before.chain(quarantine.iter().map(|q| quarantined(material, q))).collect()
}

/// The content of set-aside.jsonl.
pub fn lines(all: &[Aside]) -> String {
    all.iter().filter_map(|a| serde_json::to_string(a).ok()).fold(String::new(), |out, line| out + &line + "\n")
}

/// Counts and first examples.
pub fn report(material: &Material, quarantine: &[QuarantineRow]) -> AsideReport {
    let (train, test) = material.set_aside_counts();
    let mut first = all(material, quarantine);
    first.truncate(SHOWN);
    AsideReport { train, test, running: quarantine.len() as u64, first }
}
