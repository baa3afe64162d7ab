//! What was decided, as `stillmesh why` tells it: the same fields, written the same way as tunnels and waypoints write them.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use stillmesh_core::attrs::{AccessAttrs, Authority, InboundAttrs};
use stillmesh_core::explain::{Reason, nearest_misses, nearest_request_misses};
use stillmesh_core::model::{Identity, Workload};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_proxy::decisions::{MOST_MISSES, because, told as told_miss};
use stillmesh_records::{Draft, Field, Hop, Miss, Record, Told};

/// One hop, as far as it is known.
pub(crate) struct Telling {
    draft: Draft,
    by: String,
    misses: Vec<Miss>,
}

impl Telling {
    /// At somebody's.
    pub(crate) fn at(hop: Hop, by: String, source: IpAddr) -> Self {
        let record = Record { hop, source: SocketAddr::new(source, 0).into(), ..Record::default() };
        Self { draft: Draft::new(record), by, misses: Vec::new() }
    }

    /// It came, or goes, through a tunnel.
    pub(crate) fn tunnelled(&mut self, is_tunnelled: bool) {
        self.draft.record.is_tunnelled = is_tunnelled;
    }

    /// What was dialled.
    pub(crate) fn original(&mut self, original: SocketAddr) {
        self.draft.record.original = original.into();
    }

    /// Where it is carried.
    pub(crate) fn upstream(&mut self, upstream: SocketAddr) {
        self.draft.record.upstream = upstream.into();
    }

    /// A response's status.
    pub(crate) fn status(&mut self, status: u16) {
        self.draft.record.status = status;
    }

    /// The client.
    pub(crate) fn client(&mut self, workload: Option<&Workload>, identity: Option<&Identity>) {
        self.draft.name_some(Field::Source, workload.map(|workload| &workload.uid));
        self.draft.name_some(Field::SourceIdentity, identity);
    }

    /// The CONNECT's authority.
    pub(crate) fn authority(&mut self, authority: &Authority) {
        self.draft.name(Field::Authority, authority);
    }

    /// Any other text.
    pub(crate) fn name(&mut self, field: Field, text: impl Display) {
        self.draft.name(field, text);
    }

    /// Any other text, where there is one.
    pub(crate) fn name_some(&mut self, field: Field, text: Option<impl Display>) {
        self.draft.name_some(field, text);
    }

    /// Why it goes on.
    pub(crate) fn because(&mut self, reason: &Reason) {
        because(&mut self.draft, reason);
    }

    /// What is decided without a reason of core's.
    pub(crate) fn said(&mut self, code: &'static str, because: impl Display) {
        self.draft.record.reason = code;
        self.draft.name(Field::Because, because);
    }

    /// Refused.
    pub(crate) fn refused(&mut self, reason: &Reason) {
        self.draft.record.is_refused = true;
        self.because(reason);
    }

    /// It fails.
    pub(crate) fn failed(&mut self, code: &'static str, because: impl Display) {
        self.draft.record.is_refused = true;
        self.said(code, because);
    }

    /// What would have had to differ for policies at its destination.
    pub(crate) fn missed(&mut self, snapshot: &Snapshot, attrs: &InboundAttrs<'_>) {
        self.misses = nearest_misses(snapshot, attrs, MOST_MISSES).into_iter().map(told_miss).collect();
    }

    /// What would have had to differ for policies at a waypoint.
    pub(crate) fn missed_request(&mut self, snapshot: &Snapshot, attrs: &AccessAttrs<'_>) {
        self.misses = nearest_request_misses(snapshot, attrs, MOST_MISSES).into_iter().map(told_miss).collect();
    }

    /// It is told. It has never been: there is neither an id nor a time, and no port of the client's.
    pub(crate) fn told(self) -> Told {
        let mut told = Told { by: self.by, id: String::new(), misses: self.misses, ..Told::of(&self.draft) };
        if let Some(ip) = told.source.address.parse::<SocketAddr>().ok().map(|address| address.ip()) {
            told.source.address = ip.to_string();
        }
        told
    }
}
