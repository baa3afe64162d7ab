//! Two ends of real tunnels in one process: real TLS and HTTP/2 over pipes, so that time can be paused.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use http::StatusCode;
use parking_lot::Mutex;
use stillmesh_core::attrs::Authority;
use stillmesh_core::model::Identity;
use stillmesh_identity::fixtures::{LocalCa, identity};
use stillmesh_identity::{Leaf, Secrets};
use stillmesh_runtime::drain;
use stillmesh_runtime::tasks::Tasks;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf, duplex, split,
};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::copy::{self, CopyError, Socket};
use crate::headers::ConnectHeaders;
use crate::pool::{Dial, Dialling, Key, Opened, Pool, Transport};
use crate::server::{Incoming, ServeError, accept_tls, serve};
use crate::{Limits, Memory, Stream, TunnelError};

/// What a pipe holds, bytes: about what a socket does.
const PIPE: usize = 256 << 10;

/// What an application's socket holds, bytes.
const SOCKET: usize = 8 << 10;

pub(crate) const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 15008);

impl Socket for DuplexStream {
    fn poll_read(&mut self, cx: &mut Context<'_>, slices: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        let mut read = 0;
        for slice in slices {
            let mut free = ReadBuf::new(slice);
            match Pin::new(&mut *self).poll_read(cx, &mut free)? {
                Poll::Ready(()) => read += free.filled().len(),
                Poll::Pending if read == 0 => return Poll::Pending,
                Poll::Pending => {}
            }
            if free.remaining() > 0 {
                break;
            }
        }
        Poll::Ready(Ok(read))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write_vectored(cx, slices)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(self), cx)
    }
}

/// Both ends.
pub(crate) struct World {
    pub(crate) ca: Arc<LocalCa>,
    pub(crate) secrets: Secrets,
    pub(crate) tasks: Tasks,
    pub(crate) net: Arc<Net>,
    pub(crate) limits: Limits,
    pub(crate) apps: Arc<Apps>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Limits { memory: Memory::new(64 << 20), ..Limits::default() })
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let tasks = Tasks::new("test");
        let ca = LocalCa::new();
        let secrets = ca.secrets(&tasks);
        Self { ca, secrets, tasks, net: Arc::default(), limits, apps: Arc::default() }
    }

    pub(crate) fn pool(&self) -> Pool {
        Pool::new(self.limits.clone(), self.secrets.clone(), Arc::clone(&self.net) as Arc<dyn Dial>, self.tasks.clone())
    }

    /// A server at [`PEER`] as `details`.
    pub(crate) fn server(&self) -> Server {
        self.server_with(self.ca.leaf(&identity("details")), self.limits.clone())
    }

    pub(crate) fn server_with(&self, leaf: Arc<Leaf>, limits: Limits) -> Server {
        let mut connections = self.net.listen();
        let (drain, watch) = drain::channel();
        let (ended, endings) = mpsc::channel(1000);
        let (tasks, apps, clock) = (self.tasks.clone(), Arc::clone(&self.apps), self.ca.clock());
        self.tasks.spawn("server", async move {
            while let Some(io) = connections.recv().await {
                let (leaf, limits, watch, now) = (Arc::clone(&leaf), limits.clone(), watch.clone(), clock.now());
                let (apps, own, ended) = (Arc::clone(&apps), tasks.clone(), ended.clone());
                tasks.spawn("connection", async move {
                    let Ok(session) = accept_tls(io, &leaf, now, limits.handshake).await else { return };
                    let served = serve(session, &limits, &own, watch, move |incoming| {
                        let apps = Arc::clone(&apps);
                        async move { apps.run(incoming).await }
                    });
                    let _ = ended.send(served.await).await;
                });
            }
        });
        Server { drain, endings }
    }
}

pub(crate) struct Server {
    pub(crate) drain: drain::Trigger,
    /// How its connections ended.
    pub(crate) endings: mpsc::Receiver<Result<(), ServeError>>,
}

/// Addresses and who listens there.
#[derive(Default)]
pub(crate) struct Net {
    listeners: Mutex<HashMap<SocketAddr, mpsc::Sender<DuplexStream>>>,
    pub(crate) dials: AtomicUsize,
    /// Set: dials wait for it.
    pub(crate) gate: Mutex<Option<Arc<Semaphore>>>,
    /// Set: what is dialled from now on takes this long each way, and can be cut.
    delay: Mutex<Option<(Tasks, Duration)>>,
    relays: Mutex<Vec<watch::Sender<bool>>>,
}

impl Net {
    /// Takes over what is dialled at [`PEER`].
    pub(crate) fn listen(&self) -> mpsc::Receiver<DuplexStream> {
        let (sender, receiver) = mpsc::channel(1000);
        self.listeners.lock().insert(PEER, sender);
        receiver
    }

    /// What is dialled from now on takes this long each way.
    pub(crate) fn relay(&self, tasks: &Tasks, delay: Duration) {
        *self.delay.lock() = Some((tasks.clone(), delay));
    }

    /// From now on nothing arrives on this relayed connection, counted from 0, and nobody is told.
    pub(crate) fn cut(&self, number: usize) {
        self.relays.lock()[number].send_replace(true);
    }

    fn pipe(&self) -> (DuplexStream, DuplexStream) {
        let Some((tasks, delay)) = self.delay.lock().clone() else { return duplex(PIPE) };
        let (sender, cut) = watch::channel(false);
        self.relays.lock().push(sender);
        let ((near, near_end), (far_end, far)) = (duplex(PIPE), duplex(PIPE));
        let ((near_read, near_write), (far_read, far_write)) = (split(near_end), split(far_end));
        tasks.spawn("wire", carry(near_read, far_write, delay, cut.clone()));
        tasks.spawn("wire", carry(far_read, near_write, delay, cut));
        (near, far)
    }

    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }
}

impl Dial for Net {
    fn dial<'a>(&'a self, key: &'a Key) -> Dialling<'a> {
        Box::pin(async move {
            self.dials.fetch_add(1, Ordering::Relaxed);
            let gate = self.gate.lock().clone();
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            let listener = self.listeners.lock().get(&key.destination).cloned();
            let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
            let (near, far) = self.pipe();
            listener.send(far).await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(Box::new(near) as Box<dyn Transport>)
        })
    }
}

/// One direction of a long wire.
async fn carry(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    delay: Duration,
    mut cut: watch::Receiver<bool>,
) {
    let (sender, mut receiver) = mpsc::channel(64);
    let reading = async move {
        loop {
            let mut piece = BytesMut::with_capacity(PIPE);
            if from.read_buf(&mut piece).await.unwrap_or(0) == 0 {
                return;
            }
            if sender.send((Instant::now() + delay, piece)).await.is_err() {
                return;
            }
        }
    };
    let writing = async {
        while let Some((at, piece)) = receiver.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::select! {
        _ = futures::future::join(reading, writing) => {}
        () = async { drop(cut.wait_for(|cut| *cut).await) } => std::future::pending().await,
    }
}

/// The applications behind a server; an authority's name says which.
#[derive(Default)]
pub(crate) struct Apps {
    /// Streams held by `stuck`.
    pub(crate) stuck: Mutex<Vec<Stream>>,
    pub(crate) held: Notify,
    /// The applications' ends of `socket`.
    pub(crate) sockets: Mutex<Vec<DuplexStream>>,
    /// How copying for `socket` ended.
    pub(crate) copied: Mutex<Vec<Result<(), CopyError>>>,
    pub(crate) asked: AtomicUsize,
    /// What the last CONNECT said of itself.
    pub(crate) headers: Mutex<Option<ConnectHeaders>>,
}

impl Apps {
    async fn run(&self, incoming: Incoming) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        *self.headers.lock() = Some(incoming.headers());
        let Some(Authority::Name(name, port)) = incoming.authority() else {
            return incoming.refuse(StatusCode::BAD_REQUEST);
        };
        let accept = |incoming: Incoming| incoming.accept(&ConnectHeaders::default()).unwrap();
        match &*name {
            "echo" => {
                let (mut from, mut to) = tokio::io::split(accept(incoming));
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            }
            // Answers what it read in all, after the end.
            "count" => {
                let mut stream = accept(incoming);
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).await.is_ok() {
                    let _ = stream.write_all(format!("{} {:x}", bytes.len(), checksum(&bytes)).as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
            // Sends as many MiB as the port says, and its end at once.
            "source" => {
                let mut stream = accept(incoming);
                let _ = stream.write_all(&pattern(usize::from(port) << 20)).await;
                let _ = stream.shutdown().await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
            "stuck" => {
                self.stuck.lock().push(accept(incoming));
                self.held.notify_one();
            }
            // Copied to and from a socket, as a ztunnel does.
            "socket" => {
                let mut stream = accept(incoming);
                let (mut near, far) = duplex(SOCKET);
                self.sockets.lock().push(far);
                self.held.notify_one();
                let copied = copy::tunnel(&mut near, &mut stream, &Arc::default()).await;
                drop(near);
                self.copied.lock().push(copied);
                self.held.notify_one();
            }
            "refuse" => incoming.refuse(StatusCode::from_u16(port).unwrap()),
            "silent" => std::future::pending().await,
            "dropped" => drop(incoming),
            // Takes a first byte, then breaks.
            "broken" => {
                let mut stream = accept(incoming);
                let _ = stream.read(&mut [0]).await;
                stream.reset();
            }
            _ => incoming.refuse(StatusCode::SERVICE_UNAVAILABLE),
        }
    }
}

pub(crate) fn key() -> Key {
    key_to(PEER)
}

pub(crate) fn key_to(destination: SocketAddr) -> Key {
    let expected: Vec<Identity> = vec![identity("details")];
    Key { source: identity("page"), source_ip: Ipv4Addr::new(10, 0, 0, 1).into(), destination, expected }
}

pub(crate) async fn open(pool: &Pool, name: &str) -> Result<Opened, TunnelError> {
    let (name, port) = name.split_once(':').unwrap_or((name, "80"));
    let authority = Authority::Name(name.into(), port.parse().unwrap());
    pool.open(&key(), &authority, &ConnectHeaders::default()).await
}

pub(crate) async fn stream(pool: &Pool, name: &str) -> Stream {
    open(pool, name).await.unwrap().stream
}

/// Sends and expects the same back.
pub(crate) async fn echoes(stream: &mut Stream, text: &[u8]) {
    let (mut from, mut to) = split(stream);
    let writing = async {
        to.write_all(text).await.unwrap();
        to.flush().await.unwrap();
    };
    let mut back = vec![0; text.len()];
    let both = async { tokio::join!(writing, from.read_exact(&mut back)) };
    let (_, read) = timeout(Duration::from_secs(60), both).await.expect("the echo comes");
    read.unwrap();
    assert_eq!(back, text);
}

/// Bytes that do not repeat soon.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(14_695_981_039_346_656_037, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(1_099_511_628_211))
}

/// Lets all tasks run until they wait, without letting time pass beyond a millisecond.
pub(crate) async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
}
