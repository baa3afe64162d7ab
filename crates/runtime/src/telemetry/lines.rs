//! How a log line looks: as ztunnel's, which users' tools read (contract 9.4). Text is tab-separated, JSON is one flat
//! object; the scope is the event's target without the crate's `stillmesh_` (and without `ztunnel::`, as Istio's).
//!
//! A proxy writes a line for each request: fields are written where they are to stand, and texts that need no escapes are copied.

use std::fmt::{self, Debug, Display, Write as _};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// `<time>⇥<level>⇥<scope>[:span{k=v …}]⇥<message>⇥k=v k="v"…`
#[derive(Clone, Copy, Debug)]
pub(super) struct Text;

/// One object: level, time, scope, message, the fields, then one object per span.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        SystemTime.format_time(&mut out)?;
        for part in ["\t", level(*event.metadata().level()), "\t", scope(event.metadata().target())] {
            out.write_str(part)?;
        }
        for span in context.event_scope().into_iter().flat_map(|spans| spans.from_root()) {
            write!(out, ":{}", span.name())?;
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(out, "{{{fields}}}")?;
            }
        }
        let mut fields = Pairs { message: String::new(), text: String::with_capacity(ROOM) };
        event.record(&mut fields);
        put_line(&mut fields.message, 0);
        for part in ["\t", &fields.message, &fields.text, "\n"] {
            out.write_str(part)?;
        }
        Ok(())
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        out.write_str("{\"level\":\"")?;
        out.write_str(level(*event.metadata().level()))?;
        out.write_str("\",\"time\":\"")?;
        SystemTime.format_time(&mut out)?;
        let mut fields = Members { names: Vec::with_capacity(32), ..Members::default() };
        fields.names.extend(HEAD);
        fields.text.reserve(ROOM);
        event.record(&mut fields);
        for span in context.event_scope().into_iter().flat_map(|spans| spans.from_root()) {
            let extensions = span.extensions();
            let of_span = extensions.get::<FormattedFields<N>>().map(|fields| fields.fields.as_str());
            let of_span = of_span.and_then(|text| serde_json::from_str(text).ok());
            fields.put(span.name(), of_span.unwrap_or(Value::Object(Map::new())));
        }
        let mut head = String::from("\",\"scope\":");
        put_json(&mut head, scope(event.metadata().target()));
        head.push_str(",\"message\":");
        put_json(&mut head, &fields.message);
        for part in [&head, &fields.text, "}\n"] {
            out.write_str(part)?;
        }
        Ok(())
    }
}

/// Room for the fields of a usual line, bytes.
const ROOM: usize = 1024;

/// Members that every object has.
const HEAD: [&str; 4] = ["level", "time", "scope", "message"];

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn scope(target: &str) -> &str {
    let target = target.strip_prefix("stillmesh_").unwrap_or(target);
    target.strip_prefix("ztunnel::").unwrap_or(target)
}

/// Whether a text stands in quotes as it is.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

/// Text from peers may hold line breaks: a line stays one. Escapes what comes from `start` on.
fn put_line(text: &mut String, start: usize) {
    if text.get(start..).is_some_and(|new| !new.chars().any(char::is_control)) {
        return;
    }
    let raw = text.split_off(start);
    for letter in raw.chars() {
        match letter.is_control() {
            true => text.extend(letter.escape_default()),
            false => text.push(letter),
        }
    }
}

/// Text in quotes, as Rust writes it.
fn put_quoted(text: &mut String, value: &str) {
    if is_plain(value) { text.extend(["\"", value, "\""]) } else { put(text, format_args!("{value:?}")) }
}

/// The same as JSON writes it.
fn put_json(text: &mut String, value: &str) {
    if is_plain(value) { text.extend(["\"", value, "\""]) } else { put(text, Value::from(value)) }
}

fn put(text: &mut String, value: impl Display) {
    // Writing into a string does not fail.
    let _ = write!(text, "{value}");
}

/// Fields as text, each behind what parts it from the one before.
struct Pairs {
    message: String,
    text: String,
}

impl Pairs {
    fn begin(&mut self, field: &Field) {
        self.text.push(if self.text.is_empty() { '\t' } else { ' ' });
        self.text.push_str(field.name());
        self.text.push('=');
    }

    fn put(&mut self, field: &Field, value: impl Display) {
        self.begin(field);
        put(&mut self.text, value);
    }
}

impl Visit for Pairs {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
            return;
        }
        self.begin(field);
        let start = self.text.len();
        put(&mut self.text, format_args!("{value:?}"));
        put_line(&mut self.text, start);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        self.begin(field);
        put_quoted(&mut self.text, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, Value::from(value));
    }
}

/// Fields as members, each behind its comma. Of equal names the first counts.
#[derive(Default)]
struct Members {
    message: String,
    names: Vec<&'static str>,
    text: String,
}

impl Members {
    /// Whether there is no member of this name yet: its value is to follow.
    fn begin(&mut self, name: &'static str) -> bool {
        if self.names.contains(&name) {
            return false;
        }
        self.names.push(name);
        self.text.push(',');
        put_json(&mut self.text, name);
        self.text.push(':');
        true
    }

    fn put(&mut self, name: &'static str, value: impl Display) {
        if self.begin(name) {
            put(&mut self.text, value);
        }
    }
}

impl Visit for Members {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let shown = format!("{value:?}");
        self.record_str(field, &shown);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else if self.begin(field.name()) {
            put_json(&mut self.text, value);
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), Value::from(value));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::fmt::format::JsonFields;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn emit() {
        let span = tracing::info_span!(target: "stillmesh_ztunnel::capture", "pod", uid = 7);
        let _entered = span.enter();
        tracing::event!(
            target: "stillmesh_ztunnel::capture",
            Level::WARN,
            src.addr = %"10.0.0.1:80",
            src.workload = "page",
            bytes_sent = 5,
            error = "two\nlines",
            absent = Option::<&str>::None,
            "connection complete"
        );
    }

    /// The line without its time.
    fn text_line() -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer.event_format(Text)), emit);
        let line = String::from_utf8(written.0.lock().clone()).unwrap();
        line.split_once('\t').unwrap().1.to_owned()
    }

    #[test]
    fn text_is_tab_separated_and_one_line() {
        let expected = "warn\tcapture:pod{uid=7}\tconnection complete\t\
                        src.addr=10.0.0.1:80 src.workload=\"page\" bytes_sent=5 error=\"two\\nlines\"\n";
        assert_eq!(text_line(), expected);
    }

    #[test]
    fn json_is_flat_with_one_object_per_span() {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .fmt_fields(JsonFields::new())
            .event_format(Json);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), emit);
        let line = String::from_utf8(written.0.lock().clone()).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        assert!(line.starts_with("{\"level\":\"warn\",\"time\":\"20"));
        assert_eq!(value["scope"], "capture");
        assert_eq!(value["message"], "connection complete");
        assert_eq!(value["src.workload"], "page");
        assert_eq!(value["bytes_sent"], 5);
        assert_eq!(value["pod"]["uid"], 7);
        assert_eq!(value.get("absent"), None);
    }

    #[test]
    fn whatever_is_in_them_texts_are_quoted_as_rust_and_json_quote_them() {
        let every_letter: String = (0..0x3000).filter_map(char::from_u32).collect();
        let letters = every_letter.chars().map(String::from);
        for value in
            letters.chain(["", "plain", "a\"b", "a\\b", "it's", "two\nlines", &every_letter].map(str::to_owned))
        {
            let (mut text, mut json, mut line) = ("x".to_owned(), String::new(), format!("\n{value}"));
            put_quoted(&mut text, &value);
            put_json(&mut json, &value);
            put_line(&mut line, 1);
            assert_eq!(text, format!("x{value:?}"));
            assert_eq!(json, serde_json::to_string(&value).unwrap());
            assert!(line.starts_with('\n') && !line[1..].contains(char::is_control), "{line:?}");
            if !value.contains(char::is_control) {
                assert_eq!(line[1..], value);
            }
        }
    }

    #[test]
    fn of_equal_names_the_first_counts() {
        let mut fields = Members { names: HEAD.into(), ..Members::default() };
        for (name, value) in [("a", 1), ("scope", 2), ("a", 3), ("b", 4)] {
            fields.put(name, value);
        }
        assert_eq!(fields.text, ",\"a\":1,\"b\":4");
    }

    #[test]
    fn numbers_are_written_as_json_writes_them() {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer.event_format(Text)), || {
            tracing::info!(small = -5, large = u64::MAX, half = 0.5, one = 1.0, none = f64::NAN, is = true, "numbers");
        });
        let line = String::from_utf8(written.0.lock().clone()).unwrap();
        let expected = "\tnumbers\tsmall=-5 large=18446744073709551615 half=0.5 one=1.0 none=null is=true\n";
        assert!(line.ends_with(expected), "{line}");
    }

    #[test]
    fn scopes_are_short() {
        assert_eq!(scope("stillmesh_ztunnel::dns::server"), "dns::server");
        assert_eq!(scope("stillmesh_api::xds"), "api::xds");
        assert_eq!(scope("access"), "access");
    }
}
