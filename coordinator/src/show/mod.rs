//! What the user sees: progress while a run goes, a table and report.json at its end.

mod progress;
mod report;
mod table;

pub use progress::{Progress, Start, Style};
pub use report::{Report, report};
pub use table::table;
pub(crate) use table::{MEASURES, cell, change};
