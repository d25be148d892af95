//! `coordinator config`: the configuration as a run would use it.

use super::cli::RunOptions;
use crate::prepare::configuration;

pub(super) fn config(options: &RunOptions) -> anyhow::Result<()> {
    let config = configuration(&options.request())?;
    let digest = quorum_core::config::digest(&config);
    super::show(&format!("# digest {digest}\n{}", quorum_core::config::to_toml(&config)?))
}
