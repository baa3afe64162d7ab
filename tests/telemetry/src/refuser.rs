//! A node that refuses what it is sent, as one would that cannot read it.

use anyhow::{Context as _, Result};
use stillmesh_api::xds::{Batch, Client, NodeInfo, Rejected, Sink};
use stillmesh_api::{ControlPlane, Root, Token};
use stillmesh_runtime::env::Reader;
use tokio_util::sync::CancellationToken;

/// Refuses each response until somebody ends it. Its environment is a ztunnel's.
pub fn run() -> Result<()> {
    let environment = Reader::process();
    let own = |name: &str| environment.string(name).with_context(|| format!("{name} is not set"));
    let control_plane = ControlPlane {
        address: own("XDS_ADDRESS")?,
        root: Root::File(own("XDS_ROOT_CA")?.into()),
        alt_hostname: None,
        token: Token::File(own("AUTH_TOKEN")?.into()),
        cluster_id: "Kubernetes".to_owned(),
        headers: Vec::new(),
    };
    let node = NodeInfo::ztunnel("refuser", "istio-system", &own("NODE_NAME")?, None, "cluster.local");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Client::new(control_plane, node).run(Refuser, CancellationToken::new()));
    Ok(())
}

struct Refuser;

impl Sink for Refuser {
    async fn apply(&mut self, batch: Batch) -> Vec<Rejected> {
        vec![Rejected { name: batch.kind.url().to_owned(), reason: "planted".to_owned() }]
    }
}
