//! What is added to a refusal when an operator asks: which rule came nearest, by the policies as they are now. Of a request its
//! method, host and path are kept, and neither its headers nor its token: where a rule asks for those, that is said.

use std::borrow::Cow;
use std::net::SocketAddr;

use stillmesh_core::attrs::ConnectAttrs;
use stillmesh_core::attrs::{AccessAttrs, Headers, RequestAttrs};
use stillmesh_core::decide::{self, Target};
use stillmesh_core::explain::nearest_request_misses;
use stillmesh_core::model::{Identity, NetworkAddress, Workload};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_hbone::headers::parse_authority;
use stillmesh_proxy::decisions::{MOST_MISSES, is_by_policy, told as told_miss};
use stillmesh_records::{Hop, Told};

use crate::waypoint::{Waypoint, own_in};

/// The workload at a client's address, if it has the client's identity.
fn client<'a>(snapshot: &'a Snapshot, told: &Told) -> Option<&'a Workload> {
    let address: SocketAddr = told.source.address.parse().ok()?;
    let at = NetworkAddress::new(snapshot.network().clone(), address.ip());
    let found = snapshot.workload_at(&at)?;
    (found.identity().to_string() == told.source.identity).then_some(found.as_ref())
}

/// Adds it, and the client's workload where that was not known yet when its CONNECT came.
pub fn explain(waypoint: &Waypoint, snapshot: &Snapshot, told: &mut Told) {
    if told.source.workload.is_empty()
        && let Some(workload) = client(snapshot, told)
    {
        told.source.workload = workload.uid.to_string();
    }
    if !is_by_policy(told) {
        return;
    }
    let asked = (|| {
        let own = own_in(&waypoint.config, snapshot)?;
        let authority = parse_authority(&told.destination.authority)?;
        let local: SocketAddr = told.destination.address.parse().ok()?;
        let source: SocketAddr = told.source.address.parse().ok()?;
        let identity: Identity = told.source.identity.parse().ok()?;
        let attrs = ConnectAttrs { destination: &own, local_ip: local.ip(), authority: &authority };
        let target = decide::waypoint(snapshot, &attrs).ok()?;
        Some((own, target, source, identity))
    })();
    let Some((own, target, source, identity)) = asked else { return };
    let request = (told.hop == Hop::Request).then(|| RequestAttrs {
        method: &told.method,
        scheme: "http",
        authority: &told.host,
        path: &told.path,
        query: None,
        headers: &NotKept,
        port: match &target {
            Target::Service { port, .. } => port.mapping.service_port,
            Target::Workload { address, .. } => address.port(),
        },
        token: None,
    });
    let attrs = AccessAttrs {
        waypoint: &own,
        target: &target,
        source_identity: Some(&identity),
        source_ip: source.ip(),
        remote_ip: source.ip(),
        server_name: None,
        request: request.as_ref(),
        token: None,
    };
    let mut misses: Vec<_> = nearest_request_misses(snapshot, &attrs, MOST_MISSES).into_iter().map(told_miss).collect();
    let mut is_whole = true;
    for miss in misses.iter_mut().filter(|miss| !is_kept(&miss.attribute)) {
        miss.seen = "(not kept in records)".to_owned();
        is_whole = false;
    }
    let verdict = decide::authorize_request(snapshot, &attrs);
    // Without what is not kept it cannot be said.
    if is_whole && verdict.reason.to_string() != told.because {
        told.now = Some(verdict.reason.to_string());
    }
    told.misses = misses;
}

/// Whether records have what a rule asks for.
fn is_kept(attribute: &str) -> bool {
    !["header", "claim", "auth", "request_principal", "remote", "query", "sni", "server_name"]
        .iter()
        .any(|part| attribute.contains(part))
}

/// The headers of a request that is over.
struct NotKept;

impl Headers for NotKept {
    fn value(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }
}
