//! A way to the API server that can be cut.

use std::sync::Arc;

use stillmesh_test_api::World;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Proxy {
    port: u16,
    open: Arc<watch::Sender<bool>>,
}

impl Proxy {
    pub async fn start(world: &World) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new(watch::channel(true).0);
        let (target, gate, tasks) = (world.address(), Arc::clone(&open), world.tasks.child("proxy"));
        world.tasks.spawn("proxy", async move {
            while let Ok((mut here, _)) = listener.accept().await {
                if !*gate.borrow() {
                    continue;
                }
                let (target, mut closed) = (target.clone(), gate.subscribe());
                tasks.spawn("connection", async move {
                    let Ok(mut there) = TcpStream::connect(&target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                        _ = closed.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { port, open }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Ends all connections and takes no new ones.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}
