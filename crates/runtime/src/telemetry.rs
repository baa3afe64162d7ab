//! What a process says of itself: log lines on standard error, and metrics.
//!
//! `LOG_FORMAT` (`text` or `json`) and `RUST_LOG` (tracing's filter syntax, default `info`) are read once, by [`init`].
//! A line is written when it is logged, by who logs it; those of one target may be [`defer`]red.

mod lines;
pub mod metrics;
mod queue;

use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Metadata;

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

pub use queue::{Queue, ROOM};

use crate::env::{Problems, Reader};

static LEVELS: OnceLock<Levels> = OnceLock::new();

static DEFERRED: OnceLock<(&'static str, Queue)> = OnceLock::new();

static COUNT_LOST: OnceLock<Box<dyn Fn(u64) + Send + Sync>> = OnceLock::new();

/// Starts logging for this process. Later calls change nothing and return the same handle.
///
/// Panics of any thread become error events. Fails when `LOG_FORMAT` or `RUST_LOG` cannot be used.
pub fn init(component: &'static str) -> Result<Levels, Problems> {
    init_from(component, Reader::process())
}

/// [`init`] with given values instead of the environment.
pub fn init_from(component: &'static str, mut reader: Reader) -> Result<Levels, Problems> {
    let accepted = "a filter such as info or info,stillmesh_hbone=debug";
    let filter = reader.parse_with("RUST_LOG", accepted, |text| EnvFilter::try_new(text).ok());
    let format = reader.parse_with("LOG_FORMAT", "text or json", |text| match text {
        "text" | "plain" => Some(Format::Text),
        "json" => Some(Format::Json),
        _ => None,
    });
    reader.finish()?;
    if let Some(levels) = LEVELS.get() {
        return Ok(levels.clone());
    }
    let (filter, handle) = reload::Layer::new(filter.unwrap_or_else(|| EnvFilter::new("info")));
    let layer = fmt::layer().with_writer(Output);
    let lines = match format.unwrap_or(Format::Text) {
        Format::Text => layer.with_ansi(false).event_format(lines::Text).boxed(),
        Format::Json => layer.with_ansi(false).fmt_fields(JsonFields::new()).event_format(lines::Json).boxed(),
    };
    let levels = Levels { handle };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        log_panics();
    }
    tracing::debug!(component, "logging started");
    Ok(LEVELS.get_or_init(|| levels).clone())
}

/// From now on who logs a line of this target does not wait for who reads the log: it is written within some milliseconds, in its place
/// among all others, or dropped where [`ROOM`] bytes wait already ([`on_lost`]). The first target counts. What is returned is held until the process
/// ends, and waits for the last lines then. Errors: there is no thread to be had; lines are written as before.
pub fn defer(target: &'static str) -> io::Result<LastLines> {
    let lost = move |count| {
        if let Some(tell) = COUNT_LOST.get() {
            tell(count);
        }
        tracing::warn!(scope = target, count, "lines were dropped: who reads this log is slow");
    };
    let queue = Queue::start("log", |lines| io::stderr().write_all(lines), lost)?;
    // Another one ends at once: nothing is in it.
    drop(DEFERRED.set((target, queue)));
    Ok(LastLines)
}

/// Tells of lines that were dropped, how many. The first one is told.
pub fn on_lost(tell: impl Fn(u64) + Send + Sync + 'static) {
    drop(COUNT_LOST.set(Box::new(tell)));
}

/// Waits for the lines that were [`defer`]red when it is dropped, at most a second.
#[derive(Debug)]
pub struct LastLines;

/// How long the last lines are waited for.
const LAST_LINES: Duration = Duration::from_secs(1);

impl Drop for LastLines {
    fn drop(&mut self) {
        if let Some((_, queue)) = DEFERRED.get() {
            queue.flush(LAST_LINES);
        }
    }
}

/// Where lines go.
struct Output;

/// One line on its way.
enum Way {
    Direct,
    /// Behind what was deferred.
    Behind(&'static Queue),
    Deferred(&'static Queue),
}

impl MakeWriter<'_> for Output {
    type Writer = Way;

    fn make_writer(&self) -> Way {
        DEFERRED.get().map_or(Way::Direct, |(_, queue)| Way::Behind(queue))
    }

    fn make_writer_for(&self, about: &Metadata<'_>) -> Way {
        match DEFERRED.get() {
            Some((target, queue)) if about.target() == *target => Way::Deferred(queue),
            _ => self.make_writer(),
        }
    }
}

impl io::Write for Way {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Direct => io::stderr().write_all(line),
            Self::Behind(queue) => queue.write(line),
            Self::Deferred(queue) => {
                queue.push(line);
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Format {
    Text,
    Json,
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = crate::tasks::panic_message(panic.payload());
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        tracing::error!(panic = %message, place, thread = thread.name().unwrap_or_default(), "panic");
    }));
}

/// Changes what is logged while the process runs.
#[derive(Clone, Debug)]
pub struct Levels {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl Levels {
    /// The filter in force.
    #[must_use]
    pub fn current(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Replaces the filter; the error says what is wrong with the text.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
        self.handle.reload(filter).map_err(|error| error.to_string())
    }
}
