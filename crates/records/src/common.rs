//! What many records have in common: written once, and then neither formatted nor joined for each of them.

use crate::draft::{Draft, Groups};
use crate::flows::Row;
use crate::record::{Field, split};

/// All of a record's texts but its own ([`Field::is_common`]), and why it was decided so: the same for all requests of one client's
/// connection that one rule takes to one endpoint.
#[derive(Debug)]
pub struct Common {
    decided: (&'static str, &'static str),
    /// As they are held.
    groups: [Box<str>; Field::COMMON],
    /// Of the row that it is counted in what comes before the method.
    row: Box<str>,
}

impl Common {
    /// Of a draft in which all of it is written.
    pub fn of(draft: &Draft) -> Self {
        let mut joined = Groups::default();
        joined.join(draft);
        let texts = joined.texts();
        let groups = std::array::from_fn(|group| texts.get(group).copied().unwrap_or_default().into());
        Self { decided: (draft.record.reason, draft.record.remedy), groups, row: Row::beginning(draft).into() }
    }

    /// The reason's code, and what to do about it.
    pub(crate) fn decided(&self) -> (&'static str, &'static str) {
        self.decided
    }

    /// A group's texts, joined; `None` of those that are a record's own.
    pub(crate) fn group(&self, group: usize) -> Option<&str> {
        self.groups.get(group).map(|joined| &**joined)
    }

    pub(crate) fn row(&self) -> &str {
        &self.row
    }

    pub(crate) fn text(&self, field: Field) -> &str {
        let (group, place) = field.place();
        split(self.group(group).unwrap_or_default(), place)
    }
}
