//! Who spoke to whom, hour by hour: what is recorded, added up. A row is a client, what it dialled, a port, a method, a path's
//! template and a verdict; it has a count and when it was seen first and last. A day is kept, within a budget of bytes.
//!
//! Each hour may take an equal share of the budget; what comes for a row that has no room is counted in the hour's overflow rows,
//! one for what was carried and one for what was refused, so that no count is lost.

mod template;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use foldhash::quality::RandomState;
use serde::{Deserialize, Serialize};
pub use template::template;

use crate::record::{Field, Hop, Recorded};

/// How many hours are kept, the one that is not over included.
pub const HOURS: u64 = 24;
/// What the flows of one process may take where nothing else is said, bytes.
pub const DEFAULT_FLOWS: usize = 8 << 20;
/// The smallest budget that is of use, bytes.
pub const SMALLEST_FLOWS: usize = 256 << 10;

const HOUR_US: u64 = 3_600_000_000;
/// What a row takes beside its texts, bytes: counts, table, allocation.
const ROW_BYTES: usize = 128;
const FIELDS: usize = 11;
/// What most rows' texts take, bytes.
const USUAL_KEY: usize = 192;
/// What `{id}`s may add to a path's length, usually.
const PLACEHOLDERS: usize = 8;
const SEPARATOR: char = '\u{1f}';
/// The version of what is on disk.
const VERSION: u32 = 1;

/// One row as it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Flow {
    /// When its hour began, seconds since 1970.
    pub hour: u64,
    /// Where it was seen.
    pub hop: Hop,
    /// The client: its identity, else its workload by its address (`namespace/name`), else its address.
    pub source: String,
    /// Whether it came in clear text, so that nothing proves who the client is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub clear: bool,
    /// The service that was meant: `namespace/hostname`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Who served it: `namespace/name`; at a client's and at waypoints only where no service was meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// The port: that was dialled; at the server's, the application's.
    pub port: u16,
    /// A request's method.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// A request's path, ids and long tokens replaced ([`template()`]).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Whether it was refused, or its way was never open.
    pub refused: bool,
    /// Why, where it was refused.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The policy that refused it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// How many connections or requests.
    pub count: u64,
    /// How many of them are open.
    #[serde(skip_serializing_if = "is_zero")]
    pub open: u64,
    /// When the first one ended, microseconds since 1970.
    pub first_us: u64,
    /// When the last one ended, or was seen open.
    pub last_us: u64,
    /// Whether this stands for all rows that there was no room for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub overflow: bool,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What the admin port answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FlowsAnswer {
    /// The time there: microseconds since 1970.
    pub now_us: u64,
    /// Whether flows are kept at all.
    pub is_on: bool,
    /// Since when, microseconds since 1970: a day ago, or when counting began.
    pub since_us: u64,
    /// What they take, bytes.
    pub bytes: usize,
    /// Rows, the newest hour first.
    pub flows: Vec<Flow>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    count: u64,
    first_us: u64,
    last_us: u64,
}

impl Counts {
    fn add(&mut self, at_us: u64) {
        if self.count == 0 {
            self.first_us = at_us;
        }
        self.count = self.count.saturating_add(1);
        self.first_us = self.first_us.min(at_us);
        self.last_us = self.last_us.max(at_us);
    }
}

#[derive(Clone, Debug, Default)]
struct Hour {
    /// Where each row's counts are.
    places: HashMap<Arc<str>, usize, RandomState>,
    rows: Vec<(Arc<str>, Counts)>,
    /// Carried, refused.
    overflow: [Counts; 2],
    bytes: usize,
}

impl Hour {
    fn rows(&self) -> impl Iterator<Item = (&str, Counts)> {
        self.rows.iter().map(|(key, counts)| (&**key, *counts))
    }

    /// Adds a row that is not there.
    fn add(&mut self, key: &str, counts: Counts) -> Arc<str> {
        let key: Arc<str> = key.into();
        self.bytes += key.len() + ROW_BYTES;
        self.places.insert(key.clone(), self.rows.len());
        self.rows.push((key.clone(), counts));
        key
    }
}

/// Where a row is, for who counts it again and again.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    hour: u64,
    index: usize,
    key: Arc<str>,
}

impl Place {
    /// Whether it is one of that time.
    pub(crate) fn is_of(&self, at_us: u64) -> bool {
        self.hour == at_us / HOUR_US
    }
}

/// The rows of a day.
#[derive(Clone, Debug)]
pub struct Flows {
    hours: BTreeMap<u64, Arc<Hour>>,
    hour_bytes: usize,
    since_us: u64,
    /// Counts up with each change.
    changes: u64,
}

/// The row that one is counted in: made before any lock is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    key: String,
    at_us: u64,
    is_refused: bool,
}

/// What is on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    since_us: u64,
    hours: Vec<SavedHour>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedHour {
    hour: u64,
    overflow: [Counts; 2],
    rows: Vec<(String, Counts)>,
}

/// What flows are at a moment: to be written where no lock is held.
#[derive(Clone, Debug)]
pub struct Moment {
    hours: BTreeMap<u64, Arc<Hour>>,
    since_us: u64,
    /// Which change it is.
    pub changes: u64,
}

/// Rows that differ in their path only.
#[derive(Clone, Debug)]
pub(crate) struct RowShape {
    /// The key without the path, and where that belongs.
    key: String,
    path_at: usize,
    is_refused: bool,
}

impl Row {
    /// The row of a connection or request.
    pub fn of(one: &impl Recorded) -> Self {
        RowShape::of(one).row(one.text(Field::Path), one.record().at_us)
    }
}

impl RowShape {
    /// The row with this path.
    pub(crate) fn row(&self, path: &str, at_us: u64) -> Row {
        let (before, after) = self.key.split_at_checked(self.path_at).unwrap_or_default();
        let mut key = String::with_capacity(self.key.len() + path.len() + PLACEHOLDERS);
        key.push_str(before);
        template::write(&mut key, path);
        key.push_str(after);
        Row { key, at_us, is_refused: self.is_refused }
    }

    /// That of a connection or request.
    pub(crate) fn of(one: &impl Recorded) -> Self {
        let record = one.record();
        let mut key = String::with_capacity(USUAL_KEY);
        key.push(match record.hop {
            Hop::Outbound => 'o',
            Hop::Connection => 'c',
            Hop::Request => 'r',
            Hop::Inbound => 'i',
        });
        key.push(SEPARATOR);
        match (one.text(Field::SourceIdentity), short(one.text(Field::Source))) {
            ("", "") => {
                let _ = record.source.get().map(|source| write!(key, "{}", source.ip()));
            }
            ("", workload) => key.push_str(workload),
            (identity, _) => key.push_str(identity),
        }
        let is_clear = record.hop == Hop::Inbound && !record.is_tunnelled && !record.is_direct;
        let service = one.text(Field::Service);
        let has_endpoint = record.hop == Hop::Inbound || service.is_empty();
        let port = match record.hop {
            Hop::Outbound => record.original.get().map(|address| address.port()),
            Hop::Inbound => record.upstream.get().or(record.original.get()).map(|address| address.port()),
            Hop::Connection | Hop::Request => {
                one.text(Field::Authority).rsplit_once(':').and_then(|(_, port)| port.parse().ok())
            }
        };
        let (reason, object) = if record.is_refused { (record.reason, one.text(Field::Object)) } else { ("", "") };
        let flag = |is: bool| if is { "1" } else { "0" };
        let mut part = |text: &str| {
            key.push(SEPARATOR);
            key.push_str(text);
        };
        part(flag(is_clear));
        part(service);
        part(if has_endpoint { short(one.text(Field::Endpoint)) } else { "" });
        part("");
        let _ = write!(key, "{}", port.unwrap_or_default());
        for text in [one.text(Field::Method), ""] {
            key.push(SEPARATOR);
            key.push_str(text);
        }
        let path_at = key.len();
        for text in [flag(record.is_refused), reason, object] {
            key.push(SEPARATOR);
            key.push_str(text);
        }
        Self { key, path_at, is_refused: record.is_refused }
    }
}

impl Flows {
    /// None yet, of at most `budget` bytes. `now_us` is the time.
    pub fn new(budget: usize, now_us: u64) -> Self {
        let hours = usize::try_from(HOURS).unwrap_or(1);
        Self { hours: BTreeMap::new(), hour_bytes: budget.max(SMALLEST_FLOWS) / hours, since_us: now_us, changes: 0 }
    }

    /// Counts one that has ended; says where, unless there was no room for its row.
    pub(crate) fn count(&mut self, row: &Row) -> Option<Place> {
        let Row { key, at_us, is_refused } = row;
        let hour = at_us / HOUR_US;
        self.forget(hour);
        self.changes += 1;
        let of_hour = Arc::make_mut(self.hours.entry(hour).or_default());
        let known = of_hour.places.get_key_value(key.as_str()).map(|(key, index)| (key.clone(), *index));
        let (key, index) = match known {
            Some(known) => known,
            None if of_hour.bytes + key.len() + ROW_BYTES <= self.hour_bytes => {
                (of_hour.add(key, Counts::default()), of_hour.rows.len() - 1)
            }
            None => {
                if let Some(counts) = of_hour.overflow.get_mut(usize::from(*is_refused)) {
                    counts.add(*at_us);
                }
                return None;
            }
        };
        if let Some((_, counts)) = of_hour.rows.get_mut(index) {
            counts.add(*at_us);
        }
        Some(Place { hour, index, key })
    }

    /// Counts one whose row is known. False: it is not there.
    pub(crate) fn count_at(&mut self, place: &Place, at_us: u64) -> bool {
        let Some(of_hour) = self.hours.get_mut(&place.hour) else { return false };
        let known = Arc::make_mut(of_hour).rows.get_mut(place.index);
        let Some((_, counts)) = known.filter(|(key, _)| Arc::ptr_eq(key, &place.key)) else { return false };
        counts.add(at_us);
        self.changes += 1;
        true
    }

    fn forget(&mut self, now: u64) {
        while let Some(oldest) = self.hours.first_entry().filter(|oldest| oldest.key().saturating_add(HOURS) <= now) {
            oldest.remove();
            self.since_us = self.since_us.max((now + 1 - HOURS) * HOUR_US);
        }
    }

    /// What it is now.
    pub fn moment(&self) -> Moment {
        Moment { hours: self.hours.clone(), since_us: self.since_us, changes: self.changes }
    }

    /// Adds what was saved before: rows of the last day, within the budget.
    ///
    /// Errors: it is not what [`Moment::save`] writes.
    pub fn restore(&mut self, bytes: &[u8], now_us: u64) -> Result<(), serde_json::Error> {
        let saved: Saved = serde_json::from_slice(bytes)?;
        let now = now_us / HOUR_US;
        if saved.version != VERSION {
            return Ok(());
        }
        // A clock that was ahead leaves hours that are not there yet.
        let is_kept = |hour: u64| hour <= now && hour.saturating_add(HOURS) > now;
        for saved in saved.hours.into_iter().filter(|saved| is_kept(saved.hour)) {
            let mut hour = Hour { overflow: saved.overflow, ..Hour::default() };
            for (key, counts) in saved.rows {
                let has_room = hour.bytes + key.len() + ROW_BYTES <= self.hour_bytes;
                let is_new = !hour.places.contains_key(key.as_str());
                if key.matches(SEPARATOR).count() + 1 == FIELDS && has_room && is_new {
                    hour.add(&key, counts);
                }
            }
            self.hours.entry(saved.hour).or_insert_with(|| Arc::new(hour));
        }
        self.since_us = self.since_us.min(saved.since_us.max(now_us.saturating_sub(HOURS * HOUR_US)));
        Ok(())
    }
}

impl Moment {
    /// As it is kept on disk.
    ///
    /// Errors: never, as far as is known; the writer says.
    pub fn save(&self) -> Result<Vec<u8>, serde_json::Error> {
        let hours = self.hours.iter().map(|(hour, of_hour)| SavedHour {
            hour: *hour,
            overflow: of_hour.overflow,
            rows: of_hour.rows().map(|(key, counts)| (key.to_owned(), counts)).collect(),
        });
        serde_json::to_vec(&Saved { version: VERSION, since_us: self.since_us, hours: hours.collect() })
    }

    /// As it is told: rows that were seen since `since_us`, the newest hour first, then those with the highest counts. `live` is
    /// what is open.
    pub fn tell(&self, since_us: u64, live: &[impl Recorded], now_us: u64) -> FlowsAnswer {
        let mut now = Flows { hours: self.hours.clone(), hour_bytes: usize::MAX, since_us: self.since_us, changes: 0 };
        let mut open: HashMap<String, u64> = HashMap::new();
        for one in live {
            let row = Row::of(one);
            now.count(&row);
            *open.entry(row.key).or_default() += 1;
        }
        let bytes = self.hours.values().map(|hour| hour.bytes).sum();
        let mut flows = Vec::new();
        for (hour, of_hour) in now.hours.iter().rev() {
            let is_now = *hour == now_us / HOUR_US;
            let mut rows: Vec<Flow> = of_hour
                .rows()
                .filter(|(_, counts)| counts.last_us >= since_us)
                .map(|(key, counts)| {
                    let open = if is_now { open.get(key).copied().unwrap_or_default() } else { 0 };
                    Flow { open, ..read_row(key, *hour, counts) }
                })
                .collect();
            rows.sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.source.cmp(&other.source)));
            flows.extend(rows);
            let over = [false, true].into_iter().zip(of_hour.overflow).filter(|(_, counts)| counts.count > 0);
            flows.extend(over.map(|(refused, counts)| Flow { refused, overflow: true, ..of_counts(*hour, counts) }));
        }
        FlowsAnswer { now_us, is_on: true, since_us: self.since_us, bytes, flows }
    }
}

/// Namespace and name of a workload, of its uid.
pub fn short(uid: &str) -> &str {
    let start = uid.rmatch_indices('/').nth(1).map_or(0, |(place, _)| place + 1);
    uid.get(start..).unwrap_or(uid)
}

fn of_counts(hour: u64, counts: Counts) -> Flow {
    let Counts { count, first_us, last_us } = counts;
    Flow { hour: hour * 3600, count, first_us, last_us, ..Flow::default() }
}

fn read_row(key: &str, hour: u64, counts: Counts) -> Flow {
    let mut parts = key.split(SEPARATOR);
    let mut part = || parts.next().unwrap_or_default().to_owned();
    Flow {
        hop: match part().as_str() {
            "c" => Hop::Connection,
            "r" => Hop::Request,
            "i" => Hop::Inbound,
            _ => Hop::Outbound,
        },
        source: part(),
        clear: part() == "1",
        service: part(),
        endpoint: part(),
        port: part().parse().unwrap_or_default(),
        method: part(),
        path: part(),
        refused: part() == "1",
        reason: part(),
        object: part(),
        ..of_counts(hour, counts)
    }
}

#[cfg(test)]
mod tests;
