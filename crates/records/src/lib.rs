//! What was decided about connections and requests, kept for whoever asks why.
//!
//! A proxy writes one [`Record`] per connection or request, when it has ended: a [`Draft`] is filled outside of the lock and
//! put into the [`Recorder`]. What records have alone has a fixed size; what they share is held once for all that have it: texts, those that come together
//! again and again as one ([`Names`]), what is of one CONNECT, and what is of one kind of record. All of it stays within one budget of bytes: the oldest records leave.
//!
//! [`Query`] is what is asked at the admin port, [`Told`] what is answered; the command reads the same types.
//!
//! No I/O, no clock, no tasks: time is passed in.

mod connects;
mod counted;
mod draft;
pub mod flows;
mod held;
mod query;
mod record;
mod recorder;
mod ring;
mod shape;
mod told;

pub use counted::Handle;
pub use draft::{Draft, LONGEST_NAME, shortened};
pub use flows::{DEFAULT_FLOWS, Flow, FlowsAnswer, Moment, SMALLEST_FLOWS, short};
pub use held::{Held, Names};
pub use query::{MOST_ANSWERS, Query, QueryError, Term, id};
pub use record::{Address, Field, Hop, Kept, Record, Recorded};
pub use recorder::{DEFAULT_BUDGET, Recorder, SMALLEST_BUDGET, pause};
pub use ring::Ring;
pub use shape::Shape;
pub use told::{Answer, Destination, Miss, Source, Told};

#[cfg(test)]
mod tests;
