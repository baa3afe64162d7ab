//! How the parts are joined. Wiring only.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures::future::BoxFuture;
use stillmesh_api::xds::{self, Store};
use stillmesh_api::{AuthError, Authenticate, Caller, Credentials, ca, serve};
use stillmesh_cluster::{Candidate, Cluster, KubernetesSource, Terms};
use stillmesh_identity::Issuer;
use stillmesh_objects::directory::Options;
use stillmesh_objects::{DirectorySource, Source};
use stillmesh_runtime::Tasks;
use stillmesh_runtime::drain::Watch;
use stillmesh_runtime::sys::socket;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admit::{Registration, Webhook};
use crate::build::{Builder, Running};
use crate::cluster::{self, Authorities, Gateways, Roots, Summaries, TokenReviews};
use crate::config::{Config, Directory, Home, InCluster};
use crate::control::{Control, Query};
use crate::metrics::Metrics;
use crate::monitoring::{self, Shown};
use crate::serve::{Authority, JoinTokens, Nodes, ServingCertificate, Signing};
use crate::status::{self, Statuses};

/// From where the node of a one-machine mesh asks; its pods cannot use it (contract 2.1).
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127));

/// Where the controller listens.
#[derive(Debug)]
pub struct Listeners {
    /// For nodes: xDS and CA, gRPC over TLS.
    pub nodes: TcpListener,
    /// For metrics, readiness and debug pages.
    pub monitoring: TcpListener,
    /// For the API server; in a cluster only.
    pub webhook: Option<TcpListener>,
}

impl Listeners {
    /// Listens where the configuration says.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        let webhook = match &config.home {
            Home::Directory(_) => None,
            Home::Cluster(home) => Some(bind(home.webhook)?),
        };
        Ok(Self { nodes: bind(config.listen)?, monitoring: bind(config.monitoring)?, webhook })
    }
}

/// Runs the controller until the drain.
pub async fn run(config: Config, drain: Watch) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&config)?;
    run_on(config, listeners, drain).await
}

/// Runs the controller on given listeners. Nodes are served only once all objects have been read (they wait until
/// then): a controller that has just started must not tell nodes that everything is gone.
pub async fn run_on(config: Config, listeners: Listeners, drain: Watch) -> anyhow::Result<()> {
    match config.home.clone() {
        Home::Directory(home) => {
            let (plane, queries) = Plane::start(config, listeners.monitoring, drain);
            plane.on_directory(home, listeners.nodes, queries).await
        }
        Home::Cluster(_) => run_in(Cluster::connect().await?, config, listeners, drain).await,
    }
}

/// As [`run_on`], with access to a cluster that has been found already.
pub async fn run_in(cluster: Cluster, config: Config, listeners: Listeners, drain: Watch) -> anyhow::Result<()> {
    let Home::Cluster(home) = config.home.clone() else {
        anyhow::bail!("OBJECTS_DIR is for a mesh without a cluster");
    };
    let (plane, queries) = Plane::start(config, listeners.monitoring, drain);
    plane.in_cluster(cluster, home, listeners.nodes, listeners.webhook, queries).await
}

fn bind(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    socket::listen(address).with_context(|| format!("cannot listen on {address}"))
}

/// What all parts share.
struct Plane {
    config: Config,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    shown: Arc<Shown>,
    statuses: Arc<Statuses>,
    drain: Watch,
}

impl Plane {
    /// Starts what is there from the beginning: the pages that tell how far it is.
    fn start(config: Config, monitoring: TcpListener, drain: Watch) -> (Self, mpsc::Receiver<Query>) {
        let metrics = Arc::new(Metrics::new());
        let (shown, queries) = Shown::new(&config.mesh.cluster, &metrics);
        let plane = Self {
            statuses: Arc::new(Statuses::new(Arc::clone(&metrics))),
            tasks: Tasks::new("controller"),
            shown: Arc::new(shown),
            config,
            drain,
            metrics,
        };
        let node = match plane.config.home {
            Home::Directory(_) => Some(NODE),
            Home::Cluster(_) => None,
        };
        let pages = monitoring::server(&plane.shown, node).serve(monitoring, plane.drain.clone());
        plane.tasks.spawn("monitoring", pages);
        (plane, queries)
    }

    async fn on_directory(
        self,
        home: Directory,
        listener: TcpListener,
        queries: mpsc::Receiver<Query>,
    ) -> anyhow::Result<()> {
        let options = Options { settle: home.settle, ..Options::atomic() };
        let source = DirectorySource::open(&home.objects, options)
            .with_context(|| format!("cannot read OBJECTS_DIR {}", home.objects.display()))?;
        let Some(control) = self.read(source, queries).await? else { return Ok(()) };
        let trust_domain = control.builder.mesh().trust_domain.clone();
        let issuer = Issuer::load_or_create(&home.ca, &trust_domain, SystemTime::now()).context("the CA")?;
        let (_issuers, signing) = watch::channel(Arc::new(issuer));
        let account = (self.config.system_namespace.clone(), "ztunnel".into());
        let tokens = JoinTokens::new(&home.join_tokens, account, self.config.mesh.cluster.clone());
        if let Some(socket) = home.api_socket {
            let statuses = Arc::clone(&self.statuses);
            self.keep("statuses", async move { statuses.write(&status::Socket::new(&socket)).await });
        }
        self.serve(control, listener, None, signing, Arc::new(tokens)).await
    }

    async fn in_cluster(
        self,
        cluster: Cluster,
        home: InCluster,
        listener: TcpListener,
        webhook: Option<TcpListener>,
        queries: mpsc::Receiver<Query>,
    ) -> anyhow::Result<()> {
        let namespace = self.config.system_namespace.clone();
        info!(server = cluster.url(), %namespace, "following the Kubernetes API");
        let identity = format!("{}_{:08x}", home.pod, rand::random::<u32>());
        let (candidate, leader) = Candidate::new(&cluster, &namespace, cluster::LEASE, &identity, Terms::default());
        let mut campaigns = vec![self.tasks.spawn("leader election", candidate.run(self.tasks.token()))];
        // The mesh has one leader, of whatever revision; what a revision has for itself, its own replicas write.
        let lease = cluster::lease_of(&self.config.revision);
        let (own, registrar) = Candidate::new(&cluster, &namespace, &lease, &identity, Terms::default());
        campaigns.push(self.tasks.spawn("leader election", own.run(self.tasks.token())));
        self.shown.receipts.is_one_of_several();
        let watches = cluster::watches(&self.config.mesh.root_namespace);
        let source = KubernetesSource::open(&cluster, watches);
        let Some(control) = self.read(source, queries).await? else { return Ok(()) };
        let trust_domain = control.builder.mesh().trust_domain.clone();
        let mut authorities =
            Authorities::new(&cluster, &namespace, trust_domain, home.times, leader.clone(), Arc::clone(&self.shown));
        let first = tokio::select! {
            first = authorities.first() => first,
            _ = self.drain.signaled() => return Ok(()),
        };
        let (issuers, signing) = watch::channel(first);
        let crl = authorities.crl();
        self.keep("certificate authority", authorities.keep(issuers));
        let roots = Roots::new(&cluster, leader.clone(), signing.clone(), crl, Arc::clone(&self.shown));
        self.keep("roots", leader.clone().lead(move || roots.clone().keep()));
        let gateways = Gateways {
            cluster: cluster.clone(),
            leader: registrar.clone(),
            mesh_leader: leader.clone(),
            settings: (*home.waypoints).clone(),
            mesh: control.builder.mesh().clone(),
            namespace: namespace.to_string(),
            revision: self.config.revision.to_string(),
        };
        self.keep("waypoints", registrar.clone().lead(move || gateways.clone().keep()));
        let registration = Registration {
            cluster: cluster.clone(),
            leader: registrar.clone(),
            signing: signing.clone(),
            namespace: namespace.to_string(),
            name: Registration::name_of(&self.config.revision),
        };
        self.keep("webhook registration", registrar.lead(move || registration.clone().keep()));
        let own = (namespace.clone(), home.pod.clone());
        let (receipts, running) = (Arc::clone(&self.shown.receipts), control.builder.running());
        let summaries = Summaries::new(&cluster, own, receipts, running, leader.clone());
        self.keep("receipts of replicas", summaries.keep());
        if home.status {
            let statuses = Arc::clone(&self.statuses);
            let writer = Arc::new(status::Api::new(&cluster, leader.clone()));
            let write = leader.clone().lead(move || {
                let (statuses, writer) = (Arc::clone(&statuses), Arc::clone(&writer));
                async move { statuses.write(&*writer).await }
            });
            self.keep("statuses", write);
        }
        let reviews =
            TokenReviews::new(&cluster, home.audiences, self.config.mesh.cluster.clone(), control.builder.running());
        let ended = self.serve(control, listener, webhook, signing, Arc::new(reviews)).await;
        // So that the next leader need not wait.
        let ends = campaigns.iter_mut().map(|campaign| campaign.join());
        let _ = tokio::time::timeout(Duration::from_secs(2), futures::future::join_all(ends)).await;
        ended
    }

    /// Reads all objects; `None` when told to end before.
    async fn read<S: Source>(&self, source: S, queries: mpsc::Receiver<Query>) -> anyhow::Result<Option<Control<S>>> {
        let builder = match self.config.home {
            Home::Directory(_) => Builder::from_manifests(self.config.mesh.clone()),
            Home::Cluster(_) => Builder::new(self.config.mesh.clone()),
        };
        let builder = builder.in_namespace(&self.config.system_namespace);
        let (statuses, shown) = (Arc::clone(&self.statuses), Arc::clone(&self.shown));
        shown.receipts.expect(builder.running(), builder.enrolments(), self.config.trusted_node_accounts.clone());
        let mut control = Control::new(source, builder, statuses, shown, queries);
        tokio::select! {
            complete = control.read_everything() => complete?,
            _ = self.drain.signaled() => return Ok(None),
        }
        control.builder.fix_trust_domain();
        self.keep("receipts", Arc::clone(&self.shown.receipts).keep(Arc::clone(&self.statuses)));
        Ok(Some(control))
    }

    async fn serve<S: Source>(
        self,
        mut control: Control<S>,
        listener: TcpListener,
        webhook: Option<TcpListener>,
        signing: Signing,
        authenticate: Arc<dyn Authenticate>,
    ) -> anyhow::Result<()> {
        let config = &self.config;
        let certificate = ServingCertificate::issue(signing.clone(), config.certificate_names())?;
        let authority = Arc::new(Authority {
            signing,
            running: control.builder.running(),
            trusted_node_accounts: config.trusted_node_accounts.clone(),
            default_ttl: config.default_ttl,
            max_ttl: config.max_ttl,
            metrics: Arc::clone(&self.metrics),
        });
        let counted = |accounts| -> Arc<dyn Authenticate> {
            let (inner, metrics) = (Arc::clone(&authenticate), Arc::clone(&self.metrics));
            Arc::new(Counted { inner, accounts, running: control.builder.running(), metrics })
        };
        let nodes = counted(Some(config.trusted_node_accounts.clone()));
        let store: Arc<Store> = Arc::clone(&self.shown.store);
        let observer: Arc<Nodes> = Arc::clone(&self.shown.nodes);
        let routes = tonic::service::Routes::new(xds::service(store, nodes, observer))
            .add_service(ca::service(authority, counted(None)));
        info!(address = %config.listen, trust_domain = %control.builder.mesh().trust_domain, "serving nodes");
        if let Some(webhook) = webhook {
            let (mesh, metrics) = (control.builder.mesh().clone(), Arc::clone(&self.metrics));
            let server = Webhook { tls: certificate.config(), mesh, metrics };
            self.tasks.spawn("webhook", server.serve(webhook, self.drain.clone()));
        }
        let limits = serve::Limits::default();
        let serving = serve::serve(listener, certificate.config(), routes, limits, self.drain.clone());
        let mut serving = self.tasks.spawn("xds and ca", serving);
        self.keep("serving certificate", certificate.keep(Arc::clone(&self.metrics)));
        self.shown.ready();

        let ended = tokio::select! {
            ended = control.follow() => ended,
            served = serving.join() => match served {
                Some(Ok(())) => Ok(()),
                Some(Err(error)) => Err(error).context("serving nodes"),
                None => Err(anyhow::anyhow!("serving nodes ended by a panic")),
            },
            _ = self.drain.signaled() => Ok(()),
        };
        self.shown.not_ready("it is ending");
        let left = self.drain.started().map_or(Duration::ZERO, |signal| signal.left());
        self.tasks.shutdown(left).await;
        ended
    }

    /// Runs something for as long as the controller runs.
    fn keep(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let token = self.tasks.token();
        self.tasks.spawn(name, async move {
            token.run_until_cancelled(future).await;
        });
    }
}

/// Counts callers that are not let in. With accounts, only these and those of waypoints are.
struct Counted {
    inner: Arc<dyn Authenticate>,
    running: Arc<Running>,
    accounts: Option<Vec<(stillmesh_core::model::Str, stillmesh_core::model::Str)>>,
    metrics: Arc<Metrics>,
}

impl Counted {
    async fn admit(&self, credentials: Credentials<'_>) -> Result<Caller, AuthError> {
        let caller = self.inner.authenticate(credentials).await?;
        let known = |accounts: &Vec<_>| {
            accounts.iter().any(|(namespace, name)| *namespace == caller.namespace && *name == caller.service_account)
        };
        let waypoint = || self.running.is_waypoint(&caller.namespace, &caller.service_account);
        if self.accounts.as_ref().is_none_or(known) || waypoint() {
            return Ok(caller);
        }
        let who = format!("{}/{}", caller.namespace, caller.service_account);
        Err(AuthError::Denied(format!(
            "{who} is neither a node tunnel's account (CA_TRUSTED_NODE_ACCOUNTS) nor a waypoint's"
        )))
    }
}

impl Authenticate for Counted {
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Result<Caller, AuthError>> {
        Box::pin(async move {
            self.admit(credentials).await.inspect_err(|error| {
                self.metrics.authentication_failures.inc();
                warn!(%error, "a caller is not let in");
            })
        })
    }
}
