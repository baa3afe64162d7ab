//! The validating webhook: says what is wrong with a policy before it is stored, in the words of the parser and the
//! engine that would have to use it.
//!
//! It only ever looks: no side effects, nothing but the objects that it is asked about. Whatever it cannot decide it
//! lets pass, and what is in the cluster already can always be deleted and released.

mod register;
mod review;
mod server;

pub(crate) use register::Registration;
pub(crate) use server::Webhook;
