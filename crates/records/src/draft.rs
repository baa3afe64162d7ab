//! A record that is being written: its texts in one buffer, so that the lock is held for no formatting.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};
use std::ops::Range;

use crate::record::{BETWEEN, Field, Record, Recorded};

/// Longest text that is kept, bytes; of a longer one its beginning is.
pub const LONGEST_NAME: usize = 256;

/// A record with its texts, not kept yet.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its numbers.
    pub record: Record,
    buffer: String,
    ranges: [(usize, usize); Field::COUNT],
}

/// What most records' texts take, bytes.
const USUAL: usize = 640;

impl Draft {
    /// Of a record without texts.
    pub fn new(record: Record) -> Self {
        Self { record, buffer: String::with_capacity(USUAL), ranges: [(0, 0); Field::COUNT] }
    }

    /// Begins another record; what was written of the last one is gone.
    pub fn begin(&mut self, record: Record) {
        self.record = record;
        self.buffer.clear();
        self.ranges = [(0, 0); Field::COUNT];
    }

    /// Writes a text. Of one longer than [`LONGEST_NAME`] the beginning counts. The last one written of a field stays.
    pub fn name(&mut self, field: Field, text: impl Display) {
        let start = self.buffer.len();
        // It ends with an error where it is too long: what is there then is what is kept.
        let _ = write!(Short { buffer: &mut self.buffer, most: LONGEST_NAME }, "{text}");
        self.set(field, start);
    }

    /// Likewise, of a text that need not be formatted: what costs most of writing one.
    pub fn name_str(&mut self, field: Field, text: &str) {
        let start = self.buffer.len();
        self.buffer.push_str(shortened(text));
        self.set(field, start);
    }

    /// Makes what was written since `start` the field's text.
    fn set(&mut self, field: Field, start: usize) {
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

    /// The texts of each group but the path, joined; nothing of a group without texts.
    pub(crate) fn groups(&self) -> Groups {
        let mut groups = Groups { text: String::with_capacity(USUAL), ends: [0; SHARED] };
        let has_between = self.buffer.contains(BETWEEN);
        for (fields, end) in Field::GROUPS.iter().zip(&mut groups.ends) {
            let begin = groups.text.len();
            for (place, field) in fields.iter().enumerate() {
                if place > 0 {
                    groups.text.push(BETWEEN);
                }
                let text = self.text(*field);
                if has_between {
                    groups.text.extend(text.chars().map(|one| if one == BETWEEN { ' ' } else { one }));
                } else {
                    groups.text.push_str(text);
                }
            }
            if groups.text.len() - begin < fields.len() {
                groups.text.truncate(begin);
            }
            *end = groups.text.len();
        }
        groups
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
        self.ranges.get(field.index()).map_or("", |(start, end)| self.at(*start..*end))
    }
}

/// The groups before the last one, which is the path alone.
const SHARED: usize = Field::GROUPS.len() - 1;

/// The texts of a record without its path, ready to be held.
#[derive(Debug)]
pub(crate) struct Groups {
    text: String,
    ends: [usize; SHARED],
}

impl Groups {
    /// One for each group; empty where it has no text.
    pub(crate) fn texts(&self) -> [&str; SHARED] {
        let mut begin = 0;
        self.ends.map(|end| {
            let text = self.text.get(begin..end).unwrap_or_default();
            begin = end;
            text
        })
    }
}

/// A path as it is held.
pub(crate) fn held(path: &str) -> Cow<'_, str> {
    let path = shortened(path);
    if path.contains(BETWEEN) { path.replace(BETWEEN, " ").into() } else { path.into() }
}

/// As much of a text as is kept.
pub fn shortened(text: &str) -> &str {
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
