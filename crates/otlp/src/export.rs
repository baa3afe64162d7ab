//! Batches to a collector, over gRPC or HTTP (OTLP 1.3, «OTLP/gRPC» and «OTLP/HTTP»), on streams that the caller opens. What may
//! succeed later is sent again, after longer and longer pauses, for a bounded time.

use std::pin::Pin;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use crate::message::{
    ExportLogsServiceRequest, ExportServiceResponse, ExportTraceServiceRequest, InstrumentationScope, LogRecord,
    Resource, ResourceLogs, ResourceSpans, ScopeLogs, ScopeSpans, Span,
};
use crate::queue::{Batches, Told};

/// The longest answer that is read, bytes.
const LONGEST: usize = 64 << 10;

/// The first pause before something is sent again; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How long a batch is sent again. Meanwhile what is new waits, as far as there is room.
const PATIENCE: Duration = Duration::from_secs(30);

/// A collector, as it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct To {
    /// `host:port`, an IPv6 address in brackets.
    pub authority: String,
    /// HTTP's path; `None`: gRPC.
    pub path: Option<String>,
    /// How long one try may take.
    pub timeout: Duration,
}

impl To {
    /// A collector's authority: an IPv6 address is in brackets.
    pub fn authority(host: &str, port: u16) -> String {
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// A stream to a collector that is being opened.
pub type Opening<'a, S> = Pin<Box<dyn Future<Output = Result<S, Failure>> + Send + 'a>>;

/// Why a batch was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For people.
    pub text: String,
    /// Whether it may be taken later.
    pub is_passing: bool,
}

impl Failure {
    /// The collector is not reached, or has no time.
    pub fn passing(error: impl std::fmt::Display) -> Self {
        Self { text: error.to_string(), is_passing: true }
    }

    fn lasting(error: impl std::fmt::Display) -> Self {
        Self { text: error.to_string(), is_passing: false }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// How often it is told that a collector takes nothing.
const COMPLAINT: Duration = Duration::from_secs(60);

/// Sends what a queue has, until nobody can tell anything any more. `scope` is the program that tells, `resource` what it runs
/// as by then; `lost` hears how much was dropped.
pub async fn run<'a, S>(
    mut batches: Batches,
    to: &To,
    scope: InstrumentationScope,
    resource: impl Fn() -> Resource,
    open: impl Fn() -> Opening<'a, S>,
    lost: impl Fn(u64),
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut complained: Option<Instant> = None;
    while let Some(mut batch) = batches.next().await {
        for export in Export::of(&resource(), &scope, std::mem::take(&mut batch.told)) {
            let (count, error) = match export.send(&open, to).await {
                Ok(0) => continue,
                Ok(refused) => (refused, "it refused some of it".to_owned()),
                Err(failure) => (export.count as u64, failure.text),
            };
            lost(count);
            if complained.is_none_or(|last| last.elapsed() > COMPLAINT) {
                complained = Some(Instant::now());
                tracing::warn!(collector = to.authority, error, "what a collector did not take is dropped");
            }
        }
    }
}

/// One message to a collector.
#[derive(Clone, Debug)]
struct Export {
    service: &'static str,
    message: Bytes,
    /// How many things it tells.
    count: usize,
}

impl Export {
    /// The messages that tell all of this.
    fn of(resource: &Resource, scope: &InstrumentationScope, told: Vec<Told>) -> Vec<Self> {
        let (mut spans, mut log_records): (Vec<Span>, Vec<LogRecord>) = (Vec::new(), Vec::new());
        for one in told {
            match one {
                Told::Span(span) => spans.push(*span),
                Told::Record(record) => log_records.push(*record),
            }
        }
        let (scope, resource) = (Some(scope.clone()), Some(resource.clone()));
        let mut all = Vec::new();
        if !spans.is_empty() {
            let count = spans.len();
            let scope_spans = vec![ScopeSpans { scope: scope.clone(), spans }];
            let resource_spans = vec![ResourceSpans { resource: resource.clone(), scope_spans }];
            let message = ExportTraceServiceRequest { resource_spans }.encode_to_vec().into();
            all.push(Self { service: "trace.v1.TraceService", message, count });
        }
        if !log_records.is_empty() {
            let count = log_records.len();
            let scope_logs = vec![ScopeLogs { scope, log_records }];
            let resource_logs = vec![ResourceLogs { resource, scope_logs }];
            let message = ExportLogsServiceRequest { resource_logs }.encode_to_vec().into();
            all.push(Self { service: "logs.v1.LogsService", message, count });
        }
        all
    }

    /// Sends it, again and again where that may help, for half a minute at most. Says how many things the collector took the
    /// message but not.
    async fn send<'a, S>(&self, open: &impl Fn() -> Opening<'a, S>, to: &To) -> Result<u64, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let end = Instant::now() + PATIENCE;
        let mut pause = PAUSE;
        loop {
            let attempt = async {
                let stream = open().await?;
                match &to.path {
                    None => self.grpc(stream, to).await,
                    Some(path) => self.over_http(stream, to, path).await,
                }
            };
            let sent = timeout(to.timeout, attempt).await;
            let failure =
                match sent.unwrap_or_else(|_| Err(Failure::passing(format!("no answer within {:?}", to.timeout)))) {
                    Ok(refused) => return Ok(refused),
                    Err(failure) => failure,
                };
            // From half of it on: not all who wait for a collector are to come back at once.
            let wait = pause.mul_f64(rand::random_range(0.5..1.0));
            if !failure.is_passing || Instant::now() + wait > end {
                return Err(failure);
            }
            sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn grpc<S>(&self, stream: S, to: &To) -> Result<u64, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut body = BytesMut::with_capacity(self.message.len() + FRAME);
        body.put_u8(0);
        body.put_u32(u32::try_from(self.message.len()).map_err(Failure::lasting)?);
        body.put_slice(&self.message);
        let uri = format!("http://{}/opentelemetry.proto.collector.{}/Export", to.authority, self.service);
        let request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, AGENT)
            .header("grpc-timeout", format!("{}m", to.timeout.as_millis().min(99_999_999)))
            .body(Full::new(body.freeze()))
            .map_err(Failure::lasting)?;
        let opened = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut sender, connection) = opened.map_err(Failure::passing)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(Failure::passing)?;
            if response.status() != StatusCode::OK {
                return Err(refused(response.status()));
            }
            let early = response.headers().get(GRPC_STATUS).cloned();
            let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(Failure::passing)?;
            let late = body.trailers().and_then(|trailers| trailers.get(GRPC_STATUS)).cloned();
            let code = early.or(late).and_then(|code| code.to_str().ok().map(str::to_owned));
            match code.as_deref() {
                Some("0") => {
                    let body = body.to_bytes();
                    Ok(partly(body.get(FRAME..).unwrap_or_default()))
                }
                // OTLP 1.3, «Failures»: these may go well later.
                Some(code @ ("1" | "4" | "8" | "10" | "11" | "14" | "15")) => {
                    Err(Failure::passing(format!("answered gRPC status {code}")))
                }
                code => Err(Failure::lasting(format!("answered gRPC status {}", code.unwrap_or("none")))),
            }
        };
        drive(connection, answer).await
    }

    async fn over_http<S>(&self, stream: S, to: &To, path: &str) -> Result<u64, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let request = Request::post(path)
            .header(header::HOST, &to.authority)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, AGENT)
            .header(header::CONNECTION, "close")
            .body(Full::new(self.message.clone()))
            .map_err(Failure::lasting)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Failure::passing)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(Failure::passing)?;
            if !response.status().is_success() {
                return Err(refused(response.status()));
            }
            let body = Limited::new(response.into_body(), LONGEST).collect().await.map_err(Failure::passing)?;
            Ok(partly(&body.to_bytes()))
        };
        drive(connection, answer).await
    }
}

/// Length of what is before a gRPC message, bytes.
const FRAME: usize = 5;

const GRPC_STATUS: &str = "grpc-status";

/// Who exports.
const AGENT: &str = concat!("stillmesh-otlp/", env!("CARGO_PKG_VERSION"));

/// OTLP 1.3, «Failures»: which answers may be others later.
fn refused(status: StatusCode) -> Failure {
    let is_passing = matches!(status.as_u16(), 429 | 502 | 503 | 504);
    Failure { text: format!("answered {status}"), is_passing }
}

/// How many things were not taken, by an answer; one that cannot be read says nothing.
fn partly(answer: &[u8]) -> u64 {
    let read = ExportServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
    read.and_then(|partly| u64::try_from(partly.rejected).ok()).unwrap_or_default()
}

/// Runs a connection until there is an answer.
async fn drive<E: std::fmt::Display>(
    connection: impl Future<Output = Result<(), E>>,
    answer: impl Future<Output = Result<u64, Failure>>,
) -> Result<u64, Failure> {
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answered = answer.as_mut() => answered,
        ended = connection.as_mut() => match ended {
            // What was read before its end is there.
            Ok(()) => answer.await,
            Err(error) => Err(Failure::passing(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    fn export() -> Export {
        let told = vec![Told::Span(Box::default()), Told::Span(Box::default())];
        Export::of(&Resource::default(), &InstrumentationScope::default(), told).remove(0)
    }

    fn to(path: Option<&str>) -> To {
        To { authority: "otel:4318".to_owned(), path: path.map(str::to_owned), timeout: Duration::from_secs(10) }
    }

    #[test]
    fn spans_and_records_are_messages_of_their_own() {
        let told = vec![Told::Record(Box::default()), Told::Span(Box::default()), Told::Record(Box::default())];
        let all = Export::of(&Resource::default(), &InstrumentationScope::default(), told);
        let counts: Vec<_> = all.iter().map(|one| (one.service, one.count)).collect();
        assert_eq!(counts, [("trace.v1.TraceService", 1), ("logs.v1.LogsService", 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_reached_is_tried_for_half_a_minute_with_longer_and_longer_pauses() {
        let tries = AtomicU32::new(0);
        let open = || -> Opening<'_, DuplexStream> {
            tries.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Err(Failure::passing("nobody there")) })
        };
        let began = Instant::now();
        assert_eq!(export().send(&open, &to(None)).await, Err(Failure::passing("nobody there")));
        assert!(began.elapsed() <= PATIENCE && began.elapsed() > PATIENCE - LONGEST_PAUSE, "{:?}", began.elapsed());
        let tries = tries.load(Ordering::Relaxed);
        assert!((6..=14).contains(&tries), "{tries}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_not_waited_for() {
        let open = || -> Opening<'_, DuplexStream> { Box::pin(std::future::pending()) };
        let began = Instant::now();
        let failure = export().send(&open, &to(None)).await.unwrap_err();
        assert!(failure.is_passing && failure.text == "no answer within 10s", "{failure}");
        assert!(began.elapsed() <= PATIENCE + Duration::from_secs(10), "{:?}", began.elapsed());
    }

    /// What an HTTP/1.1 collector's answers come to; the last one again and again.
    async fn answered(answers: &[&str]) -> (Result<u64, Failure>, u32) {
        let tries = AtomicU32::new(0);
        let open = || -> Opening<'_, DuplexStream> {
            let number = tries.fetch_add(1, Ordering::Relaxed) as usize;
            let answer = answers[number.min(answers.len() - 1)].to_owned();
            Box::pin(async move {
                let (near, mut far) = duplex(64 << 10);
                #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
                tokio::spawn(async move {
                    // An answer before its question would be none.
                    far.read_u8().await?;
                    far.write_all(answer.as_bytes()).await?;
                    far.read_to_end(&mut Vec::new()).await
                });
                Ok(near)
            })
        };
        let sent = export().send(&open, &to(Some("/v1/traces"))).await;
        (sent, tries.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_go_well_later_is_sent_again_and_nothing_else() {
        let (busy, bad) =
            ("HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 400 x\r\ncontent-length: 0\r\n\r\n");
        // Of two one was not taken.
        let partly = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\n\u{2}\u{8}\u{1}";
        assert_eq!(answered(&[busy, busy, partly]).await, (Ok(1), 3));
        assert_eq!(answered(&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"]).await, (Ok(0), 1));
        let (sent, tries) = answered(&[bad]).await;
        assert_eq!((sent.map_err(|failure| failure.is_passing), tries), (Err(false), 1));
    }
}
