//! Endpoints: HBONE servers as ztunnels are, that connect to what listens at their address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::{Identity, Workload};
use stillmesh_hbone::copy::tunnel;
use stillmesh_hbone::headers::ConnectHeaders;
use stillmesh_hbone::server::{Incoming, accept_tls, serve};
use stillmesh_hbone::{Limits, Memory};
use stillmesh_identity::{SecretLimits, Secrets, SystemClock};
use stillmesh_runtime::drain;
use stillmesh_runtime::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream};

use crate::client::Local;
use crate::{App, World};

/// A workload's tunnel.
pub struct Endpoint {
    /// The workload's address.
    pub address: IpAddr,
    tasks: Tasks,
}

impl Endpoint {
    pub(crate) async fn start(world: &World, workload: &Workload) -> Self {
        let address = *workload.addresses.first().expect("an address");
        let tasks = world.tasks.clone();
        let signer = Arc::new(Local(world.control.issuer.clone()));
        let secrets = Secrets::new(signer, Arc::new(SystemClock), SecretLimits::default(), &tasks);
        let identity: Identity = workload.identity();
        let listener = TcpListener::bind((address, 15008)).await.expect("the port of tunnels");
        let (trigger, watch) = drain::channel();
        let own = tasks.clone();
        tasks.spawn("endpoint", async move {
            // As long as this is held, nothing drains.
            let _trigger = trigger;
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let leaf = secrets.leaf(&identity).await.expect("a certificate");
                let (watch, own) = (watch.clone(), own.clone());
                own.clone().spawn("connection", async move {
                    let limits = Limits { memory: Memory::new(64 << 20), ..Limits::default() };
                    let accepted = accept_tls(stream, &leaf, SystemTime::now(), limits.handshake).await;
                    let Ok(session) = accepted else { return };
                    let ended = serve(session, &limits, &own, watch, move |incoming| deliver(incoming, address)).await;
                    drop(ended);
                });
            }
        });
        Self { address, tasks }
    }

    /// Starts an application at a port of this workload.
    pub async fn app(&self, name: &str) -> App {
        App::start(name, SocketAddr::new(self.address, 8080), &self.tasks).await
    }

    /// A port of this workload for an application that the test plays itself.
    pub async fn listen(&self) -> TcpListener {
        TcpListener::bind((self.address, 8080)).await.expect("the application's port")
    }
}

async fn deliver(incoming: Incoming, address: IpAddr) {
    let Some(Authority::Address(to)) = incoming.authority() else { return incoming.refuse(StatusCode::BAD_REQUEST) };
    assert_eq!(to.ip(), address, "a tunnel is asked for its own workload");
    let Ok(app) = TcpStream::connect(to).await else { return incoming.refuse(StatusCode::SERVICE_UNAVAILABLE) };
    let Ok(mut stream) = incoming.accept(&ConnectHeaders::default()) else { return };
    drop(tunnel(&mut Arc::new(app), &mut stream, &Arc::default()).await);
}
