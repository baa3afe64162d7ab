//! The control plane of a test: publishes what it is told, signs for everybody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use stillmesh_api::ca::{CertificateRequest, SignError, SignRequest};
use stillmesh_api::serve::{Limits, serve};
use stillmesh_api::xds::{Store, service};
use stillmesh_api::{AuthError, Authenticate, BoxFuture, Caller, Credentials, ca};
use stillmesh_core::model::TrustDomain;
use stillmesh_identity::{Issuer, serving_config};
use stillmesh_runtime::drain;
use stillmesh_runtime::tasks::Tasks;
use tokio::net::TcpListener;

/// The name in the control plane's certificate.
pub const HOST: &str = "istiod.istio-system.svc";

/// A running control plane.
pub struct Control {
    /// Where it listens.
    pub address: SocketAddr,
    /// What nodes trust.
    pub root_pem: String,
    /// What is published.
    pub store: Arc<Store>,
    /// Its CA.
    pub issuer: Arc<Issuer>,
    drain: drain::Trigger,
}

impl Control {
    /// Starts it on loopback.
    pub async fn start(tasks: &Tasks, leaf_life: Duration) -> Self {
        let now = SystemTime::now();
        let issuer = Arc::new(Issuer::create(&TrustDomain::default(), now).expect("a CA"));
        let serving = issuer.serving(&[HOST.to_owned()], Duration::from_secs(3600), now).expect("a certificate");
        let tls = serving_config(&serving).expect("a TLS configuration");
        let store = Arc::new(Store::new());
        let authenticate: Arc<dyn Authenticate> = Arc::new(Anybody);
        let signer: Arc<dyn SignRequest> = Arc::new(Signer { issuer: issuer.clone(), leaf_life });
        let mut routes = tonic::service::Routes::builder();
        routes.add_service(service(store.clone(), authenticate.clone(), Arc::new(())));
        routes.add_service(ca::service(signer, authenticate));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("the port");
        let (trigger, watch) = drain::channel();
        tasks.spawn("control plane", serve(listener, tls, routes.routes(), Limits::default(), watch));
        Self { address, root_pem: issuer.root_pem().to_owned(), store, issuer, drain: trigger }
    }
}

impl Control {
    /// Ends it, connections included.
    pub fn stop(&self) {
        self.drain.start(drain::Mode::Immediate, Duration::ZERO);
    }
}

/// Lets everybody in.
struct Anybody;

impl Authenticate for Anybody {
    fn authenticate<'a>(&'a self, _credentials: Credentials<'a>) -> BoxFuture<'a, Result<Caller, AuthError>> {
        let caller =
            Caller { namespace: "istio-system".into(), service_account: "ztunnel".into(), node: None, pod: None };
        std::future::ready(Ok(caller)).boxed()
    }
}

/// Signs for everybody.
struct Signer {
    issuer: Arc<Issuer>,
    leaf_life: Duration,
}

impl SignRequest for Signer {
    fn sign(&self, request: CertificateRequest) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        let identity = request.impersonated.ok_or_else(|| SignError::Impersonation("nobody named".to_owned()));
        let signed = identity.and_then(|identity| {
            self.issuer
                .issue(&request.csr_pem, &identity, Some(self.leaf_life), SystemTime::now())
                .map_err(|error| SignError::Invalid(error.to_string()))
        });
        std::future::ready(signed).boxed()
    }
}
