//! Every parameter of the generator in one place; the README of the data records them.

use serde::Serialize;

/// How a sloppy annotator goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum WrongKind {
    /// Misreads one of the two digits as another one, uniformly, and reasons on consistently.
    MisreadDigit,
    /// Reads well and writes a wrong result: that of other digits, drawn until it differs.
    WrongResult,
}

/// Parameters of the bundled data.
#[derive(Debug, Clone, PartialEq, Serialize, clap::Args)]
pub struct Params {
    /// Seed of everything drawn.
    #[arg(long, default_value_t = 20_260)]
    pub seed: u64,
    /// Images of the labelled warm-up part.
    #[arg(long, default_value_t = 3000)]
    pub warmup: usize,
    /// Images of the unlabelled training part.
    #[arg(long, default_value_t = 8000)]
    pub unlabelled: usize,
    /// Images of the validation part.
    #[arg(long, default_value_t = 512)]
    pub validation: usize,
    /// Images of the test part.
    #[arg(long, default_value_t = 2048)]
    pub test: usize,
    /// Questions about each warm-up image, with independent annotators.
    #[arg(long, default_value_t = 1)]
    pub warmup_questions: usize,
    /// Share of warm-up annotations that are wrong.
    #[arg(long, default_value_t = 0.4)]
    pub wrong_rate: f64,
    /// How they are wrong.
    #[arg(long, value_enum, default_value = "misread-digit")]
    pub wrong_kind: WrongKind,
    /// Side of an image, pixels.
    #[arg(long, default_value_t = 56)]
    pub side: usize,
    /// Largest horizontal offset of a digit from its place, pixels.
    #[arg(long, default_value_t = 1.0)]
    pub jitter_x: f64,
    /// Largest vertical offset, pixels.
    #[arg(long, default_value_t = 2.0)]
    pub jitter_y: f64,
    /// Largest relative change of a digit's size.
    #[arg(long, default_value_t = 0.05)]
    pub jitter_scale: f64,
    /// Bits of a pixel in the PNG: 4 or 8.
    #[arg(long, default_value_t = 4)]
    pub bits: u8,
}

impl WrongKind {
    /// For the README of the data.
    pub fn describe(self) -> &'static str {
        match self {
            Self::MisreadDigit => {
                "one of the two digits is misread as another one, uniformly at random, and the response is consistent with the misreading"
            }
            Self::WrongResult => "the digits are read well, and the result is that of some other digits",
        }
    }
}
