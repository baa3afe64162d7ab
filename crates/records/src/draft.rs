//! A record that is being written: its texts in one buffer, so that the lock is held for no formatting.

use std::fmt::{self, Display, Write as _};
use std::ops::Range;
use std::sync::Arc;

use crate::common::Common;
use crate::flows::Row;
use crate::record::{BETWEEN, Field, Record, Recorded};

/// Longest text that is kept, bytes; of a longer one its beginning is.
pub const LONGEST_NAME: usize = 256;

/// A record with its texts, not kept yet.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its numbers.
    pub record: Record,
    /// Texts that were written before, with another record.
    common: Option<Arc<Common>>,
    buffer: String,
    ranges: [(usize, usize); Field::COUNT],
    /// Room for what is made of it, from one record to the next.
    made: Made,
}

/// A record's texts as they are held, and as they are counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    pub(crate) groups: Groups,
    pub(crate) row: Row,
}

/// What most records' texts take, bytes.
const USUAL: usize = 640;

impl Draft {
    /// Of a record without texts.
    pub fn new(record: Record) -> Self {
        let buffer = String::with_capacity(USUAL);
        Self { record, common: None, buffer, ranges: [(0, 0); Field::COUNT], made: Made::default() }
    }

    /// Begins another record; what was written of the last one is gone.
    pub fn begin(&mut self, record: Record) {
        self.record = record;
        self.common = None;
        self.buffer.clear();
        self.ranges = [(0, 0); Field::COUNT];
    }

    /// Likewise, with what it has in common with others. Of its texts only those are written that are its own
    /// ([`Field::is_common`]).
    pub fn begin_like(&mut self, record: Record, common: &Arc<Common>) {
        self.begin(record);
        (self.record.reason, self.record.remedy) = common.decided();
        self.common = Some(common.clone());
    }

    /// Writes a text. Of one longer than [`LONGEST_NAME`] the beginning counts. The last one written of a field stays.
    pub fn name(&mut self, field: Field, text: impl Display) {
        let start = self.buffer.len();
        // It ends with an error where it is too long: what is there then is what is kept.
        let _ = write!(Short { buffer: &mut self.buffer, most: LONGEST_NAME }, "{text}");
        if let Some(range) = self.ranges.get_mut(field.index()) {
            *range = (start, self.buffer.len());
        }
    }

    /// Writes a text that needs no formatting.
    pub fn name_str(&mut self, field: Field, text: &str) {
        let start = self.buffer.len();
        self.buffer.push_str(shortened(text));
        if let Some(range) = self.ranges.get_mut(field.index()) {
            *range = (start, self.buffer.len());
        }
    }

    /// Writes a text if there is one.
    pub fn name_some(&mut self, field: Field, text: Option<impl Display>) {
        if let Some(text) = text {
            self.name(field, text);
        }
    }

    /// What the recorder holds and counts of it: `holds` and `counts` say whether it does.
    pub(crate) fn made(&mut self, holds: bool, counts: bool) -> &Made {
        let mut made = std::mem::take(&mut self.made);
        if holds {
            made.groups.join(self);
        }
        if counts {
            made.row.write(self, self.common.as_deref().map(Common::row));
        }
        self.made = made;
        &self.made
    }

    fn at(&self, range: Range<usize>) -> &str {
        self.buffer.get(range).unwrap_or_default()
    }
}

impl Recorded for Draft {
    fn record(&self) -> &Record {
        &self.record
    }

    fn text(&self, field: Field) -> &str {
        if let Some(common) = self.common.as_deref().filter(|_| field.is_common()) {
            return common.text(field);
        }
        self.ranges.get(field.index()).map_or("", |(start, end)| self.at(*start..*end))
    }
}

/// The texts of a record, ready to be held.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    text: String,
    ends: [usize; Field::GROUPS.len()],
}

impl Groups {
    /// Joins the texts of each group; nothing of a group without texts.
    pub(crate) fn join(&mut self, draft: &Draft) {
        self.text.clear();
        let has_between = draft.buffer.contains(BETWEEN);
        for (group, (fields, end)) in Field::GROUPS.iter().zip(&mut self.ends).enumerate() {
            let begin = self.text.len();
            if let Some(joined) = draft.common.as_deref().and_then(|common| common.group(group)) {
                self.text.push_str(joined);
                *end = self.text.len();
                continue;
            }
            for (place, field) in fields.iter().enumerate() {
                if place > 0 {
                    self.text.push(BETWEEN);
                }
                let text = draft.text(*field);
                if has_between {
                    self.text.extend(text.chars().map(|one| if one == BETWEEN { ' ' } else { one }));
                } else {
                    self.text.push_str(text);
                }
            }
            if self.text.len() - begin < fields.len() {
                self.text.truncate(begin);
            }
            *end = self.text.len();
        }
    }

    /// One for each group; empty where it has no text.
    pub(crate) fn texts(&self) -> [&str; Field::GROUPS.len()] {
        let mut begin = 0;
        self.ends.map(|end| {
            let text = self.text.get(begin..end).unwrap_or_default();
            begin = end;
            text
        })
    }
}

/// As much of a text as is kept.
pub(crate) fn shortened(text: &str) -> &str {
    if text.len() <= LONGEST_NAME {
        return text;
    }
    let end = text.floor_char_boundary(LONGEST_NAME);
    text.get(..end).unwrap_or_default()
}

/// Takes so many bytes and no more.
struct Short<'a> {
    buffer: &'a mut String,
    most: usize,
}

impl fmt::Write for Short<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(self.most.min(text.len()));
        self.buffer.push_str(text.get(..end).unwrap_or_default());
        self.most -= end;
        if end < text.len() {
            self.most = 0;
            return Err(fmt::Error);
        }
        Ok(())
    }
}
