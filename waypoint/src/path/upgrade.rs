//! What a request's connection, or stream, becomes where its endpoint agrees: WebSocket and the like (RFC 9110 section 7.8,
//! RFC 8441). From then on bytes are carried as they are.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use stillmesh_hbone::copy::{CopyError, Counters, sockets};

use super::{Carried, PathError, ResponseBody, Rewound, Version, forward, tcp};
use crate::capture::Downstream;
use crate::clients::Entered;
use crate::record::Flag;
use crate::record::request::Request as Record;
use crate::upstream::connections::InUse;

/// A client's connection, or stream, that is to become something else.
pub struct Upgrading {
    /// It, once it was answered.
    pub connection: OnUpgrade,
    /// How its client speaks.
    pub version: Version,
    /// How it was asked for.
    pub carried: Carried,
}

impl Upgrading {
    /// Hands on the answer of an endpoint that has agreed, and carries what follows in a task of the waypoint's.
    pub fn switch(
        self,
        downstream: &Downstream,
        mut response: Response<Incoming>,
        in_use: Option<InUse>,
        record: Box<Record>,
    ) -> Response<ResponseBody> {
        let endpoint = (hyper::upgrade::on(&mut response), in_use);
        let head = switched(response.into_parts().0, self.version);
        let waypoint = downstream.waypoint();
        let carried = waypoint.clients.carry(self.carried);
        carried.again();
        waypoint.tasks.spawn("upgraded", tunnel(self.connection, endpoint, carried, record));
        Response::from_parts(head, ResponseBody::empty())
    }
}

/// The head of an answer by which a client's connection, or stream, becomes something else.
fn switched(mut head: http::response::Parts, client: Version) -> http::response::Parts {
    let protocol = head.headers.get(header::UPGRADE).cloned();
    forward::strip(&mut head.headers);
    if client == Version::Two {
        // A CONNECT is answered 200, and the client has sent no key (RFC 8441 section 5).
        head.status = StatusCode::OK;
        head.version = http::Version::HTTP_2;
        head.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        head.headers.remove(header::CONTENT_LENGTH);
    } else {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            head.headers.insert(header::UPGRADE, protocol);
        }
    }
    head
}

/// Carries what a connection was upgraded to, until both sides have ended or a policy closes it.
async fn tunnel(
    client: OnUpgrade,
    (endpoint, _in_use): (OnUpgrade, Option<InUse>),
    carried: Entered<Carried>,
    mut record: Box<Record>,
) {
    let (client, endpoint) = match tokio::try_join!(client, endpoint) {
        Ok(both) => both,
        Err(error) => return record.broke_off(&error),
    };
    let (mut client, mut endpoint) = (Rewound::new(TokioIo::new(client)), TokioIo::new(endpoint));
    let (bytes, idle) = (client.bytes(), carried.what().waypoint().config.limits.stream_idle);
    let counters = Counters::default();
    let ended = tokio::select! {
        ended = sockets(&mut client, &mut endpoint, &counters) => ended,
        refusal = carried.refused() => return record.failed(&PathError::Closed(refusal)),
        () = tcp::quiet(&bytes, Some(idle)) => return record.cut(Flag::StreamIdle),
    };
    match ended {
        Ok(()) => {
            let sent = counters.backward.load(Ordering::Relaxed);
            record.sent(usize::try_from(sent).unwrap_or(usize::MAX));
            record.complete();
        }
        Err(CopyError { source, .. }) => record.failed(&PathError::Broken { source: Arc::new(source) }),
    }
}
