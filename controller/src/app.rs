//! How the parts are joined. Wiring only.

use stillmesh_runtime::drain::Watch;

use crate::Config;

/// Runs the controller until the drain.
pub async fn run(_config: Config, _drain: Watch) -> anyhow::Result<()> {
    Ok(())
}
