//! Looks after one connection: asks whether the peer is there, and says when it has to drain.

use std::time::{Duration, SystemTime};

use stillmesh_identity::TlsError;
use tokio::time::{Instant, sleep, timeout};

use crate::Limits;
use crate::carrier::Carrier;

/// What whoever looks after a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Time to look around; the peer is there.
    Present,
    /// The peer did not answer in time.
    Lost,
}

/// The PINGs of a connection.
#[derive(Clone, Copy)]
pub(crate) struct Pulse {
    every: Duration,
    patience: Duration,
}

impl Pulse {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { every: limits.ping_every, patience: limits.ping_patience }
    }

    /// Waits until the next PING is due, and for its answer.
    pub(crate) async fn beat(self, carrier: &Carrier) -> Beat {
        sleep(self.every).await;
        let before = carrier.ping();
        match timeout(self.patience, carrier.answered(before)).await {
            Ok(()) => Beat::Present,
            Err(_) => Beat::Lost,
        }
    }
}

/// The part of a certificate's remaining life after which its connections drain.
const DRAIN_AFTER: f64 = 0.75;

/// No certificate lives longer in the eyes of a timer.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// When a connection made with these certificates stops to take new streams: before the first of them expires. Streams that
/// are open go on. An error when one has expired.
pub(crate) fn drain_at(expiries: impl IntoIterator<Item = SystemTime>, now: SystemTime) -> Result<Instant, TlsError> {
    let left = expiries.into_iter().map(|expiry| expiry.duration_since(now).unwrap_or_default());
    let left = left.min().unwrap_or(LONGEST).min(LONGEST);
    if left.is_zero() {
        return Err(TlsError::Expired);
    }
    Ok(Instant::now() + left.mul_f64(DRAIN_AFTER))
}
