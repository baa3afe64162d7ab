//! The access log (contract 9.4): one event per connection, scope `access`. The fields' names, order and form are
//! what users and tools read; the reason and the policy are ours and come last.

use std::net::SocketAddr;

use stillmesh_core::explain::Reason;

use super::{Direction, Live, Outcome};

/// The scope.
pub const ACCESS: &str = "access";

/// The event of a connection that is over.
pub(super) fn complete(live: &Live, outcome: &Outcome) {
    let facts = &live.facts;
    let proved = facts.are_ends_proved();
    let source_identity = facts.source_identity().filter(|_| proved).map(|identity| identity.uri());
    let destination_identity = facts.destination.as_ref().filter(|_| proved).map(|workload| workload.identity().uri());
    let (received, sent) = live.bytes();
    // The metrics count from the server's point of view at both ends; the log speaks for the end that writes it.
    let (bytes_sent, bytes_recv) = match facts.direction {
        Direction::Outbound => (received, sent),
        Direction::Inbound => (sent, received),
    };
    let party = facts.source_party();
    let duration = format!("{}ms", live.lasted().as_millis());
    let policy = outcome.reason.as_ref().and_then(Reason::policy).map(ToString::to_string);

    macro_rules! emit {
        ($level:ident) => {
            tracing::event!(
                target: ACCESS,
                tracing::Level::$level,
                src.addr = %facts.source_addr,
                src.workload = facts.source.as_ref().map(|workload| &*workload.name),
                src.namespace = party.namespace.as_deref(),
                src.identity = source_identity.as_deref(),
                src.cluster = party.cluster.as_deref(),
                dst.addr = %facts.destination_addr,
                dst.hbone_addr = facts.authority.as_ref().map(tracing::field::display),
                dst.service = facts.service.as_ref().map(|service| &*service.key.hostname),
                dst.workload = facts.destination.as_ref().map(|workload| &*workload.name),
                dst.namespace = facts.destination.as_ref().map(|workload| &*workload.namespace),
                dst.identity = destination_identity.as_deref(),
                dst.cluster = facts.destination.as_ref().map(|workload| &*workload.cluster),
                direction = facts.direction.as_str(),
                bytes_sent,
                bytes_recv,
                duration = duration.as_str(),
                error = outcome.error.as_deref(),
                reason = outcome.reason.as_ref().map(Reason::code),
                policy = policy.as_deref(),
                conn.id = %facts.id,
                "connection complete"
            )
        };
    }
    match outcome.error {
        Some(_) => emit!(ERROR),
        None => emit!(INFO),
    }
}

/// The event of a connection that was refused before much was known of it.
pub(super) fn failed(direction: Direction, source: SocketAddr, destination: SocketAddr, error: &dyn std::fmt::Display) {
    tracing::event!(
        target: ACCESS,
        tracing::Level::WARN,
        src.addr = %source,
        dst.addr = %destination,
        direction = direction.as_str(),
        error = error.to_string().as_str(),
        "connection failed"
    );
}
