//! What is carried as it is for as long as it lasts, a connection or what a request's connection was upgraded to: how it was
//! asked for, so that it can be decided again.

use std::sync::Arc;

use http::Request;
use http::request::Parts;
use stillmesh_core::attrs::Token;
use stillmesh_core::decide::{self, RequestVerdict};
use stillmesh_core::model::ServiceKey;
use stillmesh_core::snapshot::Snapshot;

use super::authorize;
use crate::capture::Downstream;
use crate::waypoint::Waypoint;

/// What was asked for.
#[derive(Debug)]
pub struct Carried {
    downstream: Arc<Downstream>,
    asked: Asked,
}

#[derive(Debug)]
enum Asked {
    /// A connection; the name that its client of TLS asked for, where that was looked for.
    Connection(Option<String>),
    /// An upgrade: the request's head as it was decided about, and its token as it was verified then.
    Upgrade(Box<Parts>, Option<Token>),
}

impl Carried {
    /// A connection that is no HTTP.
    pub fn connection(downstream: &Arc<Downstream>, server_name: Option<&str>) -> Self {
        Self { downstream: downstream.clone(), asked: Asked::Connection(server_name.map(str::to_owned)) }
    }

    /// What becomes of a request that asks for another protocol.
    pub fn upgrade(downstream: &Arc<Downstream>, head: &Parts, token: Option<&Token>) -> Self {
        let mut seen = Request::new(()).into_parts().0;
        (seen.method, seen.uri) = (head.method.clone(), head.uri.clone());
        seen.headers.clone_from(&head.headers);
        Self { downstream: downstream.clone(), asked: Asked::Upgrade(Box::new(seen), token.cloned()) }
    }

    /// The waypoint.
    pub fn waypoint(&self) -> &Waypoint {
        self.downstream.waypoint()
    }

    /// The service that was dialled.
    pub fn service(&self) -> Option<&ServiceKey> {
        self.downstream.target.service().map(|service| &service.key)
    }

    /// What policies say of it now.
    pub fn verdict(&self, snapshot: &Snapshot) -> RequestVerdict {
        let downstream = &self.downstream;
        match &self.asked {
            Asked::Connection(name) => {
                decide::authorize_request(snapshot, &authorize::of_connection(downstream, name.as_deref()))
            }
            Asked::Upgrade(head, token) => {
                authorize::with_request(downstream, snapshot, head, token.as_ref(), |attrs| {
                    decide::authorize_request(snapshot, attrs)
                })
            }
        }
    }
}
