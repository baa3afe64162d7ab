//! Files of access logs. Requests never wait for a file: lines go through a queue to a thread of the file's own, and those
//! that find it full are dropped and counted.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use stillmesh_core::model::Str;

use crate::record::Metrics;

/// Lines that wait for one file.
const WAITING: usize = 4096;

/// How often it is told that a file cannot be written.
const COMPLAINT: Duration = Duration::from_secs(60);

enum Message {
    Line(String),
    /// What came before is written; say so.
    Flush(SyncSender<()>),
}

/// One file.
#[derive(Debug)]
pub(super) struct Writer {
    queue: SyncSender<Message>,
    metrics: Arc<Metrics>,
}

impl Writer {
    fn open(path: &Str, metrics: &Arc<Metrics>) -> Self {
        let (queue, lines) = sync_channel(WAITING);
        let (path, counted) = (path.clone(), metrics.clone());
        let started =
            std::thread::Builder::new().name("access log".to_owned()).spawn(move || run(&path, &lines, &counted));
        if let Err(error) = started {
            // Without it every line is dropped, and counted.
            tracing::error!(%error, "no thread for an access log");
        }
        Self { queue, metrics: metrics.clone() }
    }

    /// Writes a line, soon.
    pub fn write(&self, line: String) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.queue.try_send(Message::Line(line)) {
            self.metrics.lost("access_log");
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
        for writer in open {
            let (done, wait) = sync_channel(1);
            if writer.queue.try_send(Message::Flush(done)).is_ok() {
                // Who is not done by then is not waited for.
                let _ = wait.recv_timeout(end.saturating_duration_since(Instant::now()));
            }
        }
    }
}

fn run(path: &str, lines: &Receiver<Message>, metrics: &Metrics) {
    let mut file: Option<Box<dyn Write>> = None;
    let mut complained: Option<Instant> = None;
    while let Ok(message) = lines.recv() {
        let written = match message {
            Message::Line(line) => into(&mut file, path, line.as_bytes()).inspect_err(|_| metrics.lost("access_log")),
            Message::Flush(done) => {
                // Nobody may wait for it any more.
                let _ = done.try_send(());
                continue;
            }
        };
        if let Err(error) = written
            && complained.is_none_or(|last| last.elapsed() > COMPLAINT)
        {
            complained = Some(Instant::now());
            tracing::warn!(path, %error, "an access log cannot be written: its lines are dropped");
        }
    }
}

fn into(file: &mut Option<Box<dyn Write>>, path: &str, line: &[u8]) -> io::Result<()> {
    let open = match file {
        Some(open) => open,
        None => file.insert(open(path)?),
    };
    let written = open.write_all(line).and_then(|()| open.flush());
    if written.is_err() {
        *file = None;
    }
    written
}

fn open(path: &str) -> io::Result<Box<dyn Write>> {
    Ok(match path {
        "/dev/stdout" => Box::new(io::stdout()),
        "/dev/stderr" => Box::new(io::stderr()),
        path => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
    })
}
