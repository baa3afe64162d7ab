//! A response's body on its way to the client, and the record of its request: written when the body has ended or nobody
//! reads it any more.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::PathError;
use crate::record::request::Request as Record;
use crate::upstream::connections::InUse;

/// What the client is sent.
pub struct ResponseBody {
    source: Source,
    record: Option<Box<Record>>,
    overdue: Option<Overdue>,
    is_grpc: bool,
}

/// Ends when a response has taken too long; says how long that is.
pub type Overdue = Pin<Box<dyn Future<Output = Duration> + Send + Sync>>;

/// Why a response broke off.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    /// The endpoint broke off.
    #[error("the endpoint's response broke off")]
    Endpoint(#[from] hyper::Error),
    /// It took longer than its route allows.
    #[error("the response was not whole within {limit:?}")]
    Overdue {
        /// The bound.
        limit: Duration,
    },
}

#[derive(Debug)]
enum Source {
    Endpoint {
        body: Incoming,
        /// Its place on its connection, or all of it.
        _in_use: Option<InUse>,
    },
    Own(Option<Bytes>),
}

impl ResponseBody {
    /// An endpoint's.
    pub fn of(
        body: Incoming,
        in_use: Option<InUse>,
        record: Box<Record>,
        overdue: Option<Overdue>,
        is_grpc: bool,
    ) -> Self {
        let source = Source::Endpoint { body, _in_use: in_use };
        let mut this = Self { source, record: Some(record), overdue, is_grpc };
        // Nobody asks for the end of a body that has none.
        if this.is_end_stream() {
            this.ended(None);
        }
        this
    }

    /// The waypoint's own words.
    pub fn own(bytes: Bytes, record: Box<Record>) -> Self {
        let mut record = record;
        record.sent(bytes.len());
        record.complete();
        Self { source: Source::Own((!bytes.is_empty()).then_some(bytes)), record: None, overdue: None, is_grpc: false }
    }

    /// Nothing; what goes on after it has its own record.
    pub fn empty() -> Self {
        Self { source: Source::Own(None), record: None, overdue: None, is_grpc: false }
    }

    /// Takes the waypoint's own words away, as an answer to HEAD has none; says how many bytes they were.
    pub fn silence(&mut self) -> Option<usize> {
        match &mut self.source {
            Source::Own(words) => words.take().map(|words| words.len()),
            Source::Endpoint { .. } => None,
        }
    }

    /// It has taken too long. A gRPC client is told so in trailers; the endpoint's stream is ended.
    fn cut(&mut self, limit: Duration) -> Option<Result<Frame<Bytes>, ResponseError>> {
        self.source = Source::Own(None);
        if let Some(mut record) = self.record.take() {
            record.failed(&PathError::TimedOut { limit });
            if self.is_grpc {
                record.refused(StatusCode::OK, Some(DEADLINE_EXCEEDED));
            }
        }
        if self.is_grpc {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(DEADLINE_EXCEEDED));
            return Some(Ok(Frame::trailers(trailers)));
        }
        Some(Err(ResponseError::Overdue { limit }))
    }

    fn ended(&mut self, error: Option<&hyper::Error>) {
        if let Some(mut record) = self.record.take() {
            match error {
                None => record.complete(),
                Some(error) => record.broke_off(error),
            }
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Of gRPC.
const DEADLINE_EXCEEDED: &str = "4";

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Endpoint { body, .. } => Pin::new(body).poll_frame(cx),
        };
        let frame = match frame {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let Some(overdue) = &mut this.overdue else { return Poll::Pending };
                let limit = ready!(overdue.as_mut().poll(cx));
                this.overdue = None;
                return Poll::Ready(this.cut(limit));
            }
        };
        match &frame {
            None => this.ended(None),
            Some(Err(error)) => this.ended(Some(error)),
            Some(Ok(frame)) => {
                if let (Some(record), Some(bytes)) = (&mut this.record, frame.data_ref()) {
                    record.passed(bytes);
                }
                if let (Some(record), Some(trailers)) = (&mut this.record, frame.trailers_ref()) {
                    record.trailers(trailers);
                }
                if this.is_end_stream() {
                    this.ended(None);
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Endpoint { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Endpoint { body, .. } => body.size_hint(),
        }
    }
}
