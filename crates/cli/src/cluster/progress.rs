//! What a long command says while it works: each step once it is done, and what is waited for whenever that changes.

use std::time::{Duration, Instant};

use crate::output::{Mark, Marks, line, note};

/// Time between two looks at what is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(500);

/// Where it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Standard output.
    Out,
    /// Standard error: standard output is for a report.
    Err,
}

/// Says it.
#[derive(Debug)]
pub(crate) struct Teller {
    channel: Channel,
    marks: Marks,
    last: String,
}

impl Teller {
    /// For a command.
    pub(crate) fn new(channel: Channel) -> Self {
        let marks = if channel == Channel::Out { Marks::out() } else { Marks::err() };
        Self { channel, marks, last: String::new() }
    }

    /// A fact.
    pub(crate) fn fact(&mut self, mark: Mark, text: &str) {
        let text = format!("{} {text}", self.marks.show(mark));
        self.say(&text);
        self.last.clear();
    }

    /// What is waited for; said when it is another thing than before.
    pub(crate) fn waiting(&mut self, what: &str, details: &[String]) {
        let mut text = format!("  waiting: {what}");
        for detail in details.iter().take(DETAILS) {
            text.push_str(&format!("\n    {detail}"));
        }
        if details.len() > DETAILS {
            text.push_str(&format!("\n    and {} more", details.len() - DETAILS));
        }
        if text != self.last {
            self.say(&text);
            self.last = text;
        }
    }

    /// A line as it is.
    pub(crate) fn say(&self, text: &str) {
        match self.channel {
            Channel::Out => line(text),
            Channel::Err => note(text),
        }
    }
}

/// So many details are said at a time.
const DETAILS: usize = 10;

/// How long something took, for people.
pub(crate) fn took(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}
