//! Hands a batch to the kernel.

use nix::sys::socket::SockProtocol;

use super::batch::Batch;
use super::message::{begin, end, steps};
use crate::error::Error;
use crate::socket::Socket;
use crate::wire::{ACK, Message};

/// Carries the batch out in the network namespace of the calling thread: all of it, or nothing and an error that
/// names the operation that the kernel refused.
pub fn apply(batch: &Batch) -> Result<(), Error> {
    let mut steps = steps(batch)?;
    // Refusals come in the order of the messages, so an answer to the last one means that all were heard.
    let Some(last) = steps.last_mut() else { return Ok(()) };
    last.message.add_flags(ACK);
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    let mut bytes = Vec::new();
    let mut actions = Vec::with_capacity(steps.len());
    let mut put = |message: Message, action: &str| -> Result<u32, Error> {
        let sequence = socket.next_sequence();
        let problem = || "a name or value in it is too long or has a NUL in it".to_owned();
        let finished = message.finish(sequence);
        bytes.extend(finished.ok_or_else(|| Error::Invalid { action: action.to_owned(), problem: problem() })?);
        Ok(sequence)
    };
    put(begin(), WHOLE)?;
    for step in steps {
        let sequence = put(step.message, &step.action)?;
        actions.push((sequence, step.action));
    }
    put(end(), WHOLE)?;
    socket.reserve(bytes.len());
    socket.send(&bytes, WHOLE).map_err(|error| match error.errno() {
        Some(libc::EMSGSIZE) => Error::Invalid {
            action: WHOLE.to_owned(),
            problem: format!(
                "its {} bytes are more than the kernel takes at once (see net.core.wmem_max)",
                bytes.len()
            ),
        },
        _ => error,
    })?;
    loop {
        let verdict = socket.verdict(WHOLE)?;
        let named = actions.iter().find(|(sequence, _)| *sequence == verdict.sequence);
        let is_last = actions.last().is_some_and(|(sequence, _)| *sequence == verdict.sequence);
        verdict.into_result(named.map_or(WHOLE, |(_, action)| action))?;
        if is_last {
            return Ok(());
        }
    }
}

/// What is said to be done where no one operation is meant.
const WHOLE: &str = "apply the nf_tables batch";
