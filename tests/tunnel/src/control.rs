//! The control plane of a test: publishes what it is told, signs for everybody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use parking_lot::Mutex;
use stillmesh_api::ca::{CertificateRequest, SignError, SignRequest};
use stillmesh_api::serve::{Limits, serve};
use stillmesh_api::xds::{Store, service};
use stillmesh_api::{AuthError, Authenticate, BoxFuture, Caller, Credentials, ca};
use stillmesh_core::model::{Identity, TrustDomain};
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
    /// Its first CA.
    pub issuer: Arc<Issuer>,
    signs: Arc<Mutex<Signs>>,
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
        let signs = Signs { issuer: issuer.clone(), roots: issuer.root_pem().to_owned() };
        let signs = Arc::new(Mutex::new(signs));
        let signer: Arc<dyn SignRequest> = Arc::new(Signer { signs: signs.clone(), leaf_life });
        let mut routes = tonic::service::Routes::builder();
        routes.add_service(service(store.clone(), authenticate.clone(), Arc::new(())));
        routes.add_service(ca::service(signer, authenticate));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("the port");
        let (trigger, watch) = drain::channel();
        tasks.spawn("control plane", serve(listener, tls, routes.routes(), Limits::default(), watch));
        Self { address, root_pem: issuer.root_pem().to_owned(), store, issuer, signs, drain: trigger }
    }
}

impl Control {
    /// From now on this CA signs, and these roots are given out.
    pub fn rotate(&self, issuer: &Arc<Issuer>, roots: &[&Arc<Issuer>]) {
        let roots = roots.iter().map(|issuer| issuer.root_pem()).collect();
        *self.signs.lock() = Signs { issuer: issuer.clone(), roots };
    }

    /// Ends it, connections included.
    pub fn stop(&self) {
        self.drain.start(drain::Mode::Immediate, Duration::ZERO);
    }
}

/// Lets everybody in: as who its token says, `namespace/account`, else as ztunnel.
struct Anybody;

impl Authenticate for Anybody {
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Result<Caller, AuthError>> {
        let said = credentials.bearer.and_then(|token| token.split_once('/'));
        let (namespace, account) = said.unwrap_or(("istio-system", "ztunnel"));
        let caller = Caller { namespace: namespace.into(), service_account: account.into(), node: None, pod: None };
        std::future::ready(Ok(caller)).boxed()
    }
}

/// Who signs, and which roots are given out.
struct Signs {
    issuer: Arc<Issuer>,
    roots: String,
}

/// Signs for everybody.
struct Signer {
    signs: Arc<Mutex<Signs>>,
    leaf_life: Duration,
}

impl SignRequest for Signer {
    fn sign(&self, request: CertificateRequest) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        let caller = &request.caller;
        let own = || Identity::new(TrustDomain::default(), caller.namespace.clone(), caller.service_account.clone());
        let identity = request.impersonated.clone().unwrap_or_else(own);
        let signed = {
            let signs = self.signs.lock();
            let issued = signs.issuer.issue(&request.csr_pem, &identity, Some(self.leaf_life), SystemTime::now());
            issued.map_err(|error| SignError::Invalid(error.to_string())).map(|mut entries| {
                if let Some(roots) = entries.last_mut() {
                    roots.clone_from(&signs.roots);
                }
                entries
            })
        };
        std::future::ready(signed).boxed()
    }
}
