//! What was decided about connections and requests, kept for whoever asks why.
//!
//! A proxy writes one [`Record`] per connection or request, when it has ended: a [`Draft`] is filled outside of the lock and
//! put into the [`Recorder`]. Records have a fixed size; their texts are in a table of [`Names`]: those that come together again
//! and again as one text, each text once for all records that have it. Both together stay within one budget of bytes: the oldest records leave.
//!
//! [`Query`] is what is asked at the admin port, [`Told`] what is answered; the command reads the same types.
//!
//! No I/O, no clock, no tasks: time is passed in.

mod draft;
pub mod flows;
mod names;
mod query;
mod record;
mod recorder;
mod ring;
mod shape;
mod told;

pub use draft::{Draft, LONGEST_NAME, shortened};
pub use flows::{DEFAULT_FLOWS, Flow, FlowsAnswer, Moment, SMALLEST_FLOWS, short};
pub use names::{Handle, Names};
pub use query::{MOST_ANSWERS, Query, QueryError, Term, id};
pub use record::{Address, Field, Hop, Kept, Record, Recorded};
pub use recorder::{DEFAULT_BUDGET, Recorder, SMALLEST_BUDGET, pause};
pub use ring::Ring;
pub use shape::Shape;
pub use told::{Answer, Destination, Miss, Source, Told};

#[cfg(test)]
mod tests;
