//! What the user sees: progress while a run goes, a table and report.json at its end.

mod live;
mod progress;
mod report;
mod table;

pub(crate) use live::{news, screen, sentence};
pub use progress::{Progress, Start, Style, say};
pub use report::{Report, report};
pub use table::table;
pub(crate) use table::{MEASURES, cell, change};
