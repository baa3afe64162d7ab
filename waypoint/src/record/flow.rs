//! The bytes of open TCP connections: counted while they are open, each byte once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use stillmesh_proxy::series::{Following, Held};

use crate::path::Bytes;

/// The bytes of one connection, and what of them is counted.
#[derive(Debug)]
pub struct Flow {
    number: u64,
    bytes: Arc<Bytes>,
    /// `None`: they are not counted.
    received: Option<Following>,
    sent: Option<Following>,
}

impl Flow {
    /// Counts what has passed since it was last called; any number of callers at once count each byte once.
    fn flush(&self) {
        if let Some(received) = &self.received {
            received.follow(self.bytes.received());
        }
        if let Some(sent) = &self.sent {
            sent.follow(self.bytes.sent());
        }
    }

    /// Bytes from the client and to it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes.received(), self.bytes.sent())
    }
}

/// All open connections; as many as may be carried.
#[derive(Debug, Default)]
pub struct Flows {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Flow>>>,
}

impl Flows {
    /// A connection is open; its bytes are counted in these.
    pub fn open(&self, received: Option<Held<Counter>>, sent: Option<Held<Counter>>, bytes: Arc<Bytes>) -> Arc<Flow> {
        let flow = Arc::new(Flow {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            bytes,
            received: received.map(Following::new),
            sent: sent.map(Following::new),
        });
        self.open.lock().insert(flow.number, flow.clone());
        flow
    }

    /// It has ended.
    pub fn close(&self, flow: &Flow) {
        self.open.lock().remove(&flow.number);
        flow.flush();
    }

    /// Counts what has passed on all that are open; called before metrics are read.
    pub fn flush(&self) {
        let open: Vec<_> = self.open.lock().values().cloned().collect();
        open.iter().for_each(|flow| flow.flush());
    }
}
