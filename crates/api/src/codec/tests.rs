//! Golden fixtures, bad input, and round trips.

mod access;
mod address;
mod authorization;
pub(crate) mod bytes;
mod destination;
mod envelope;
mod round_trip;
mod route;
