//! A response's body on its way to the client, and the record of its request: written when the body has ended or nobody
//! reads it any more.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::record::request::Request as Record;
use crate::upstream::connections::InUse;

/// What the client is sent.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    record: Option<Record>,
}

#[derive(Debug)]
enum Source {
    Endpoint {
        body: Incoming,
        /// Its place on a connection that others use too.
        _in_use: Option<InUse>,
    },
    Own(Option<Bytes>),
}

impl ResponseBody {
    /// An endpoint's.
    pub fn of(body: Incoming, in_use: Option<InUse>, record: Record) -> Self {
        let mut this = Self { source: Source::Endpoint { body, _in_use: in_use }, record: Some(record) };
        // Nobody asks for the end of a body that has none.
        if this.is_end_stream() {
            this.ended(None);
        }
        this
    }

    /// The waypoint's own words.
    pub fn own(bytes: Bytes, record: Record) -> Self {
        let mut record = record;
        record.sent(bytes.len());
        record.complete();
        Self { source: Source::Own((!bytes.is_empty()).then_some(bytes)), record: None }
    }

    /// Nothing; what goes on after it has its own record.
    pub fn empty() -> Self {
        Self { source: Source::Own(None), record: None }
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

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Own(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Endpoint { body, .. } => ready!(Pin::new(body).poll_frame(cx)),
        };
        match &frame {
            None => this.ended(None),
            Some(Err(error)) => this.ended(Some(error)),
            Some(Ok(frame)) => {
                if let (Some(record), Some(bytes)) = (&mut this.record, frame.data_ref()) {
                    record.sent(bytes.len());
                }
                if let (Some(record), Some(trailers)) = (&mut this.record, frame.trailers_ref()) {
                    record.trailers(trailers);
                }
                if this.is_end_stream() {
                    this.ended(None);
                }
            }
        }
        Poll::Ready(frame)
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
