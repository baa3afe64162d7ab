//! Whether a request is sent again, and after how long (contract 7.4, «Default retry»; Envoy's `retry_on`).
//!
//! Two things send a request again. What no endpoint has looked at goes elsewhere whatever a rule says: that cannot do harm,
//! and costs no more than [`MOST_REPICKS`] tries. All else is a retry, and happens where the rule asks for it.

use std::time::Duration;

use crate::model::http::{Retry, RetryOn};

/// How often a request that no endpoint has looked at is offered again without being asked to.
pub const MOST_REPICKS: u32 = 2;

/// How one try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No connection to the endpoint came about.
    NotConnected,
    /// The connection was going away, and said that the request was not looked at.
    Closing,
    /// A kept connection ended as the request came, without a word about it: an idempotent request was not looked at, as far
    /// as may be believed (RFC 9112 section 9.3.1).
    Stale,
    /// The endpoint refused the stream without looking at it (RFC 9113 section 8.7).
    Refused,
    /// The connection or stream ended before a response began.
    Reset,
    /// It took longer than one try may.
    TimedOut,
    /// There is a response.
    Answered {
        /// Its status.
        status: u16,
        /// The gRPC status among its headers: of a response that has nothing else (gRPC over HTTP/2, «Trailers-Only»).
        grpc: Option<u16>,
    },
}

/// What is asked of [`again`].
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The route's rule; `None`: the default.
    pub rule: Option<&'a Retry>,
    /// How the last try ended.
    pub outcome: Outcome,
    /// Whether doing the request twice is like doing it once (RFC 9110 section 9.2.2).
    pub is_idempotent: bool,
    /// Whether there is an endpoint that was not tried.
    pub has_other: bool,
    /// Tries so far that were [`Again::AtOnce`].
    pub repicked: u32,
    /// Tries so far that were [`Again::After`].
    pub retried: u32,
    /// Uniform random bits.
    pub entropy: u64,
}

/// Whether there is another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// At once: no endpoint has looked at the request.
    AtOnce,
    /// After this time; counts against the budget of retries.
    After(Duration),
    /// The rule asks for another one, and all that it allows were made.
    Exhausted,
    /// Nobody asks for it.
    No,
}

/// Says whether a request is sent again. That its body can be sent again is the caller's to know.
pub fn again(ask: &Ask<'_>) -> Again {
    let is_free = match ask.outcome {
        Outcome::NotConnected => ask.has_other,
        Outcome::Closing => true,
        Outcome::Stale => ask.is_idempotent,
        Outcome::Refused | Outcome::Reset | Outcome::TimedOut | Outcome::Answered { .. } => false,
    };
    if is_free && ask.repicked < MOST_REPICKS {
        return Again::AtOnce;
    }
    let attempts = ask.rule.map_or(DEFAULT_ATTEMPTS, |rule| rule.attempts);
    if attempts == 0 || !is_asked_for(ask) {
        return Again::No;
    }
    if ask.retried >= attempts {
        return Again::Exhausted;
    }
    let backoff = ask.rule.and_then(|rule| rule.backoff);
    Again::After(wait(backoff, ask.retried.saturating_add(1), ask.entropy))
}

/// How long one try may take, by a rule.
pub fn per_try(rule: Option<&Retry>) -> Option<Duration> {
    rule.and_then(|rule| rule.per_try)
}

const DEFAULT_ATTEMPTS: u32 = 2;

/// Statuses of gRPC: CANCELLED and UNAVAILABLE.
const DEFAULT_ON: [RetryOn; 5] =
    [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Grpc(1), RetryOn::Grpc(14), RetryOn::Status(503)];

fn is_asked_for(ask: &Ask<'_>) -> bool {
    match ask.rule {
        Some(rule) => rule.on.iter().any(|on| holds(*on, ask.outcome)),
        // Nobody has said that a request may be done twice: one that an endpoint may have done is left alone, unless it is
        // idempotent. A gRPC status without a message is the application's word that it has not.
        None => DEFAULT_ON
            .iter()
            .any(|on| holds(*on, ask.outcome) && (ask.is_idempotent || !matches!(on, RetryOn::Status(_)))),
    }
}

/// Whether a try ended as described.
fn holds(on: RetryOn, outcome: Outcome) -> bool {
    let is_unanswered = !matches!(outcome, Outcome::Answered { .. });
    let answered = |wanted: &dyn Fn(u16) -> bool| matches!(outcome, Outcome::Answered { status, .. } if wanted(status));
    match on {
        RetryOn::ConnectFailure => outcome == Outcome::NotConnected,
        RetryOn::RefusedStream => outcome == Outcome::Refused,
        RetryOn::Reset => is_unanswered,
        RetryOn::PerTryTimeout => outcome == Outcome::TimedOut,
        RetryOn::GatewayError => is_unanswered || answered(&|status| matches!(status, 502..=504)),
        RetryOn::ServerError => is_unanswered || answered(&|status| (500..600).contains(&status)),
        RetryOn::Conflict => answered(&|status| status == 409),
        RetryOn::Status(wanted) => answered(&|status| status == wanted),
        RetryOn::Grpc(wanted) => matches!(outcome, Outcome::Answered { grpc: Some(status), .. } if status == wanted),
    }
}

/// The wait before the retry of this number, from 1. It doubles, up to ten times the first. A shortest wait that was asked for
/// is kept, and half of it added at random; else all of it is random, as with Envoy, so that who failed together does not
/// come back together.
fn wait(shortest: Option<Duration>, number: u32, entropy: u64) -> Duration {
    let doubled = 1u32.checked_shl(number.saturating_sub(1).min(8)).unwrap_or(u32::MAX);
    let grown = |base: Duration, times: u32| base.saturating_mul(times).min(base.saturating_mul(MOST_GROWTH));
    match shortest {
        Some(base) => {
            let least = grown(base, doubled);
            least.saturating_add(part(least / 2, entropy))
        }
        None => part(grown(DEFAULT_BACKOFF, doubled.saturating_mul(2).saturating_sub(1)), entropy),
    }
}

const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
const MOST_GROWTH: u32 = 10;

/// A random part of a time.
fn part(of: Duration, entropy: u64) -> Duration {
    let nanos = u64::try_from(of.as_nanos()).unwrap_or(u64::MAX);
    let part = (u128::from(nanos) * u128::from(entropy)) >> 64;
    Duration::from_nanos(u64::try_from(part).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
