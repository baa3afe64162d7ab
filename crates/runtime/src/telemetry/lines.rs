//! How a log line looks: as ztunnel's, which users' tools read (contract 9.4). Text is tab-separated, JSON is one flat
//! object; the scope is the event's target without the crate's `stillmesh_` (and without `ztunnel::`, as Istio's).

use std::fmt::{self, Debug, Write as _};

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
        write!(out, "\t{}\t{}", level(*event.metadata().level()), scope(event.metadata().target()))?;
        for span in context.event_scope().into_iter().flat_map(|spans| spans.from_root()) {
            write!(out, ":{}", span.name())?;
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(out, "{{{fields}}}")?;
            }
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        write!(out, "\t{}", OneLine(&fields.message))?;
        for (index, (name, value)) in fields.fields.iter().enumerate() {
            out.write_char(if index == 0 { '\t' } else { ' ' })?;
            match value {
                FieldValue::Text(text) => write!(out, "{name}={text:?}")?,
                FieldValue::Shown(text) => write!(out, "{name}={}", OneLine(text))?,
                FieldValue::Json(value) => write!(out, "{name}={value}")?,
            }
        }
        writeln!(out)
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let head = [
            ("level", level(*event.metadata().level()).to_owned()),
            ("time", time),
            ("scope", scope(event.metadata().target()).to_owned()),
            ("message", fields.message),
        ];
        let mut object = Members::default();
        for (name, value) in head {
            object.put(name, &Value::String(value));
        }
        for (name, value) in fields.fields {
            let value = match value {
                FieldValue::Text(text) | FieldValue::Shown(text) => Value::String(text),
                FieldValue::Json(value) => value,
            };
            object.put(name, &value);
        }
        for span in context.event_scope().into_iter().flat_map(|spans| spans.from_root()) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>().map(|fields| fields.fields.as_str());
            let fields = fields.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Object(Map::new()));
            object.put(span.name(), &fields);
        }
        writeln!(out, "{{{}}}", object.text)
    }
}

/// Members of an object in their own order; of equal names the first counts.
#[derive(Default)]
struct Members {
    names: Vec<String>,
    text: String,
}

impl Members {
    fn put(&mut self, name: &str, value: &Value) {
        if self.names.iter().any(|other| other == name) {
            return;
        }
        self.names.push(name.to_owned());
        let separator = if self.text.is_empty() { "" } else { "," };
        // Writing into a string does not fail.
        let _ = write!(self.text, "{separator}{}:{value}", Value::String(name.to_owned()));
    }
}

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

/// Text from peers may hold line breaks: a line stays one.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '\n' | '\r' | '\t' => write!(out, "{}", letter.escape_default())?,
                letter if letter.is_control() => write!(out, "{}", letter.escape_default())?,
                letter => out.write_char(letter)?,
            }
        }
        Ok(())
    }
}

/// A field's value.
enum FieldValue {
    /// Text: quoted.
    Text(String),
    /// What a value displays as.
    Shown(String),
    /// A number or truth value.
    Json(Value),
}

#[derive(Default)]
struct Fields {
    message: String,
    fields: Vec<(&'static str, FieldValue)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push((name, FieldValue::Shown(format!("{value:?}")))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            name => self.fields.push((name, FieldValue::Text(value.to_owned()))),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), FieldValue::Json(value.into())));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.push((field.name(), FieldValue::Json(value.into())));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push((field.name(), FieldValue::Json(value.into())));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.push((field.name(), FieldValue::Json(value.into())));
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
    fn scopes_are_short() {
        assert_eq!(scope("stillmesh_ztunnel::dns::server"), "dns::server");
        assert_eq!(scope("stillmesh_api::xds"), "api::xds");
        assert_eq!(scope("access"), "access");
    }
}
