//! Peers that ask for what they may not have.

use std::sync::Arc;
use std::time::SystemTime;

use stillmesh_core::attrs::Authority;
use stillmesh_core::model::{Identity, TrustDomain};
use stillmesh_hbone::TunnelError;
use stillmesh_identity::Issuer;
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node, Peer, Pod};
use tokio::io::AsyncReadExt;

fn identity(account: &str) -> Identity {
    Identity::new(TrustDomain::default(), "shop", account)
}

struct World {
    mesh: Mesh,
    node: Node,
    details: Pod,
    other: Pod,
    stranger: Pod,
}

impl World {
    async fn new() -> Self {
        let mut mesh = Mesh::new().await;
        let node = mesh.node().await;
        let (details, other) = (mesh.pod(&node, "shop/details").await, mesh.pod(&node, "shop/other").await);
        let stranger = mesh.unmeshed("out/side").await;
        details.echo(8080).await;
        other.echo(8080).await;
        Self { mesh, node, details, other, stranger }
    }

    fn peer(&self, issuer: Arc<Issuer>) -> Peer {
        Peer::new(&self.stranger, issuer, "shop", "page")
    }

    async fn connect(&self, peer: &Peer, authority: Authority) -> Result<String, TunnelError> {
        let mut opened = peer.open(self.details.at(15008), &identity("details"), &authority).await?;
        let mut greeting = [0; 4];
        opened.stream.read_exact(&mut greeting).await.unwrap();
        Ok(String::from_utf8_lossy(&greeting).into_owned())
    }
}

#[test]
fn a_connect_leads_to_the_workloads_own_ports_and_nowhere_else() {
    isolated_async(|| async {
        let world = World::new().await;
        let peer = world.peer(world.mesh.control.issuer.clone());
        let own = Authority::Address(world.details.at(8080));
        assert_eq!(world.connect(&peer, own).await.unwrap(), world.stranger.v4.to_string()[..4]);
        for (authority, status) in [
            (Authority::Address(world.other.at(8080)), 400),
            (Authority::Address(world.details.at(15001)), 503),
            (Authority::Address(world.details.at(15006)), 503),
            (Authority::Address(world.details.at(15008)), 503),
            (Authority::Address(world.details.at(8081)), 503),
            (Authority::Name("nobody.shop.svc.cluster.local".into(), 80), 503),
        ] {
            match world.connect(&peer, authority.clone()).await {
                Err(TunnelError::Refused { status: found, .. }) => assert_eq!(found.as_u16(), status, "{authority}"),
                other => panic!("{authority}: {other:?}"),
            }
        }
        world.node.counts("istio_tcp_connections_failed_total", &["reporter=\"destination\"", "CONNECT"], 6).await;
    });
}

#[test]
fn a_peer_of_another_ca_or_trust_domain_gets_no_tunnel() {
    isolated_async(|| async {
        let world = World::new().await;
        for trust_domain in ["cluster.local", "elsewhere.example"] {
            let issuer = Issuer::create(&TrustDomain::new(trust_domain).unwrap(), SystemTime::now()).unwrap();
            let peer = world.peer(Arc::new(issuer));
            let refused = world.connect(&peer, Authority::Address(world.details.at(8080))).await;
            // It does not trust us either, and may notice first.
            assert!(matches!(refused, Err(TunnelError::Tls { .. } | TunnelError::Http2 { .. })), "{refused:?}");
        }
    });
}

#[test]
fn a_tunnel_is_not_opened_to_somebody_else_than_expected() {
    isolated_async(|| async {
        let world = World::new().await;
        let peer = world.peer(world.mesh.control.issuer.clone());
        let authority = Authority::Address(world.details.at(8080));
        let refused = peer.open(world.details.at(15008), &identity("other"), &authority).await;
        assert!(matches!(refused, Err(TunnelError::Tls { .. })), "{refused:?}");
    });
}
