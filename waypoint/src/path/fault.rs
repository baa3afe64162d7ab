//! Delays and failures on purpose, as a route asks for them.

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderValue};
use stillmesh_core::decide::route::{Chance, is_hit};
use stillmesh_core::model::http::{Abort, Fault};
use tokio::time::sleep;

use super::plan::Answer;
use crate::record::Flag;
use crate::record::request::Request as Record;

/// Delays a request if it is hit, and says how it fails if it is. Cancelled with the request.
pub async fn inject(fault: &Fault, entropy: u64, record: &mut Record) -> Option<Answer> {
    if let Some((time, share)) = fault.delay
        && is_hit(share, Chance::Delay, entropy)
    {
        record.met(Flag::DelayInjected);
        sleep(time).await;
    }
    let (abort, share) = fault.abort?;
    is_hit(share, Chance::Abort, entropy).then(|| aborted(abort))
}

fn aborted(abort: Abort) -> Answer {
    let (status, grpc) = match abort {
        Abort::Http(status) => (StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE), None),
        Abort::Grpc(code) => (of_grpc(code), Some(code)),
    };
    let body = Bytes::from_static(b"fault filter abort");
    let mut answer = Answer { body, grpc, flag: Some(Flag::FaultInjected), ..Answer::of(status) };
    answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

/// The HTTP status that stands for one of gRPC, for clients that do not speak it (`google.rpc.Code`).
fn of_grpc(code: u16) -> StatusCode {
    match code {
        0 => StatusCode::OK,
        1 => StatusCode::from_u16(499).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
