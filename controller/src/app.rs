//! How the parts are joined. Wiring only.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use stillmesh_api::xds::{self, Store};
use stillmesh_api::{AuthError, Authenticate, Caller, Credentials, ca, serve};
use stillmesh_identity::Issuer;
use stillmesh_k8s::{Finding, Severity};
use stillmesh_objects::directory::Options;
use stillmesh_objects::{Change, DirectorySource, Source, Update};
use stillmesh_runtime::Tasks;
use stillmesh_runtime::drain::Watch;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::Config;
use crate::build::Builder;
use crate::metrics::Metrics;
use crate::monitoring::{self, Shown};
use crate::serve::{Authority, JoinTokens, Nodes, ServingCertificate};
use crate::status::Statuses;

/// How long after a change findings are looked for: most of them come and go while objects arrive.
const FINDINGS_AFTER: Duration = Duration::from_secs(1);

/// Where the controller listens.
#[derive(Debug)]
pub struct Listeners {
    /// For nodes: xDS and CA, gRPC over TLS.
    pub nodes: TcpListener,
    /// For metrics, readiness and debug pages.
    pub monitoring: TcpListener,
}

impl Listeners {
    /// Listens where the configuration says.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        Ok(Self { nodes: bind(config.listen).await?, monitoring: bind(config.monitoring).await? })
    }
}

/// Runs the controller until the drain.
pub async fn run(config: Config, drain: Watch) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&config).await?;
    run_on(config, listeners, drain).await
}

/// Runs the controller on given listeners. Nodes are served only once all objects have been read (they wait until
/// then): a controller that has just started must not tell nodes that everything is gone.
pub async fn run_on(config: Config, listeners: Listeners, drain: Watch) -> anyhow::Result<()> {
    let tasks = Tasks::new("controller");
    let metrics = Arc::new(Metrics::new());
    let store = Arc::new(Store::new());
    let nodes = Arc::new(Nodes::new(Arc::clone(&metrics)));
    let shown = Arc::new(Shown {
        ready: AtomicBool::new(false),
        findings: ArcSwap::default(),
        store: Arc::clone(&store),
        nodes: Arc::clone(&nodes),
        metrics: Arc::clone(&metrics),
    });
    tasks.spawn("monitoring", monitoring::server(&shown).serve(listeners.monitoring, drain.clone()));

    let options = Options { settle: config.objects_settle, ..Options::atomic() };
    let source = DirectorySource::open(&config.objects_dir, options)
        .with_context(|| format!("cannot read OBJECTS_DIR {}", config.objects_dir.display()))?;
    let statuses = Arc::new(Statuses::new(Arc::clone(&metrics)));
    let mut control = Control {
        source,
        builder: Builder::new(config.mesh.clone()),
        statuses: Arc::clone(&statuses),
        shown: Arc::clone(&shown),
        written: Arc::default(),
        told: BTreeSet::new(),
        look: None,
    };
    tokio::select! {
        complete = control.read_everything() => complete?,
        _ = drain.signaled() => return Ok(()),
    }
    control.builder.fix_trust_domain();

    let trust_domain = control.builder.mesh().trust_domain.clone();
    let issuer = Issuer::load_or_create(&config.ca_dir, &trust_domain, SystemTime::now()).context("the CA")?;
    let issuer = Arc::new(issuer);
    if let Some(expiry) = stillmesh_identity::expiry(issuer.bundle().roots()) {
        metrics.root_expires(expiry);
    }
    let certificate = ServingCertificate::issue(Arc::clone(&issuer), config.certificate_names())?;
    let authority = Arc::new(Authority {
        issuer,
        running: control.builder.running(),
        trusted_node_accounts: config.trusted_node_accounts.clone(),
        default_ttl: config.default_ttl,
        metrics: Arc::clone(&metrics),
    });
    let account = (config.system_namespace.clone(), "ztunnel".into());
    let tokens = JoinTokens::new(&config.join_tokens, account, config.mesh.cluster.clone());
    let authenticate: Arc<dyn Authenticate> = Arc::new(Counted { inner: tokens, metrics: Arc::clone(&metrics) });
    let routes = tonic::service::Routes::new(xds::service(store, Arc::clone(&authenticate), nodes))
        .add_service(ca::service(authority, authenticate));
    info!(address = %config.listen, %trust_domain, "serving nodes");
    let serving = serve::serve(listeners.nodes, certificate.config(), routes, serve::Limits::default(), drain.clone());
    let mut serving = tasks.spawn("xds and ca", serving);
    tasks.spawn("serving certificate", cancelled_with(&tasks, certificate.keep()));
    if let Some(socket) = config.api_socket.clone() {
        let write = async move { statuses.write(socket).await };
        tasks.spawn("statuses", cancelled_with(&tasks, write));
    }
    shown.ready.store(true, Ordering::Relaxed);

    let ended = tokio::select! {
        ended = control.follow() => ended,
        served = serving.join() => match served {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(error).context("serving nodes"),
            None => Err(anyhow::anyhow!("serving nodes ended by a panic")),
        },
        _ = drain.signaled() => Ok(()),
    };
    shown.ready.store(false, Ordering::Relaxed);
    let left = drain.started().map_or(Duration::ZERO, |signal| signal.left());
    tasks.shutdown(left).await;
    ended
}

async fn bind(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// A future that ends with its group.
fn cancelled_with<F: Future<Output = ()> + Send>(tasks: &Tasks, future: F) -> impl Future<Output = ()> + Send + use<F> {
    let token = tasks.token();
    async move {
        token.run_until_cancelled(future).await;
    }
}

/// Objects in, resources out.
struct Control {
    source: DirectorySource,
    builder: Builder,
    statuses: Arc<Statuses>,
    shown: Arc<Shown>,
    /// What is wrong with the manifests themselves.
    written: Arc<[Finding]>,
    /// Findings that have been logged.
    told: BTreeSet<Finding>,
    /// When findings are looked for.
    look: Option<Instant>,
}

impl Control {
    async fn read_everything(&mut self) -> anyhow::Result<()> {
        loop {
            let update = self.source.next().await.context("the directory of objects cannot be read")?;
            let complete = update.complete;
            self.take(update);
            if complete {
                return Ok(());
            }
        }
    }

    async fn follow(&mut self) -> anyhow::Result<()> {
        loop {
            let look = self.look;
            tokio::select! {
                update = self.source.next() => {
                    self.take(update.context("the directory of objects cannot be read any more")?);
                }
                () = tokio::time::sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                    self.look = None;
                    self.tell_findings();
                }
            }
        }
    }

    fn take(&mut self, update: Update) {
        for change in &update.changes {
            let event = match change {
                Change::Set(_) => "set",
                Change::Removed(_) => "delete",
            };
            self.shown.metrics.event(change.key().kind.as_str(), event);
        }
        let built = self.builder.apply(&update);
        if !built.changes.is_empty() {
            let resources = built.changes.len();
            let generation = self.shown.store.publish(built.changes);
            self.shown.metrics.published(generation);
            debug!(objects = update.changes.len(), resources, generation, "published");
        }
        self.shown.metrics.services.set(i64::try_from(self.builder.service_count()).unwrap_or(i64::MAX));
        self.statuses.take(built.verdicts);
        if let Some(findings) = update.findings {
            self.written = findings;
        }
        self.look.get_or_insert_with(|| Instant::now() + FINDINGS_AFTER);
    }

    fn tell_findings(&mut self) {
        let all: BTreeSet<Finding> = self.written.iter().cloned().chain(self.builder.findings()).collect();
        for finding in all.difference(&self.told) {
            match finding.severity {
                Severity::Error => error!(error.code = finding.code, "{finding}"),
                Severity::Warning => warn!(error.code = finding.code, "{finding}"),
            }
        }
        self.shown.metrics.findings.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
        self.shown.findings.store(Arc::new(all.iter().cloned().collect()));
        self.told = all;
    }
}

/// Counts callers that are not let in.
struct Counted {
    inner: JoinTokens,
    metrics: Arc<Metrics>,
}

impl Authenticate for Counted {
    fn authenticate<'a>(&'a self, credentials: Credentials<'a>) -> BoxFuture<'a, Result<Caller, AuthError>> {
        Box::pin(async move {
            self.inner.authenticate(credentials).await.inspect_err(|error| {
                self.metrics.authentication_failures.inc();
                warn!(%error, "a caller is not let in");
            })
        })
    }
}
