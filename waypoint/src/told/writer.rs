//! Files of access logs. Requests never wait for a file: lines go through a queue of the file's own, and those that find no
//! room in it are dropped and counted.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use stillmesh_core::model::Str;
use stillmesh_runtime::telemetry::Queue;

use crate::record::Metrics;

/// How often it is told that a file cannot be written.
const COMPLAINT: Duration = Duration::from_secs(60);

/// One file.
#[derive(Debug)]
pub(super) struct Writer {
    /// `None`: there is no thread for it.
    queue: Option<Queue>,
    metrics: Arc<Metrics>,
}

impl Writer {
    fn open(path: &Str, metrics: &Arc<Metrics>) -> Self {
        let (path, counted) = (path.clone(), metrics.clone());
        let (mut file, mut complained) = (None, None::<Instant>);
        let write = move |lines: &[u8]| {
            into(&mut file, &path, lines).inspect_err(|error| {
                if complained.is_none_or(|last| last.elapsed() > COMPLAINT) {
                    complained = Some(Instant::now());
                    tracing::warn!(%path, %error, "an access log cannot be written: its lines are dropped");
                }
            })
        };
        let queue = Queue::start("access log", write, move |count| counted.lost_many("access_log", count));
        let queue = queue.inspect_err(|error| tracing::error!(%error, "no thread for an access log")).ok();
        Self { queue, metrics: metrics.clone() }
    }

    /// Writes a line, soon.
    pub fn write(&self, line: &str) {
        match &self.queue {
            Some(queue) => queue.push(line.as_bytes()),
            None => self.metrics.lost("access_log"),
        }
    }
}

/// All files that are written to.
#[derive(Debug)]
pub(super) struct Writers {
    metrics: Arc<Metrics>,
    open: Mutex<HashMap<Str, Weak<Writer>>>,
}

impl Writers {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, open: Mutex::default() }
    }

    /// The writer of a file; it ends with the last who holds it.
    pub fn open(&self, path: &Str) -> Arc<Writer> {
        let mut open = self.open.lock();
        open.retain(|_, writer| writer.strong_count() > 0);
        if let Some(writer) = open.get(path).and_then(Weak::upgrade) {
            return writer;
        }
        let writer = Arc::new(Writer::open(path, &self.metrics));
        open.insert(path.clone(), Arc::downgrade(&writer));
        writer
    }

    /// Waits until all that was written before is in its file, at most so long together.
    pub fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let open: Vec<_> = self.open.lock().values().filter_map(Weak::upgrade).collect();
        for queue in open.iter().filter_map(|writer| writer.queue.as_ref()) {
            queue.flush(end.saturating_duration_since(Instant::now()));
        }
    }
}

fn into(file: &mut Option<Box<dyn Write + Send>>, path: &str, lines: &[u8]) -> io::Result<()> {
    let open = match file {
        Some(open) => open,
        None => file.insert(open(path)?),
    };
    let written = open.write_all(lines).and_then(|()| open.flush());
    if written.is_err() {
        *file = None;
    }
    written
}

fn open(path: &str) -> io::Result<Box<dyn Write + Send>> {
    Ok(match path {
        "/dev/stdout" => Box::new(io::stdout()),
        "/dev/stderr" => Box::new(io::stderr()),
        path => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
    })
}
