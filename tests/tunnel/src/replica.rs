//! A waypoint's replica as ztunnels see it: takes every CONNECT, says its own name, then sends back what it gets.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stillmesh_core::decide::HBONE_PORT;
use stillmesh_core::fixtures;
use stillmesh_core::model::Identity;
use stillmesh_hbone::Limits;
use stillmesh_hbone::headers::ConnectHeaders;
use stillmesh_hbone::server::{Incoming, accept_tls, serve};
use stillmesh_identity::{Issuer, SecretLimits, Secrets, SystemClock};
use stillmesh_runtime::drain::{self, Mode, Watch};
use stillmesh_runtime::tasks::Tasks;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::Pod;
use crate::mesh::PATIENCE;
use crate::peer::Signer;

/// A replica in a pod's namespace.
pub struct Replica {
    trigger: drain::Trigger,
    tasks: Tasks,
}

#[derive(Clone)]
struct Server {
    name: String,
    identity: Identity,
    secrets: Secrets,
    tasks: Tasks,
    watch: Watch,
}

impl Replica {
    /// Starts one at `pod`, as the account of the pod's workload.
    pub async fn start(pod: &Pod, issuer: Arc<Issuer>) -> Self {
        let tasks = Tasks::new("replica");
        let (trigger, watch) = drain::channel();
        let limits = SecretLimits::default();
        let secrets = Secrets::new(Arc::new(Signer { issuer }), Arc::new(SystemClock), limits, &tasks);
        let identity = fixtures::workload(&pod.name).identity();
        let server = Server { name: pod.name.clone(), identity, secrets, tasks: tasks.clone(), watch };
        let listener = pod.listen(HBONE_PORT).await;
        let owned = tasks.clone();
        tasks.spawn("accept", async move {
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => drop(owned.spawn("session", server.clone().session(stream))),
                        Err(_) => return,
                    },
                    // It listens no more.
                    _ = server.watch.signaled() => return,
                }
            }
        });
        Self { trigger, tasks }
    }

    /// Ends as a waypoint does: takes nothing new, tells its clients, and lets go on what is open.
    pub fn drain(&self) {
        self.trigger.start(Mode::Graceful, PATIENCE);
    }

    /// Ends at once.
    pub async fn kill(self) {
        self.tasks.shutdown(Duration::ZERO).await;
    }
}

impl Server {
    async fn session(self, stream: TcpStream) {
        let Ok(leaf) = self.secrets.leaf(&self.identity).await else { return };
        let Ok(session) = accept_tls(stream, &leaf, SystemTime::now(), PATIENCE).await else { return };
        let name = self.name;
        let handle = move |incoming| echo(incoming, name.clone());
        let _ = serve(session, &Limits::default(), &self.tasks, self.watch, handle).await;
    }
}

async fn echo(incoming: Incoming, name: String) {
    let Ok(mut stream) = incoming.accept(&ConnectHeaders::default()) else { return };
    let _ = stream.write_all(format!("{name}\n").as_bytes()).await;
    let _ = stream.flush().await;
    let (mut read, mut write) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}
