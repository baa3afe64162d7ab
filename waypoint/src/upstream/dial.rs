//! Opens one way to one endpoint, as core planned it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use stillmesh_core::decide::{Dial, OutboundPlan, OutboundProtocol};
use stillmesh_core::model::Workload;
use stillmesh_hbone::headers::{ConnectHeaders, Forwarded, Traceparent};
use stillmesh_hbone::{Dialling, Key, Transport};
use stillmesh_proxy::labels::baggage;
use stillmesh_proxy::settings::Keepalive;
use stillmesh_runtime::sys::socket;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::Way;
use crate::path::PathError;
use crate::waypoint::Waypoint;

/// A trace for the CONNECT that opens the way of a plan; 0 where it needs none.
pub fn trace(plan: &OutboundPlan) -> u128 {
    match plan.protocol {
        OutboundProtocol::Hbone { .. } => rand::random::<u128>().max(1),
        OutboundProtocol::Passthrough | OutboundProtocol::Tcp => 0,
    }
}

/// Opens the way that a plan names, by a CONNECT with this [`trace`]. `client` is whose connection it is; `None` where several
/// share it.
pub async fn way(
    waypoint: &Waypoint,
    own: &Workload,
    plan: &OutboundPlan,
    client: Option<SocketAddr>,
    trace: u128,
    deadline: Instant,
) -> Result<Way, PathError> {
    let slow = || PathError::Slow { to: text(&plan.dial), limit: waypoint.config.limits.connect };
    let hop = match &plan.dial {
        Dial::Address(address) => *address,
        Dial::Name(name, port) => {
            let found = timeout_at(deadline, resolve(name, *port)).await.map_err(|_| slow())?;
            found.map_err(|source| PathError::Resolve { name: name.clone(), source: Arc::new(source) })?
        }
    };
    match &plan.protocol {
        OutboundProtocol::Passthrough | OutboundProtocol::Tcp => {
            let connected = timeout_at(deadline, connect(hop, waypoint.config.keepalive)).await.map_err(|_| slow())?;
            connected.map(Way::Tcp).map_err(|source| PathError::Connect { to: hop, source: Arc::new(source) })
        }
        OutboundProtocol::Hbone { authority, expected, .. } => {
            let family = |address: &&IpAddr| address.is_ipv4() == hop.is_ipv4();
            let source_ip = own.addresses.iter().find(family).or(own.addresses.first()).copied();
            let key = Key {
                source: waypoint.config.identity.clone(),
                source_ip: source_ip.unwrap_or(hop.ip()),
                destination: hop,
                expected: expected.clone(),
            };
            let host = plan.service.as_ref().map(|service| service.key.hostname.to_string());
            let headers = ConnectHeaders {
                baggage: Some(baggage(own)),
                forwarded: Some(Forwarded { source: client, host }),
                traceparent: Some(Traceparent::new(trace, rand::random())),
                network: None,
            };
            let opened = timeout_at(deadline, waypoint.pool.open(&key, authority, &headers)).await;
            Ok(Way::Hbone(Box::new(opened.map_err(|_| slow())??.stream)))
        }
    }
}

/// What is dialled, for a log.
fn text(dial: &Dial) -> String {
    match dial {
        Dial::Address(address) => address.to_string(),
        Dial::Name(name, port) => format!("{name}:{port}"),
    }
}

/// An address of a name, at random among those of the first one's family.
async fn resolve(name: &str, port: u16) -> io::Result<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host((name, port)).await?.collect();
    let first_family = addresses.first().map(SocketAddr::is_ipv4);
    addresses.retain(|address| Some(address.is_ipv4()) == first_family);
    let pick = rand::random_range(0..addresses.len().max(1));
    addresses.get(pick).copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}

async fn connect(to: SocketAddr, keepalive: Option<Keepalive>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    if let Err(error) = socket::tune(&stream, keepalive.map(Into::into)) {
        tracing::debug!(%error, "socket options not set");
    }
    Ok(stream)
}

/// Dials tunnels from the waypoint's own address.
#[derive(Debug)]
pub struct Plain {
    /// Of its sockets.
    pub keepalive: Option<Keepalive>,
}

impl stillmesh_hbone::Dial for Plain {
    fn dial<'a>(&'a self, key: &'a Key) -> Dialling<'a> {
        Box::pin(async move { Ok(Box::new(connect(key.destination, self.keepalive).await?) as Box<dyn Transport>) })
    }
}
