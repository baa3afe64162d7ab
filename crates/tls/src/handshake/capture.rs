//! Takes the traffic secrets over from rustls, which tells them to its `KeyLog` while it processes a record. They go to
//! whoever called rustls on this thread by [`Captured::during`]; where nobody did, to nobody.

use std::cell::RefCell;
use std::mem;
use std::sync::{Arc, LazyLock};

use rustls::KeyLog;
use zeroize::Zeroizing;

use crate::keys::{Suite, TrafficSecret};

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

thread_local! {
    /// Where secrets go during a call.
    static RECEIVER: RefCell<Option<Captured>> = const { RefCell::new(None) };
}

static KEY_LOG: LazyLock<Arc<dyn KeyLog>> = LazyLock::new(|| Arc::new(ToCaller));

/// The one that configurations have to have.
pub(super) fn key_log() -> Arc<dyn KeyLog> {
    Arc::clone(&KEY_LOG)
}

pub(super) fn is_ours(key_log: &Arc<dyn KeyLog>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(key_log), Arc::as_ptr(&KEY_LOG))
}

/// Logs nothing.
#[derive(Debug)]
struct ToCaller;

impl KeyLog for ToCaller {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        RECEIVER.with_borrow_mut(|receiver| {
            if let Some(captured) = receiver {
                captured.take(label, client_random, secret);
            }
        });
    }

    fn will_log(&self, label: &str) -> bool {
        label == CLIENT || label == SERVER
    }
}

/// Secrets of one connection, as far as they are known.
#[derive(Default)]
pub(super) struct Captured {
    client_random: Vec<u8>,
    client: Option<Zeroizing<Vec<u8>>>,
    server: Option<Zeroizing<Vec<u8>>>,
}

impl Captured {
    /// Calls rustls; what it tells meanwhile is kept here.
    pub(super) fn during<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let outer = RECEIVER.replace(Some(mem::take(self)));
        let _restore = Restore { captured: self, outer };
        call()
    }

    /// Both secrets. `None`: one is missing, or is not of this suite.
    pub(super) fn into_secrets(self, suite: Suite) -> Option<(TrafficSecret, TrafficSecret)> {
        Some((TrafficSecret::new(suite, self.client?)?, TrafficSecret::new(suite, self.server?)?))
    }

    /// Both are told in one call. Another client random is another connection, on whose way this one is.
    fn take(&mut self, label: &str, client_random: &[u8], secret: &[u8]) {
        if self.client_random != client_random {
            *self = Self { client_random: client_random.to_vec(), ..Self::default() };
        }
        let place = match label {
            CLIENT => &mut self.client,
            SERVER => &mut self.server,
            _ => return,
        };
        *place = Some(Zeroizing::new(secret.to_vec()));
    }
}

/// Ends a call, also one that panics.
struct Restore<'a> {
    captured: &'a mut Captured,
    outer: Option<Captured>,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        *self.captured = RECEIVER.replace(self.outer.take()).unwrap_or_default();
    }
}
