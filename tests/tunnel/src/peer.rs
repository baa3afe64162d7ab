//! An HBONE peer that says what a test tells it to: a ztunnel would not.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stillmesh_api::BoxFuture;
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::{Identity, TrustDomain};
use stillmesh_hbone::headers::ConnectHeaders;
use stillmesh_hbone::{Dial, Dialling, Key, Limits, Opened, Pool, Transport, TunnelError};
use stillmesh_identity::{Issuer, SecretLimits, Secrets, Sign, SignFailure, SystemClock};
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_runtime::sys::netns::NetnsThread;
use stillmesh_runtime::sys::socket;
use stillmesh_runtime::tasks::Tasks;

use crate::Pod;

/// Opens tunnels from a pod's namespace under any identity that its CA gives it.
pub struct Peer {
    pool: Pool,
    identity: Identity,
    address: IpAddr,
    _tasks: Tasks,
}

impl Peer {
    /// A peer at `pod` that is `spiffe://<trust domain of the CA>/ns/<namespace>/sa/<account>`.
    #[must_use]
    pub fn new(pod: &Pod, issuer: Arc<Issuer>, namespace: &str, account: &str) -> Self {
        let tasks = Tasks::new("peer");
        let trust_domain: TrustDomain = issuer.trust_domain().clone();
        let signer = Arc::new(Signer { issuer });
        let secrets = Secrets::new(signer, Arc::new(SystemClock), SecretLimits::default(), &tasks);
        let netns: Netns = pod.place.netns().clone();
        let thread = NetnsThread::spawn("peer", netns).expect("a thread in the pod's namespace");
        let pool = Pool::new(Limits::default(), secrets, Arc::new(FromPod { thread }), tasks.clone());
        let identity = Identity::new(trust_domain, namespace, account);
        Self { pool, identity, address: pod.v4.into(), _tasks: tasks }
    }

    /// Sends a CONNECT to `destination`, which must be `expected`.
    pub async fn open(
        &self,
        destination: SocketAddr,
        expected: &Identity,
        authority: &Authority,
    ) -> Result<Opened, TunnelError> {
        let key = Key {
            source: self.identity.clone(),
            source_ip: self.address,
            destination,
            expected: vec![expected.clone()],
        };
        self.pool.open(&key, authority, &ConnectHeaders::default()).await
    }
}

/// Signs with a CA that is here.
pub(crate) struct Signer {
    pub(crate) issuer: Arc<Issuer>,
}

impl Sign for Signer {
    fn sign<'a>(
        &'a self,
        csr_pem: &'a str,
        identity: &'a Identity,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, SignFailure>> {
        let signed = self.issuer.issue(csr_pem, identity, Some(ttl), SystemTime::now());
        Box::pin(std::future::ready(signed.map_err(|error| Arc::new(error) as SignFailure)))
    }
}

struct FromPod {
    thread: NetnsThread,
}

impl Dial for FromPod {
    fn dial<'a>(&'a self, key: &'a Key) -> Dialling<'a> {
        let to = key.destination;
        Box::pin(async move {
            let made = self.thread.run(move || socket::tcp_connect_socket(to, None, None)).await??;
            Ok(Box::new(made.connect(to).await?) as Box<dyn Transport>)
        })
    }
}
