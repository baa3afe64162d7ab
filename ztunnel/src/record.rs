//! One record per connection: it becomes exactly one access log line and exactly one count in the metrics, also
//! when the task that carries the connection is dropped or panics.
//!
//! A path fills [`Facts`] as it learns them, calls [`Record::opened`] when bytes may flow, and ends with
//! [`Record::complete`] or [`Record::fail`]. [`Ledger`] holds what is open, for metrics scrapes, listings and
//! [`crate::enforce`]. What has ended is kept for whoever asks why ([`stillmesh_records`]).

mod decision;
pub mod labels;
mod ledger;
mod log;
pub mod metrics;
pub mod span;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stillmesh_core::Diagnose;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::{Identity, Service, Workload};
use stillmesh_records::Draft;

use labels::{LabelParts, Party, TrafficLabels, Word};
pub use ledger::{Bytes, Cut, First, Ledger, Live};
pub use log::ACCESS;
pub use metrics::Metrics;
use metrics::Reporter;

use crate::capture::Pod;

/// Seen from the captured workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It is the server.
    Inbound,
    /// It is the client.
    Outbound,
}

impl Direction {
    /// As the access log says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    /// As the metrics say it.
    pub fn reporter(self) -> &'static str {
        match self {
            Self::Inbound => "destination",
            Self::Outbound => "source",
        }
    }
}

/// How a connection ended, in the words of the `response_flags` label (contract 9.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flag {
    /// Well, or by the ends themselves.
    #[default]
    None,
    /// A policy refused it.
    Deny,
    /// The next hop could not be reached.
    Connect,
    /// The handshake failed.
    TlsFailure,
    /// HTTP/2 could not be set up.
    H2HandshakeFailure,
    /// The next hop's tunnel port did not answer at all.
    NetworkPolicy,
    /// No certificate for the client.
    IdentityError,
    /// The peer's certificate is revoked.
    CertRevoked,
}

impl Flag {
    /// The flag with this text; an unknown one means that the next hop was not reached.
    pub fn from_text(text: &str) -> Self {
        let all = [
            Self::None,
            Self::Deny,
            Self::TlsFailure,
            Self::H2HandshakeFailure,
            Self::NetworkPolicy,
            Self::IdentityError,
            Self::CertRevoked,
        ];
        all.into_iter().find(|flag| flag.as_str() == text).unwrap_or(Self::Connect)
    }

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// What a flag's text means, in words; `None` where it is none of these.
pub fn meaning(text: &str) -> Option<&'static str> {
    let flag = Flag::from_text(text);
    (flag.as_str() == text).then_some(match flag {
        Flag::None => return None,
        Flag::Deny => "a policy refuses it",
        Flag::Connect => "it was not connected",
        Flag::TlsFailure => "the handshake failed",
        Flag::H2HandshakeFailure => "HTTP/2 could not be set up",
        Flag::NetworkPolicy => "the next hop's port 15008 did not answer at all, as where a NetworkPolicy blocks it",
        Flag::IdentityError => "there is no certificate for the client",
        Flag::CertRevoked => "the peer's certificate is revoked",
    })
}

/// How the bytes travel on the mesh's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// As they are.
    Tcp,
    /// In a HBONE tunnel.
    Hbone,
    /// As they are, from one pod of this node to another, both of which this process holds.
    Direct,
}

impl Protocol {
    /// As listings say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Hbone => "HBONE",
            Self::Direct => "DIRECT",
        }
    }
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Shared by both ends: the trace id of the CONNECT, else our own.
    pub id: Arc<str>,
    /// The span of the client's tunnel within that trace; 0 where it tells of none.
    pub parent: u64,
    /// Which end we are.
    pub direction: Direction,
    /// How the bytes travel.
    pub protocol: Protocol,
    /// The client's address.
    pub source_addr: SocketAddr,
    /// The client's workload, where it is known for sure.
    pub source: Option<Arc<Workload>>,
    /// What a client is called in telemetry that is no known workload.
    pub described: Option<Box<Party>>,
    /// The client's identity, only where mutual TLS proved it, or the pod that it was captured in.
    pub source_identity: Option<Identity>,
    /// What the client asked for.
    pub original: SocketAddr,
    /// Outbound: the next hop. Inbound: the address that the connection came in at.
    pub destination_addr: SocketAddr,
    /// The authority of the CONNECT.
    pub hbone_addr: Option<String>,
    /// The address that the application is reached at; inbound only.
    pub upstream: Option<SocketAddr>,
    /// The server's workload.
    pub destination: Option<Arc<Workload>>,
    /// The service that was meant.
    pub service: Option<Arc<Service>>,
}

impl Facts {
    /// Whether mutual TLS carries it.
    pub fn mutual_tls(&self) -> bool {
        self.protocol == Protocol::Hbone
    }

    /// What the client is called in telemetry.
    pub fn source_party(&self) -> Party {
        let described = || self.described.as_deref().cloned().unwrap_or_default();
        self.source.as_deref().map_or_else(described, Party::from)
    }

    /// Whether both ends are who they are said to be: by mutual TLS, or since both are pods that this process holds.
    pub fn are_ends_proved(&self) -> bool {
        matches!(self.protocol, Protocol::Hbone | Protocol::Direct)
    }

    fn labels(&self, flag: Flag) -> TrafficLabels {
        TrafficLabels::from(LabelParts {
            direction: self.direction,
            source: &self.source_party(),
            source_identity: self.source_identity.as_ref().filter(|_| self.are_ends_proved()),
            destination: self.destination.as_ref(),
            service: self.service.as_ref(),
            flag,
            mutual_tls: self.mutual_tls(),
        })
    }
}

/// How a connection ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What went wrong; `None` where nothing did.
    pub error: Option<String>,
    /// For the metrics.
    pub flag: Flag,
    /// Why, where a decision ended it.
    pub reason: Option<Reason>,
}

/// What an error says of itself to the record.
pub trait Ending: Diagnose {
    /// For the metrics.
    fn flag(&self) -> Flag;
    /// Why, where a decision ended it.
    fn reason(&self) -> Option<&Reason>;
}

/// How it ended, and code and remedy of what ended it.
#[derive(Debug, Default)]
struct Ended {
    outcome: Outcome,
    failure: Option<(&'static str, &'static str)>,
}

/// One connection's record. Dropping it writes it down.
#[derive(Debug)]
pub struct Record {
    ledger: Arc<Ledger>,
    facts: Arc<Facts>,
    started: Instant,
    live: Option<Arc<Live>>,
    bytes: Arc<Bytes>,
    opened: bool,
    /// Nothing until it is over.
    ended: Option<Box<Ended>>,
    because: Option<Reason>,
    decided: Duration,
    opened_after: Option<Duration>,
    retries: u16,
}

impl Record {
    /// Starts a record. Nothing is counted or listed yet.
    pub fn new(ledger: &Arc<Ledger>, facts: Facts) -> Self {
        let bytes = Arc::new(Bytes::new(match (facts.direction, facts.protocol) {
            (Direction::Inbound, Protocol::Hbone) => First::Server,
            _ => First::Client,
        }));
        Self::sharing(ledger, facts, bytes)
    }

    /// Starts the record of the other end of a connection: the same bytes are both ends'.
    pub fn sharing(ledger: &Arc<Ledger>, facts: Facts, bytes: Arc<Bytes>) -> Self {
        Self {
            ledger: ledger.clone(),
            facts: Arc::new(facts),
            started: Instant::now(),
            live: None,
            bytes,
            opened: false,
            ended: None,
            because: None,
            decided: Duration::ZERO,
            opened_after: None,
            retries: 0,
        }
    }

    /// It began before there was a record of it.
    pub fn began(&mut self, at: Instant) {
        self.started = at;
    }

    /// What was decided, and now. The last decision stays.
    pub fn decided(&mut self, because: Reason) {
        self.decided = self.started.elapsed();
        if let Some(live) = &self.live {
            let _ = live.because.set(because.clone());
        }
        self.because = Some(because);
    }

    /// It is tried anew.
    pub fn retried(&mut self) {
        self.retries = self.retries.saturating_add(1);
    }

    /// What is known so far.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Corrects what is known. Only before the connection is listed: afterwards it changes nothing.
    pub fn learn(&mut self, change: impl FnOnce(&mut Facts)) {
        debug_assert!(self.live.is_none(), "a listed connection's facts are fixed");
        if self.live.is_none() {
            change(Arc::make_mut(&mut self.facts));
        }
    }

    /// Lists the connection as live, so that policy changes from now on reach it. The facts are fixed from here.
    pub fn enlist(&mut self) -> Arc<Live> {
        let (ledger, facts, bytes) = (&self.ledger, &self.facts, &self.bytes);
        let live = self.live.get_or_insert_with(|| ledger.enlist(facts.clone(), bytes.clone())).clone();
        if let Some(because) = &self.because {
            let _ = live.because.set(because.clone());
        }
        live
    }

    /// Counts the connection as opened and lists it.
    pub fn opened(&mut self) -> Arc<Live> {
        let live = self.enlist();
        if !self.opened {
            self.opened = true;
            self.opened_after = Some(self.started.elapsed());
            let _ = live.taken.set((self.decided, self.opened_after, self.retries));
            live.open(&self.ledger.metrics);
            let facts = &self.facts;
            tracing::event!(
                target: ACCESS,
                tracing::Level::DEBUG,
                conn.id = %facts.id,
                src.addr = %facts.source_addr,
                dst.addr = %facts.destination_addr,
                direction = facts.direction.as_str(),
                "connection opened"
            );
        }
        live
    }

    /// The byte counters, shared with whoever moves the bytes.
    pub fn bytes(&self) -> &Arc<Bytes> {
        &self.bytes
    }

    /// The connection ended by itself.
    pub fn complete(mut self) {
        self.ended = Some(Box::default());
    }

    /// The connection ended by `error`.
    pub fn fail(mut self, error: &impl Ending) {
        if error.reason().is_some() && self.opened_after.is_none() {
            self.decided = self.started.elapsed();
        }
        self.ended = Some(Box::new(Ended {
            outcome: Outcome { error: Some(error.to_string()), flag: error.flag(), reason: error.reason().cloned() },
            failure: Some((error.code(), error.remedy())),
        }));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Ended { outcome, failure } = self.ended.take().map_or_else(
            || {
                let error = if std::thread::panicking() {
                    self.ledger.metrics.panics.inc();
                    "internal error"
                } else {
                    "connection closed before it ended"
                };
                Ended { outcome: Outcome { error: Some(error.into()), flag: Flag::None, reason: None }, failure: None }
            },
            |ended| *ended,
        );
        let metrics = &self.ledger.metrics;
        if !self.opened {
            metrics.connections_opened.get(&self.facts.labels(Flag::None)).inc();
        }
        let labels = self.facts.labels(outcome.flag);
        if outcome.error.is_some() {
            metrics.connections_failed.get(&labels).inc();
        }
        metrics.connections_closed.get(&labels).inc();
        if let Some(live) = self.live.take() {
            self.ledger.delist(&live);
            live.flush();
            if self.opened {
                metrics.sockets_open.get_or_create(&Reporter { reporter: Word(self.facts.direction.reporter()) }).dec();
            }
        }
        let total = self.started.elapsed();
        log::complete(&self.facts, &self.bytes, total, &outcome);
        let (records, hops) = (&self.ledger.records, self.ledger.hops());
        if !records.is_on() && hops.is_none() {
            return;
        }
        let story = decision::Story {
            because: outcome.reason.as_ref().or(self.because.as_ref()),
            error: outcome.error.as_deref(),
            failure,
            flag: outcome.flag,
            retries: self.retries,
            decided: self.decided,
            opened: self.opened_after,
            total,
            bytes: (self.bytes.received(), self.bytes.sent()),
        };
        if records.is_on() {
            records.put(&decision::draft(&self.facts, &story));
        }
        if let Some(hops) = hops {
            hops.tell(&self.facts, &story);
        }
    }
}

/// An id for a connection that has none yet: 16 random bytes in hex, as a trace id.
pub fn new_id() -> Arc<str> {
    format!("{:032x}", rand::random::<u128>()).into()
}

/// A connection that ended before enough was known for a record.
#[derive(Clone, Copy, Debug)]
pub struct Early<'a> {
    /// Of which pod.
    pub pod: &'a Pod,
    /// Which end of it the pod is.
    pub direction: Direction,
    /// How it came, or would have come.
    pub protocol: Protocol,
    /// The client's address.
    pub source: SocketAddr,
    /// What was dialled, as far as it is known.
    pub destination: SocketAddr,
}

/// Writes it down.
pub fn failed_early(ledger: &Ledger, early: &Early<'_>, error: &impl Ending) {
    log::failed(early.direction, early.source, early.destination, error);
    decision::keep_early(&ledger.records, early, error);
}

/// What is open now, as records have it.
pub fn live(ledger: &Ledger) -> Vec<Draft> {
    ledger.all().iter().map(|live| decision::live(live)).collect()
}

#[cfg(test)]
mod tests;
