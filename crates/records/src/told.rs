//! Records as they are told: JSON, at the admin port and by the command.

use serde::{Deserialize, Serialize};

use crate::record::{Field, Hop, Recorded};

/// One record with its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Told {
    /// Who tells it: a node's tunnel or a waypoint. Written by whoever asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// Where it was seen.
    pub hop: Hop,
    /// The trace of the CONNECT that brought it.
    pub id: String,
    /// The trace of the CONNECT that carried it on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// A request's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What a refused client was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// Whether it is open still.
    pub live: bool,
    /// When it was written, or looked at: microseconds since 1970.
    pub at_us: u64,
    /// Whether it was refused.
    pub refused: bool,
    /// The reason's code.
    pub reason: String,
    /// The reason in words.
    pub because: String,
    /// The policy or route that decided.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// What went wrong.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// How it ended, as metrics say it.
    pub flags: String,
    /// A response's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// A response's status of gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<u8>,
    /// A request's method.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// A request's host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// A request's path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// How often it was tried anew.
    pub retries: u16,
    /// Whether it went, or came, through a HBONE tunnel.
    pub tunnelled: bool,
    /// Whether it went from one pod of a node straight to another, both of which the node's tunnel holds.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
    /// The client.
    pub source: Source,
    /// Who was meant, and who was to serve it.
    pub destination: Destination,
    /// How long deciding took, microseconds; 0: nothing was decided.
    pub decide_us: u32,
    /// How long it took until it was open, microseconds; 0: it never was.
    pub open_us: u32,
    /// How long it lasted, microseconds.
    pub total_us: u64,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// What would have had to differ, by the policies as they are now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub misses: Vec<Miss>,
    /// What would be decided now, where that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
}

/// What the admin port answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    /// The time there: microseconds since 1970.
    pub now_us: u64,
    /// Whether records are kept at all.
    pub is_on: bool,
    /// When the oldest record was written.
    pub oldest_us: Option<u64>,
    /// How many are kept.
    pub kept: usize,
    /// How many were ever written.
    pub written: u64,
    /// What they take, bytes.
    pub bytes: usize,
    /// What was asked for: open ones first, then newest first.
    pub decisions: Vec<Told>,
}

/// The client's end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Its address.
    pub address: String,
    /// Its workload's uid, where it is known.
    pub workload: String,
    /// Its identity, where mutual TLS proved it.
    pub identity: String,
}

/// The server's end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Destination {
    /// What was dialled.
    pub address: String,
    /// The CONNECT's authority.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// The service that was meant.
    pub service: String,
    /// The workload that was to serve it.
    pub endpoint: String,
    /// Where it was carried.
    pub upstream: String,
}

/// One thing that would have had to differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Miss {
    /// The policy: `namespace/name`.
    pub policy: String,
    /// The rule in it, from 0.
    pub rule: usize,
    /// What differs, for example `principal`.
    pub attribute: String,
    /// What the rule wants.
    pub wanted: String,
    /// What there was.
    pub seen: String,
}

impl Told {
    /// When it began, microseconds since 1970.
    pub fn began_us(&self) -> u64 {
        self.at_us.saturating_sub(self.total_us)
    }

    /// A record with its names; nothing of the present.
    pub fn of(recorded: &impl Recorded) -> Self {
        let record = recorded.record();
        let text = |field| recorded.text(field).to_owned();
        let address = |address: crate::Address| address.get().map(|one| one.to_string()).unwrap_or_default();
        let long = |id: u128| format!("{id:032x}");
        Self {
            by: String::new(),
            hop: record.hop,
            id: long(record.id),
            next: (record.next != 0).then(|| long(record.next)),
            request: (record.request != 0).then(|| long(record.request)),
            decision: (record.decision != 0).then(|| format!("{:016x}", record.decision)),
            live: false,
            at_us: record.at_us,
            refused: record.is_refused,
            reason: record.reason.to_owned(),
            because: text(Field::Because),
            object: text(Field::Object),
            remedy: record.remedy.to_owned(),
            error: text(Field::Error),
            flags: text(Field::Flags),
            status: (record.status != 0).then_some(record.status),
            grpc: record.grpc.checked_sub(1),
            method: text(Field::Method),
            host: text(Field::Host),
            path: text(Field::Path),
            retries: record.retries,
            tunnelled: record.is_tunnelled,
            direct: record.is_direct,
            source: Source {
                address: address(record.source),
                workload: text(Field::Source),
                identity: text(Field::SourceIdentity),
            },
            destination: Destination {
                address: address(record.original),
                authority: text(Field::Authority),
                service: text(Field::Service),
                endpoint: text(Field::Endpoint),
                upstream: address(record.upstream),
            },
            decide_us: record.decide_us,
            open_us: record.open_us,
            total_us: record.total_us,
            received: record.received,
            sent: record.sent,
            misses: Vec::new(),
            now: None,
        }
    }
}
