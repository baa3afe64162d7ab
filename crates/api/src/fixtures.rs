//! What tests of the shells share: certificates, an authenticator, a sink and an observer that write down.

use std::sync::Arc;

use futures::future::BoxFuture;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use stillmesh_runtime::drain::{self, Mode, Trigger};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::serve::{Limits, serve};
use crate::xds::{Batch, NodeId, Observer, Rejected, ResourceType, Sink};
use crate::{AuthError, Authenticate, Caller, ControlPlane, Credentials, Root, Token};

/// A root and what it signs.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn server(&self, names: &[&str]) -> Arc<rustls::ServerConfig> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.into()
    }
}

/// Lets in whoever shows the token `secret`, as `istio-system/ztunnel` on node n1.
pub(crate) struct OneToken;

impl Authenticate for OneToken {
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Result<Caller, AuthError>> {
        let known = credentials.bearer == Some("secret") && credentials.cluster_id == Some("Kubernetes");
        let answer = match known {
            true => Ok(caller()),
            false => Err(AuthError::Unauthenticated("who are you".to_owned())),
        };
        Box::pin(std::future::ready(answer))
    }
}

pub(crate) fn caller() -> Caller {
    Caller { namespace: "istio-system".into(), service_account: "ztunnel".into(), node: Some("n1".into()), pod: None }
}

/// A running server on a port of its own, on the loopback interface.
pub(crate) struct Server {
    pub(crate) address: std::net::SocketAddr,
    listener: std::net::TcpListener,
    trigger: Trigger,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(crate) async fn start(tls: Arc<rustls::ServerConfig>, routes: Routes, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
        Self::on(listener, tls, routes, limits)
    }

    fn on(listener: std::net::TcpListener, tls: Arc<rustls::ServerConfig>, routes: Routes, limits: Limits) -> Self {
        let (trigger, watch) = drain::channel();
        let own = TcpListener::from_std(listener.try_clone().unwrap()).unwrap();
        let served = async move { serve(own, tls, routes, limits, watch).await };
        #[expect(clippy::disallowed_methods, reason = "ended by stop, or with the test's runtime")]
        let task = tokio::spawn(served);
        Self { address: listener.local_addr().unwrap(), listener, trigger, task }
    }

    /// Stops, and keeps the port.
    pub(crate) async fn stop(self, mode: Mode) -> std::net::TcpListener {
        self.trigger.start(mode, std::time::Duration::from_secs(3600));
        self.task.await.unwrap().unwrap();
        self.listener
    }

    /// Stops, and serves something else on the same port.
    pub(crate) async fn replace(self, mode: Mode, tls: Arc<rustls::ServerConfig>, routes: Routes) -> Self {
        Self::on(self.stop(mode).await, tls, routes, Limits::default())
    }

    pub(crate) fn control_plane(&self, authority: &Authority) -> ControlPlane {
        ControlPlane {
            address: format!("https://{}", self.address),
            root: Root::Pem(authority.pem()),
            alt_hostname: Some("istiod.istio-system.svc".to_owned()),
            token: Token::Literal("secret".to_owned()),
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
        }
    }
}

/// Writes batches down and refuses one name.
pub(crate) struct Notebook {
    pub(crate) batches: mpsc::Sender<Batch>,
    pub(crate) refuse: Option<String>,
}

impl Notebook {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Batch>) {
        let (batches, receiver) = mpsc::channel(64);
        (Self { batches, refuse: None }, receiver)
    }
}

impl Sink for Notebook {
    async fn apply(&mut self, batch: Batch) -> Vec<Rejected> {
        let names = batch.changes.iter().map(|change| crate::codec::name(change).1);
        let refused = names.filter(|name| Some(name) == self.refuse.as_ref());
        let refused = refused.map(|name| Rejected { name, reason: "not today".to_owned() }).collect();
        self.batches.send(batch).await.unwrap();
        refused
    }
}

/// What an observer heard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Connected(String, String),
    Acked(ResourceType, u64),
    Nacked(ResourceType, Vec<Rejected>),
    Gone(String),
}

pub(crate) struct Ear(pub(crate) mpsc::Sender<Heard>);

impl Ear {
    pub(crate) fn new() -> (Arc<Self>, mpsc::Receiver<Heard>) {
        let (sender, receiver) = mpsc::channel(64);
        (Arc::new(Self(sender)), receiver)
    }
}

impl Observer for Ear {
    fn connected(&self, node: &NodeId) {
        self.0.try_send(Heard::Connected(node.id.to_string(), node.node.to_string())).unwrap();
    }

    fn acked(&self, _: &NodeId, kind: ResourceType, generation: u64) {
        self.0.try_send(Heard::Acked(kind, generation)).unwrap();
    }

    fn nacked(&self, _: &NodeId, kind: ResourceType, _: Option<u64>, rejected: &[Rejected]) {
        self.0.try_send(Heard::Nacked(kind, rejected.to_vec())).unwrap();
    }

    fn gone(&self, _: &NodeId, reason: &str) {
        // The test may be over.
        let _ = self.0.try_send(Heard::Gone(reason.to_owned()));
    }
}
