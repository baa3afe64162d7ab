//! What a CONNECT's bytes are ([`begin`]), and how they are carried ([`go_on`]): [`http`] request by request, [`tcp`] as they are.

mod authorize;
mod carried;
mod cors;
mod error;
mod exchange;
mod fault;
pub mod forward;
mod hello;
pub mod http;
mod keep_alive;
mod last_words;
mod mirror;
mod pace;
pub mod plan;
pub mod replay;
mod reply;
pub mod response;
mod rewound;
mod sniff;
mod streams;
pub mod tcp;
mod upgrade;

use std::future::poll_fn;
use std::sync::Arc;

use stillmesh_core::decide::Target;
use stillmesh_core::decide::stream::{self, Asked};
use stillmesh_core::model::AppProtocol;
use stillmesh_core::snapshot::Snapshot;
use stillmesh_hbone::Stream;
use stillmesh_hbone::headers::ConnectHeaders;
use stillmesh_hbone::server::Incoming;
use stillmesh_proxy::labels::baggage;
use tokio::time::timeout;

use crate::capture::Downstream;
use crate::config::Limits;
use crate::record::{self, Early};
pub use authorize::All;
pub use carried::Carried;
pub use error::PathError;
pub use forward::RequestId;
use hello::Hello;
pub use pace::UnderWay;
pub use replay::{Received, RequestBody};
pub use response::ResponseBody;
pub use rewound::{Bytes, Rewound};
pub use sniff::Seen;

/// How HTTP is spoken, with the client and with the endpoint alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.1 or 1.0.
    One,
    /// HTTP/2.
    Two,
}

/// Opens one CONNECT and finds out what its bytes are; `None`: it has come to its end already. Never fails silently.
pub async fn begin(downstream: &Arc<Downstream>, incoming: Incoming) -> Option<(Rewound<Stream>, Seen)> {
    let asked = asked(downstream);
    let spoken = {
        let snapshot = downstream.waypoint().snapshots.load();
        spoken(&snapshot, &downstream.target, &downstream.client.identity.namespace)
    };
    let is_tcp = spoken == Spoken::Stream;
    // Bytes are carried only once there is somebody to carry them to: until the 200 the client's side may choose anew.
    if is_tcp && asked != Asked::Opening {
        tcp::carry(downstream, incoming).await;
        return None;
    }
    let mut stream = Rewound::new(accept(downstream, incoming)?);
    let limits = &downstream.waypoint().config.limits;
    let seen = match spoken {
        Spoken::Stream => Seen::Other,
        Spoken::Unclear => match timeout(limits.detection, look(&mut stream)).await {
            Ok(seen) => seen,
            // Silent so far: it may be the server that speaks first.
            Err(_) if stream.seen().is_empty() => {
                tcp::or_http(downstream, stream).await;
                return None;
            }
            Err(_) => Seen::Other,
        },
        // The port says that it is HTTP: there is time, and what is no HTTP is answered as such.
        Spoken::Http => match begins(&mut stream, limits).await? {
            Seen::Two => Seen::Two,
            Seen::Gone => return None,
            _ => Seen::One,
        },
    };
    Some((stream, seen))
}

/// What of a connection decides where it goes, where it is no HTTP.
fn asked(downstream: &Downstream) -> Asked {
    let snapshot = downstream.waypoint().snapshots.load();
    stream::asked(&snapshot, &downstream.target, &downstream.client.identity.namespace)
}

/// What is spoken where a client has dialled, as far as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// Bytes, carried as they are.
    Stream,
    /// HTTP.
    Http,
    /// What the first bytes say.
    Unclear,
}

/// What the port of `target` says, and where that says nothing, the routes for clients of this namespace.
pub fn spoken(snapshot: &Snapshot, target: &Target, client_namespace: &str) -> Spoken {
    let Target::Service { service, port, .. } = target else { return Spoken::Unclear };
    match port.protocol() {
        AppProtocol::Tcp | AppProtocol::Tls => Spoken::Stream,
        AppProtocol::Http1 | AppProtocol::Http2 | AppProtocol::Grpc => Spoken::Http,
        AppProtocol::Unknown => {
            let has_streams = stream::asked(snapshot, target, client_namespace) != Asked::Nothing;
            let requests = || snapshot.routes(&service.key, port.mapping.service_port, Some(client_namespace));
            // Somebody says what becomes of its connections, and nobody what becomes of requests.
            if has_streams && requests().is_none() { Spoken::Stream } else { Spoken::Unclear }
        }
    }
}

/// How a client begins that is known to speak HTTP: it may be idle before, and then is as quick as any head has to be.
async fn begins(stream: &mut Rewound<Stream>, limits: &Limits) -> Option<Seen> {
    if timeout(limits.idle, read(stream)).await.ok()?.is_none() {
        return Some(Seen::Gone);
    }
    timeout(limits.head, look(stream)).await.ok()
}

/// Carries what was seen for what it is. What takes much room has a place of its own: most connections are HTTP/1.1, and idle.
pub async fn go_on(downstream: &Arc<Downstream>, stream: Rewound<Stream>, seen: Seen) {
    match seen {
        Seen::One => http::one(downstream, stream).await,
        Seen::Two => Box::pin(http::two(downstream, stream)).await,
        Seen::Other | Seen::Gone | Seen::Unclear => Box::pin(tcp::after_accept(downstream, stream)).await,
    }
}

/// Opens the client's tunnel.
fn accept(downstream: &Downstream, incoming: Incoming) -> Option<Stream> {
    let headers = ConnectHeaders { baggage: Some(baggage(&downstream.own)), ..ConnectHeaders::default() };
    match incoming.accept(&headers) {
        Ok(stream) => Some(stream),
        Err(source) => {
            let error = PathError::ClientGone { source: Arc::new(source) };
            let early = Early {
                client: Some(downstream.client.address),
                identity: Some(&downstream.client.identity),
                trace: downstream.origin.trace(),
                authority: Some(&downstream.authority),
            };
            record::failed_early(downstream.waypoint(), early, &error);
            None
        }
    }
}

/// Reads until it is clear what the client speaks. Cancel-safe: what was read stays.
async fn look(stream: &mut Rewound<Stream>) -> Seen {
    loop {
        match sniff::sniff(stream.seen()) {
            Seen::Unclear => {}
            clear => return clear,
        }
        match read(stream).await {
            None if stream.seen().is_empty() => return Seen::Gone,
            None => return Seen::Other,
            Some(()) => {}
        }
    }
}

/// Reads until it is clear whether the client begins with TLS, and which name it asks for. Cancel-safe: what was read stays.
async fn greeting(stream: &mut Rewound<Stream>) -> Hello {
    let mut reader = hello::Reader::default();
    loop {
        match reader.look(stream.seen()) {
            Hello::Unclear => {}
            clear => return clear,
        }
        if read(stream).await.is_none() {
            return Hello::Other;
        }
    }
}

/// Reads a piece; `None`: there is no more. Cancel-safe.
async fn read(stream: &mut Rewound<Stream>) -> Option<()> {
    let is_more = poll_fn(|cx| stream.poll_more(cx)).await;
    is_more.ok().filter(|is_more| *is_more).map(drop)
}
