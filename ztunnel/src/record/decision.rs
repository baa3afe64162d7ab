//! What is kept of a connection for whoever asks why: a [`Draft`] of what is known of it, open or over.

use std::time::Duration;

use stillmesh_core::explain::Reason;
use stillmesh_proxy::decisions::{because, microseconds, now_us};
use stillmesh_records::{Draft, Field, Hop, Record, Recorder};

use super::{Direction, Early, Ending, Facts, Flag, Live, Protocol};

/// What a record has beside the facts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Story<'a> {
    /// Why, where that was decided.
    pub because: Option<&'a Reason>,
    /// What went wrong.
    pub error: Option<&'a str>,
    /// Its code and what to do about it.
    pub failure: Option<(&'static str, &'static str)>,
    /// For the metrics.
    pub flag: Flag,
    /// How often it was tried anew.
    pub retries: u16,
    /// How long deciding took, microseconds.
    pub decide_us: u32,
    /// How long it took until bytes might flow, microseconds; 0: they never might.
    pub open_us: u32,
    /// How long it lasted.
    pub total: Duration,
    /// Bytes from the client and from the server.
    pub bytes: (u64, u64),
}

/// A connection as it is kept.
pub(super) fn draft(facts: &Facts, story: &Story<'_>) -> Draft {
    let was_refused = story.because.is_some_and(Reason::is_refusal);
    let record = Record {
        at_us: now_us(),
        id: facts.id.0,
        hop: hop(facts.direction),
        is_refused: story.failure.is_some() && (story.open_us == 0 || was_refused),
        is_tunnelled: facts.protocol == Protocol::Hbone,
        is_direct: facts.protocol == Protocol::Direct,
        retries: story.retries,
        source: facts.source_addr.into(),
        original: facts.original.into(),
        upstream: facts.upstream.unwrap_or(facts.destination_addr).into(),
        decide_us: story.decide_us,
        open_us: story.open_us,
        total_us: microseconds(story.total),
        received: story.bytes.0,
        sent: story.bytes.1,
        ..Record::default()
    };
    let mut draft = Draft::new(record);
    draft.name_some(Field::Source, facts.source.as_ref().map(|workload| &workload.uid));
    draft.name_some(Field::SourceIdentity, facts.source_identity());
    draft.name_some(Field::Service, facts.service.as_ref().map(|service| &service.key));
    draft.name_some(Field::Endpoint, facts.destination.as_ref().map(|workload| &workload.uid));
    draft.name_some(Field::Authority, facts.authority.as_ref());
    if let Some(reason) = story.because {
        because(&mut draft, reason);
    }
    ended(&mut draft, story.flag, story.error, story.failure.filter(|_| !was_refused));
    draft
}

/// An open connection as it is now.
pub(super) fn live(live: &Live) -> Draft {
    let told = live.told.lock();
    let story = Story {
        because: told.because.as_ref(),
        error: None,
        failure: None,
        flag: Flag::None,
        retries: told.retries,
        decide_us: told.decide_us,
        open_us: told.open_us,
        total: live.lasted(),
        bytes: live.bytes(),
    };
    draft(&live.facts, &story)
}

/// Keeps what ended before enough was known for a record.
pub(super) fn keep_early(recorder: &Recorder, early: &Early<'_>, error: &impl Ending) {
    if !recorder.is_on() {
        return;
    }
    let record = Record {
        at_us: now_us(),
        id: rand::random(),
        hop: hop(early.direction),
        is_refused: true,
        is_tunnelled: early.protocol == Protocol::Hbone,
        source: early.source.into(),
        original: early.destination.into(),
        ..Record::default()
    };
    let mut draft = Draft::new(record);
    let end = match early.direction {
        Direction::Outbound => Field::Source,
        Direction::Inbound => Field::Endpoint,
    };
    draft.name(end, format_args!("{}/{}", early.pod.info.namespace, early.pod.info.name));
    if let Some(reason) = error.reason() {
        because(&mut draft, reason);
    }
    ended(&mut draft, error.flag(), Some(&error.to_string()), Some((error.code(), error.remedy())));
    recorder.put(&draft);
}

fn ended(draft: &mut Draft, flag: Flag, error: Option<&str>, failure: Option<(&'static str, &'static str)>) {
    draft.name(Field::Flags, flag.as_str());
    draft.name_some(Field::Error, error);
    if let Some((code, remedy)) = failure {
        draft.record.reason = code;
        draft.record.remedy = remedy;
        // What was decided before is not why it failed.
        draft.name(Field::Because, "");
        draft.name(Field::Object, "");
    }
}

fn hop(direction: Direction) -> Hop {
    match direction {
        Direction::Outbound => Hop::Outbound,
        Direction::Inbound => Hop::Inbound,
    }
}
