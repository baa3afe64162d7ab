//! The agent on a node of a cluster: checks, the Kubernetes API, the installed plugin, and its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stillmesh_cluster::{Cluster, KubernetesSource, Scope, Watch};
use stillmesh_core::diagnose::Diagnose as _;
use stillmesh_k8s::Kind;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::ending::{self, Own};
use super::pods::Pods;
use super::{Agent, FLOWS, PROBES_SOCKET, precheck, until_cancelled};
use crate::api::Questions;
use crate::config::Node;
use crate::install::{self, Entry, Installer, files};
use crate::intake::{self, Desk};
use crate::known::Keeper;
use crate::netns::Opener;
use crate::netns::proc::Processes;
use crate::writeback::Sink;

/// How often what keeps the agent from starting is looked at again.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// Of the time for leaving, what is kept for the last files.
const MARGIN: Duration = Duration::from_millis(500);

impl Agent {
    pub(super) async fn on_node(&self, node: &Node) -> anyhow::Result<()> {
        tokio::select! {
            () = self.may_start(node) => {}
            _ = self.drain.signaled() => return Ok(()),
        }
        let cluster = Cluster::connect().await.context("the Kubernetes API cannot be used")?;
        let client = cluster.client();
        self.write_to(Sink::Cluster(client.clone()));
        let (own, known) = watch::channel(Own::Unknown);
        let (namespace, name) = (node.namespace.clone(), node.daemonset.clone());
        let follow = ending::follow(client.clone(), namespace, name, self.config.node.clone(), own);
        self.tasks.spawn("own daemonset", until_cancelled(self.tasks.token(), follow));

        let watches = vec![
            Watch::all(Kind::Namespace),
            Watch { kind: Kind::Pod, scope: Scope::Node(self.config.node.clone()) },
            Watch::all(Kind::Bypass),
            Watch::all(Kind::Quarantine),
        ];
        let mut source = KubernetesSource::open(&cluster, watches);
        let locate = Arc::new(Processes::new(&node.proc_dir));
        let mut pods = Pods::new(&self.config, self.shared.clone(), locate, &self.tasks)?;
        let (asks, mut asked) = mpsc::channel(intake::QUEUE);
        let questions = Questions::new(client.clone());
        pods.keep_known(&self.config.state_dir);
        pods.ask(questions.clone(), asks.clone());
        if node.probe_snat {
            pods.translate_probes();
        }
        let opener = Opener { proc_dir: Some(node.proc_dir.clone()) };
        let desk = Desk {
            asks,
            questions: Some(questions),
            opener,
            writer: self.shared.writer.clone(),
            metrics: self.shared.metrics.clone(),
        };
        if !self.begin(&mut pods, &mut source, desk).await? {
            return Ok(());
        }
        let installing = self.install(node)?;
        self.health.set("objects", None);
        tracing::info!(node = self.config.node, pods = pods.len(), "the agent serves its node");
        let ended = self.work(&mut pods, &mut source, &mut asked).await;
        installing.cancel();

        let known = *known.borrow();
        if ending::ask(client, &node.namespace, &node.daemonset, &self.config.node, known).await == Own::Leaves {
            self.take_out(node, &mut pods).await;
        } else {
            tracing::info!("the agent ends; what it put in place stays");
        }
        ended
    }

    /// Returns when nothing speaks against starting; says what does.
    async fn may_start(&self, node: &Node) {
        let mut said = String::new();
        loop {
            let places = node.places.clone();
            let beside_istio = node.beside_istio;
            let check = move || -> Result<(), (String, &'static str)> {
                precheck::check().map_err(|error| (error.to_string(), error.remedy()))?;
                let istio = if beside_istio { Ok(None) } else { install::istio(&places) };
                match istio.map_err(|error| (error.to_string(), error.remedy()))? {
                    Some(path) => Err((
                        format!("istio-cni is active on this node, by {}: no pod may have two owners", path.display()),
                        "uninstall istio-cni, or keep this agent off its nodes; CNI_BESIDE_ISTIO=true to go on anyway",
                    )),
                    None => Ok(()),
                }
            };
            let checked = tokio::task::spawn_blocking(check).await;
            match checked {
                Ok(Ok(())) => return self.health.set("node", None),
                Ok(Err((reason, remedy))) => {
                    self.health.set("node", Some(format!("{reason}; {remedy}")));
                    if said != reason {
                        tracing::error!(reason, remedy, "the agent does not start on this node");
                        said = reason;
                    }
                }
                Err(error) => tracing::error!(%error, "the check of this node broke off"),
            }
            sleep(CHECK_EVERY).await;
        }
    }

    /// Keeps the plugin installed until the token is cancelled.
    fn install(&self, node: &Node) -> anyhow::Result<tokio_util::sync::CancellationToken> {
        let program = std::env::current_exe().context("the agent's own program cannot be found")?;
        let run_dir = self.config.plugin_socket.parent().map(PathBuf::from).unwrap_or_default();
        let entry = Entry {
            log_level: node.plugin_log_level.clone(),
            run_dir,
            state_dir: self.config.state_dir.clone(),
            exclude_namespaces: self.config.enrolment.excluded_namespaces.clone(),
            pod_namespace: self.config.enrolment.system_namespace.clone(),
        };
        let installer = Installer::new(node.places.clone(), program, entry);
        let (state, mut news) = watch::channel(Some("being installed".to_owned()));
        self.health.set("plugin", Some("being installed".to_owned()));
        let token = self.tasks.token().child_token();
        let keep = install::keep(installer, state, self.shared.metrics.clone());
        self.tasks.spawn("install", until_cancelled(token.clone(), keep));
        let health = self.health.clone();
        let tell = async move {
            while news.changed().await.is_ok() {
                let state = news.borrow_and_update().clone();
                health.set("plugin", state);
            }
        };
        self.tasks.spawn("installed", until_cancelled(self.tasks.token(), tell));
        Ok(token)
    }

    /// The agent is being taken out of the cluster: no new pod asks for it, every pod leaves the mesh, nothing is left.
    async fn take_out(&self, node: &Node, pods: &mut Pods) {
        let signal = self.drain.signaled().await;
        let deadline = signal.deadline.max(Instant::now() + MARGIN);
        tracing::info!(pods = pods.len(), left = ?signal.left(), "the agent is taken out: so is all that it put in place");
        let places = node.places.clone();
        match tokio::task::spawn_blocking(move || install::remove(&places)).await {
            Ok(Ok(())) => tracing::info!("the CNI plugin is removed"),
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, remedy = error.remedy(), "the CNI plugin cannot be removed");
            }
            Err(error) => tracing::error!(%error, "removing the CNI plugin broke off"),
        }
        let _ = self.shared.leaving.set(deadline - MARGIN * 2);
        if timeout_at(deadline - MARGIN, pods.leave()).await.is_err() {
            tracing::warn!(pods = pods.len(), "not every pod was out of the mesh in time");
        }
        let forgotten = Keeper::new(&self.config.state_dir).remove().and_then(|()| {
            for belief in self.shared.beliefs.load()? {
                self.shared.beliefs.delete(&belief.uid)?;
            }
            files::remove(&self.config.plugin_socket)?;
            files::remove(&self.config.zds_socket)?;
            files::remove(&self.config.zds_socket.with_file_name(PROBES_SOCKET))?;
            files::remove(&self.config.zds_socket.with_file_name(FLOWS))
        });
        if let Err(error) = forgotten {
            tracing::warn!(%error, "something of the agent's own is left on the node");
        }
    }
}
