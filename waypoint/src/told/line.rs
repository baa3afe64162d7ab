//! One line of an access log.

use stillmesh_core::model::Str;
use stillmesh_core::observe::{Facts, Format, Layout, Wanted, json};

/// How a line is written.
#[derive(Debug)]
pub(super) enum Line {
    Text(Format),
    Json(Vec<(Str, Format)>),
}

impl Line {
    /// Of a layout; what of it is not known is written as if it were absent, and was told when it was configured.
    pub fn read(layout: &Layout) -> Self {
        match layout {
            Layout::Text(text) => Self::Text(Format::read(text).0),
            Layout::Json(keys) => {
                let mut keys: Vec<_> = keys.iter().map(|(key, format)| (key.clone(), Format::read(format).0)).collect();
                // As Envoy does it.
                keys.sort_by(|(one, _), (other, _)| one.cmp(other));
                Self::Json(keys)
            }
        }
    }

    pub fn write(&self, facts: &Facts<'_>) -> String {
        match self {
            Self::Text(format) => format.text(facts),
            Self::Json(keys) => json(keys, facts),
        }
    }

    pub fn wants(&self, wanted: &mut Wanted) {
        match self {
            Self::Text(format) => format.wants(wanted),
            Self::Json(keys) => keys.iter().for_each(|(_, format)| format.wants(wanted)),
        }
    }
}
