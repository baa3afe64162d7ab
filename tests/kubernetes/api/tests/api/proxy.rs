//! A way to the API server that can be cut.

use std::sync::Arc;
use std::time::Duration;

use stillmesh_test_api::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Proxy {
    port: u16,
    open: Arc<watch::Sender<bool>>,
    delay: Arc<watch::Sender<Duration>>,
}

impl Proxy {
    pub async fn start(world: &World) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = Arc::new(watch::channel(true).0);
        let delay = Arc::new(watch::channel(Duration::ZERO).0);
        let wait = Arc::clone(&delay);
        let (target, gate, tasks) = (world.address(), Arc::clone(&open), world.tasks.child("proxy"));
        world.tasks.spawn("proxy", async move {
            while let Ok((mut here, _)) = listener.accept().await {
                if !*gate.borrow() {
                    continue;
                }
                let (target, mut closed, wait) = (target.clone(), gate.subscribe(), Arc::clone(&wait));
                tasks.spawn("connection", async move {
                    let Ok(mut there) = TcpStream::connect(&target).await else { return };
                    let ((from_here, to_here), (from_there, to_there)) = (here.split(), there.split());
                    tokio::select! {
                        () = carry(from_here, to_there, &wait) => {}
                        () = carry(from_there, to_here, &wait) => {}
                        _ = closed.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { port, open, delay }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Keeps back whatever is sent, either way, for so long.
    pub fn slow(&self, delay: Duration) {
        self.delay.send_replace(delay);
    }

    /// Ends all connections and takes no new ones.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

/// Until either side ends.
async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, delay: &watch::Sender<Duration>) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let wait = *delay.borrow();
        tokio::time::sleep(wait).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
