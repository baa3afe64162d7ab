//! The waypoint's own answers, in the words of HTTP and of gRPC.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, StatusCode};
use hyper::Response;

use super::plan::Answer;
use super::{PathError, ResponseBody};
use crate::record::request::Request as Record;

/// Whether a gRPC client sends these.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content.is_some_and(|content| content.starts_with("application/grpc"))
}

/// The waypoint's own answer, as a route has it. A gRPC client is told by a status of its own.
pub fn own(answer: Answer, is_grpc: bool, mut record: Box<Record>) -> Response<ResponseBody> {
    let Answer { status, mut headers, body, grpc, flag, reason } = answer;
    if let Some(flag) = flag {
        record.met(flag);
    }
    if let Some(reason) = reason {
        record.stopped(reason);
    }
    let code = grpc.or(is_grpc.then(|| grpc_status(status)).flatten()).filter(|_| is_grpc);
    if code.is_none() {
        headers.remove("grpc-message");
    }
    let (status, body) = match code {
        Some(code) => {
            let code = HeaderValue::from(code);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            record.refused(StatusCode::OK, code.to_str().ok());
            headers.insert("grpc-status", code);
            (StatusCode::OK, Bytes::new())
        }
        None => {
            record.refused(status, None);
            (status, body)
        }
    };
    let mut response = Response::new(ResponseBody::own(body, record));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The gRPC status that stands for a status of HTTP (gRPC, «HTTP to gRPC status code mapping»); none for what is no failure.
fn grpc_status(status: StatusCode) -> Option<u16> {
    Some(match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        402 | 405..=599 => 2,
        _ => return None,
    })
}

/// The answer to a request that cannot be carried. The client is told what it can do something about; the rest is in the
/// log, under the request's id.
pub fn refuse(error: &PathError, is_grpc: bool, mut record: Box<Record>) -> Response<ResponseBody> {
    let (status, text) = match error {
        PathError::BadRequest { what } => (StatusCode::BAD_REQUEST, *what),
        PathError::Full { .. } | PathError::Pool { .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time")
        }
        PathError::Refused(_) => (StatusCode::SERVICE_UNAVAILABLE, "no endpoint"),
        PathError::Upstream { .. } => (StatusCode::SERVICE_UNAVAILABLE, "the endpoint broke off before its answer"),
        PathError::NotSwitched { .. } => (StatusCode::BAD_GATEWAY, "the endpoint did not switch protocols"),
        PathError::NoConnect => (StatusCode::BAD_GATEWAY, "the endpoint does not take CONNECT for other protocols"),
        PathError::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, "the request took too long"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "no endpoint was reached"),
    };
    record.failed(error);
    if is_grpc {
        // UNAVAILABLE, INTERNAL for what is no request, DEADLINE_EXCEEDED (gRPC over HTTP/2: a response of trailers alone).
        let code = match status {
            StatusCode::BAD_REQUEST => "13",
            StatusCode::GATEWAY_TIMEOUT => "4",
            _ => "14",
        };
        record.refused(StatusCode::OK, Some(code));
        let mut response = Response::new(ResponseBody::own(Bytes::new(), record));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(code));
        headers.insert("grpc-message", HeaderValue::from_static(text));
        return response;
    }
    record.refused(status, None);
    let mut response = Response::new(ResponseBody::own(Bytes::from_static(text.as_bytes()), record));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
