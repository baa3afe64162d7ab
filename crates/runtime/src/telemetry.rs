//! What a process says of itself: log lines on standard error, and metrics.
//!
//! `LOG_FORMAT` (`text` or `json`) and `RUST_LOG` (tracing's filter syntax, default `info`) are read once, by [`init`].

mod lines;
pub mod metrics;

use std::io;
use std::sync::OnceLock;

use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

use crate::env::{Problems, Reader};

static LEVELS: OnceLock<Levels> = OnceLock::new();

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
    let layer = fmt::layer().with_writer(io::stderr);
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
