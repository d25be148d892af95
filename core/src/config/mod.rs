//! The one typed configuration of a run, for all processes: defaults < file < `QUORUM_SET` < `--set key=value`.

mod load;
mod presets;
mod sections;
mod train;
mod validate;

pub use load::{ConfigError, digest, examine, from_toml, load, put, to_toml};
pub use presets::{preset, preset_names};
pub use sections::*;
pub use train::*;

use serde::{Deserialize, Serialize};

/// Everything a run needs to know. An unknown key is an error that names the nearest right one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    pub run: RunSection,
    pub model: ModelSection,
    pub template: TemplateSection,
    pub data: DataSection,
    pub rollout: RolloutSection,
    pub view: ViewSection,
    pub vote: crate::vote::VoteRule,
    pub objective: ObjectiveSection,
    pub optim: OptimSection,
    pub train: TrainSection,
    pub eval: EvalSection,
    pub checkpoint: CheckpointSection,
    pub cluster: ClusterSection,
    pub learner: LearnerSection,
}
