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

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use stillmesh_core::Diagnose;
use stillmesh_core::attrs::Authority;
use stillmesh_core::explain::Reason;
use stillmesh_core::model::{Identity, Service, Workload};
use stillmesh_hbone::copy::Counters;
use stillmesh_proxy::decisions::short_microseconds;
use stillmesh_records::Draft;

use labels::{LabelParts, Party, TrafficLabels};
pub use ledger::{Cut, Ledger, Live};
pub use log::ACCESS;
pub use metrics::Metrics;

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

/// A connection's number, shared by both ends: the trace id of the CONNECT, else our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(pub u128);

impl Id {
    /// One for a connection that has none yet: random, as a trace id.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for Id {
    /// As a trace id: 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What is known of a connection. Each that is open has it: what others have already is shared with them.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Which connection it is.
    pub id: Id,
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
    /// The client's identity where mutual TLS proved it.
    pub peer: Option<Arc<Identity>>,
    /// What the client asked for.
    pub original: SocketAddr,
    /// Outbound: the next hop. Inbound: the address that the connection came in at.
    pub destination_addr: SocketAddr,
    /// The authority of the CONNECT.
    pub authority: Option<Authority>,
    /// The address that the application is reached at; inbound only.
    pub upstream: Option<SocketAddr>,
    /// The server's workload.
    pub destination: Option<Arc<Workload>>,
    /// The service that was meant.
    pub service: Option<Arc<Service>>,
}

impl Facts {
    /// The client's identity, where mutual TLS proved it, or the client is a pod that this process holds.
    pub fn source_identity(&self) -> Option<Identity> {
        let is_captured = self.direction == Direction::Outbound || self.protocol == Protocol::Direct;
        let captured = || self.source.as_ref().filter(|_| is_captured).map(|source| source.identity());
        self.peer.as_deref().cloned().or_else(captured)
    }

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
            source: self.source_party(),
            source_identity: self.source_identity().filter(|_| self.are_ends_proved()),
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
    live: Arc<Live>,
    listed: bool,
    opened: bool,
    /// Nothing until it is over.
    ended: Option<Box<Ended>>,
}

impl Record {
    /// Starts a record. Nothing is counted or listed yet.
    pub fn new(ledger: &Arc<Ledger>, facts: Facts) -> Self {
        Self::sharing(ledger, facts, Arc::default())
    }

    /// Starts the record of the other end of a connection: the same bytes are both ends'.
    pub fn sharing(ledger: &Arc<Ledger>, facts: Facts, counters: Arc<Counters>) -> Self {
        let live = Arc::new(ledger.begin(facts, counters));
        Self { ledger: ledger.clone(), live, listed: false, opened: false, ended: None }
    }

    /// It began before there was a record of it. Only before the connection is listed.
    pub fn began(&mut self, at: Instant) {
        self.change(|live| live.began = at);
    }

    /// What was decided, and now. The last decision stays.
    pub fn decided(&mut self, because: Reason) {
        let mut told = self.live.told.lock();
        (told.because, told.decide_us) = (Some(because), short_microseconds(self.live.lasted()));
    }

    /// It is tried anew.
    pub fn retried(&mut self) {
        let mut told = self.live.told.lock();
        told.retries = told.retries.saturating_add(1);
    }

    /// What is known so far.
    pub fn facts(&self) -> &Facts {
        &self.live.facts
    }

    /// The connection as others see it once it is listed.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Corrects what is known. Only before the connection is listed: afterwards it changes nothing.
    pub fn learn(&mut self, change: impl FnOnce(&mut Facts)) {
        self.change(|live| change(&mut live.facts));
    }

    fn change(&mut self, change: impl FnOnce(&mut Live)) {
        let live = Arc::get_mut(&mut self.live);
        debug_assert!(live.is_some(), "a listed connection's facts are fixed");
        if let Some(live) = live {
            change(live);
        }
    }

    /// Lists the connection as live, so that policy changes from now on reach it. The facts are fixed from here.
    pub fn enlist(&mut self) -> &Arc<Live> {
        if !std::mem::replace(&mut self.listed, true) {
            self.ledger.enlist(&self.live);
        }
        &self.live
    }

    /// Counts the connection as opened and lists it.
    pub fn opened(&mut self) {
        self.enlist();
        if !std::mem::replace(&mut self.opened, true) {
            self.live.open(&self.ledger.metrics);
            let facts = self.facts();
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
    }

    /// The byte counters, shared with whoever moves the bytes.
    pub fn counters(&self) -> &Arc<Counters> {
        self.live.counters()
    }

    /// The connection ended by itself.
    pub fn complete(mut self) {
        self.ended = Some(Box::default());
    }

    /// The connection ended by `error`.
    pub fn fail(mut self, error: &impl Ending) {
        let mut told = self.live.told.lock();
        if error.reason().is_some() && told.open_us == 0 {
            told.decide_us = short_microseconds(self.live.lasted());
        }
        drop(told);
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
        let live = &*self.live;
        live.close(&self.ledger.metrics, &outcome);
        if self.listed {
            self.ledger.delist(live);
        }
        log::complete(live, &outcome);
        let (records, hops) = (&self.ledger.records, self.ledger.hops());
        if !records.is_on() && hops.is_none() {
            return;
        }
        let told = live.told.lock();
        let story = decision::Story {
            because: outcome.reason.as_ref().or(told.because.as_ref()),
            error: outcome.error.as_deref(),
            failure,
            flag: outcome.flag,
            retries: told.retries,
            decide_us: told.decide_us,
            open_us: told.open_us,
            total: live.lasted(),
            bytes: live.bytes(),
        };
        if records.is_on() {
            records.put(&decision::draft(&live.facts, &story));
        }
        if let Some(hops) = hops {
            hops.tell(&live.facts, &story);
        }
    }
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
