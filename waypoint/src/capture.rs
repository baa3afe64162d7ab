//! Takes CONNECTs: accepts ztunnels' connections, does the handshake, and finds out what each CONNECT is for. What is not
//! bound to this waypoint is refused with the reason.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use stillmesh_core::attrs::{Authority, ConnectAttrs};
use stillmesh_core::decide::{self, Target};
use stillmesh_core::explain::Reason;
use stillmesh_core::model::{Identity, NetworkAddress, Workload};
use stillmesh_hbone::Stream;
use stillmesh_hbone::server::{Incoming, accept_tls, serve};
use stillmesh_proxy::labels::Party;
use stillmesh_runtime::accept::{Acceptor, Permit};
use stillmesh_runtime::sys::socket;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clients::Peer;
use crate::path::forward::Introduction;
use crate::path::{self, PathError, Rewound, Seen};
use crate::record::series::Known;
use crate::record::{self, Early, Origin};
use crate::waypoint::Waypoint;

/// Accepts until the future is dropped. What was accepted lives on in the waypoint's tasks.
pub async fn listen(waypoint: Arc<Waypoint>, listener: TcpListener) {
    let acceptor = Acceptor::new("hbone", listener, waypoint.config.limits.connections);
    loop {
        let accepted = acceptor.accept().await;
        let (stream, peer, permit) = (accepted.connection, accepted.peer, accepted.permit);
        let Ok(handshake) = waypoint.handshakes.clone().try_acquire_owned() else {
            waypoint.metrics.refuse("handshakes");
            continue;
        };
        let owner = waypoint.clone();
        owner.tasks.spawn("connection", terminate(waypoint.clone(), stream, peer, permit, handshake));
    }
}

/// Does the handshake and serves the peer's CONNECTs until it goes.
async fn terminate(
    waypoint: Arc<Waypoint>,
    stream: TcpStream,
    peer: SocketAddr,
    permit: Permit,
    handshake: OwnedSemaphorePermit,
) {
    let _permit = permit;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if let Err(error) = session(&waypoint, stream, peer, handshake).await {
        waypoint.metrics.refuse(error.word());
        record::failed_early(&waypoint, Early { client: Some(peer), ..Early::default() }, &error);
    }
}

async fn session(
    waypoint: &Arc<Waypoint>,
    stream: TcpStream,
    peer: SocketAddr,
    handshake: OwnedSemaphorePermit,
) -> Result<(), PathError> {
    let local = stream.local_addr().map_or(peer, |local| SocketAddr::new(local.ip().to_canonical(), local.port()));
    if let Err(error) = socket::tune(&stream, waypoint.config.keepalive.map(Into::into)) {
        tracing::debug!(%error, "socket options not set");
    }
    let leaf = waypoint.secrets.leaf(&waypoint.config.identity).await?;
    let now = waypoint.secrets.clock().now();
    let mut session = accept_tls(stream, &leaf, now, waypoint.config.limits.handshake).await?;
    drop(handshake);
    let limits = waypoint.limits();
    session.retire(Instant::now() + waypoint.config.limits.client_age());
    let identity = session.peer().clone();
    let entered = waypoint.clients.enter(Peer { address: peer, local, identity: identity.clone() });
    let leave = session.leave();
    let introduction = Introduction::new(peer.ip(), &identity, &waypoint.config.identity);
    let (owner, ends) = (waypoint.clone(), leave.clone());
    let client = Arc::new(Client { waypoint: owner, address: peer, local, identity, introduction, leave: ends });
    let moves = async {
        entered.moves().await;
        leave.cancel();
        pending::<Infallible>().await
    };
    let take = move |incoming| client.clone().take(incoming);
    let served = serve(session, &limits, &waypoint.tasks, waypoint.watch.clone(), take);
    tokio::select! {
        served = served => Ok(served?),
        refusal = entered.refused() => Err(refusal.into()),
        never = moves => match never {},
    }
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Client {
    /// The waypoint.
    pub waypoint: Arc<Waypoint>,
    /// Its address: ztunnel dials from the client's namespace, so that this is the client's.
    pub address: SocketAddr,
    /// The address that it dialled.
    pub local: SocketAddr,
    /// Who it is, by its certificate.
    pub identity: Identity,
    /// How endpoints are told of it.
    pub introduction: Introduction,
    /// Cancelled when it is to connect anew: what is open takes no new requests.
    pub leave: CancellationToken,
}

impl Client {
    /// One CONNECT, from request to end. Opening it has a place of its own, which is given back when it is open.
    fn take(self: Arc<Self>, incoming: Incoming) -> impl Future<Output = ()> + Send + 'static {
        let opening = Box::pin(self.open(incoming));
        async move {
            if let Some((downstream, stream, seen)) = opening.await {
                path::go_on(&downstream, stream, seen).await;
            }
        }
    }

    /// Takes or refuses one, and looks what its bytes are; `None`: it has come to its end already.
    async fn open(self: Arc<Self>, incoming: Incoming) -> Option<(Arc<Downstream>, Rewound<Stream>, Seen)> {
        let Some(authority) = incoming.authority() else {
            let error = PathError::NotConnect { authority: incoming.authority_text().chars().take(256).collect() };
            self.refuse(incoming, None, StatusCode::BAD_REQUEST, &error);
            return None;
        };
        match self.downstream(&incoming, &authority).await {
            Ok(downstream) => {
                let downstream = Arc::new(downstream);
                let (stream, seen) = path::begin(&downstream, incoming).await?;
                Some((downstream, stream, seen))
            }
            Err(error) => {
                self.refuse(incoming, Some(&authority), status(&error), &error);
                None
            }
        }
    }

    fn refuse(&self, incoming: Incoming, authority: Option<&Authority>, status: StatusCode, error: &PathError) {
        let trace = trace(&incoming);
        incoming.refuse(status);
        self.waypoint.metrics.refuse(error.word());
        let early = Early { client: Some(self.address), identity: Some(&self.identity), trace, authority };
        record::failed_early(&self.waypoint, early, error);
    }

    /// What a CONNECT is for.
    async fn downstream(self: &Arc<Self>, incoming: &Incoming, authority: &Authority) -> Result<Downstream, PathError> {
        let own = self.waypoint.own().await?;
        let snapshot = self.waypoint.snapshots.load();
        let peer = Peer { address: self.address, local: self.local, identity: self.identity.clone() };
        peer.admit(&snapshot, &own)?;
        let attrs = ConnectAttrs { destination: &own, local_ip: self.local.ip(), authority };
        let target = decide::waypoint(&snapshot, &attrs)?;
        let described = incoming.headers().baggage.map(Party::from).unwrap_or_default();
        let at = NetworkAddress::new(snapshot.network().clone(), self.address.ip());
        let source = snapshot.workload_at(&at).filter(|workload| workload.identity() == self.identity).cloned();
        let party = match &source {
            Some(workload) => Party::from(workload.as_ref()),
            None => Party { namespace: Some(self.identity.namespace.clone()), ..described },
        };
        Ok(Downstream {
            client: self.clone(),
            origin: Arc::new(Origin::new(self, trace(incoming), source, authority)),
            own,
            target,
            authority: authority.clone(),
            party,
            series: Known::default(),
        })
    }
}

/// The trace of a CONNECT; where it has none, a new one.
fn trace(incoming: &Incoming) -> u128 {
    incoming.headers().traceparent.map_or_else(rand::random, |trace| trace.trace)
}

/// One CONNECT that is carried.
#[derive(Debug)]
pub struct Downstream {
    /// Whose it is.
    pub client: Arc<Client>,
    /// Where its requests come from, as records have it.
    pub origin: Arc<Origin>,
    /// The waypoint's own workload.
    pub own: Arc<Workload>,
    /// What it is for.
    pub target: Target,
    /// What it asked for.
    pub authority: Authority,
    /// What its client is called in telemetry.
    pub party: Party,
    /// What its requests are counted in.
    pub series: Known,
}

impl Downstream {
    /// The waypoint.
    pub fn waypoint(&self) -> &Arc<Waypoint> {
        &self.client.waypoint
    }
}

/// The answer to a CONNECT that fails (contract 3.2). What another waypoint might take is 503.
pub fn status(error: &PathError) -> StatusCode {
    match error.reason() {
        Some(
            Reason::ForeignAuthority { .. }
            | Reason::NoServicePort { .. }
            | Reason::NoRoute { .. }
            | Reason::BackendInvalid { .. }
            | Reason::ProxyPort { .. },
        ) => StatusCode::BAD_REQUEST,
        Some(reason) if reason.is_denial() => StatusCode::UNAUTHORIZED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
