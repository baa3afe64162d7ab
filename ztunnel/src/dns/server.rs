//! The sockets of a pod's DNS proxy. Questions in flight are bounded; what is too much is refused, what is malformed
//! is refused or met with silence, and a client that does not read or write on a stream is closed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use nix::sys::socket::SockaddrStorage;
use socket2::SockRef;
use stillmesh_runtime::accept::Acceptor;
use stillmesh_runtime::drain::Watch;
use stillmesh_runtime::sys::socket::Mark;
use stillmesh_runtime::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::answer::Answer;
use super::forward::Forwarder;
use super::message::{self, Malformed, Question, Transport};
use crate::capture::Pod;
use crate::node::Node;
use crate::record::labels::{Text, Word};
use crate::record::metrics::DnsLabels;

/// Streams of one pod at a time; more wait in the kernel's queue.
const STREAMS: usize = 64;
/// How long a stream may be idle, and how long its client may take to read an answer (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// Between two looks at a socket that has left its group.
const LAST_LOOK: Duration = Duration::from_millis(5);
/// More than the kernel queues at a socket.
const LONGEST_QUEUE: usize = 65_536;
/// A question is small; larger datagrams are cut off and refused as malformed.
const LARGEST_QUESTION: usize = 4096;

/// One pod's DNS proxy.
#[derive(Clone, Debug)]
pub struct Server {
    pod: Arc<Pod>,
    node: Arc<Node>,
    tasks: Tasks,
    watch: Watch,
    places: Arc<Semaphore>,
}

impl Server {
    /// A proxy that does not listen yet. What it starts is owned by `tasks`.
    pub fn new(pod: Arc<Pod>, node: Arc<Node>, tasks: &Tasks, watch: Watch) -> Self {
        let in_flight = node.config.dns.as_ref().map_or(1, |dns| dns.in_flight);
        Self { pod, node, tasks: tasks.clone(), watch, places: Arc::new(Semaphore::new(in_flight)) }
    }

    /// Serves both transports on the current runtime until the pod drains.
    pub fn start(self, udp: Arc<UdpSocket>, tcp: Arc<TcpListener>) {
        let acceptor = Acceptor::new("dns", tcp, STREAMS);
        let (datagrams, streams, tasks) = (self.clone(), self.clone(), self.tasks);
        tasks.spawn("dns udp", async move { datagrams.serve_udp(udp).await });
        tasks.spawn("dns tcp", async move { streams.serve_tcp(acceptor).await });
    }

    async fn serve_udp(&self, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; LARGEST_QUESTION];
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut buffer) => received,
                _ = self.watch.signaled() => break,
            };
            match received {
                Ok((length, client)) => self.take(&socket, buffer.get(..length).unwrap_or_default(), client),
                // An ICMP error of an earlier answer; the socket itself is fine.
                Err(error) => {
                    tracing::debug!(%error, "DNS socket");
                    tokio::task::yield_now().await;
                }
            }
        }
        // A socket that is somebody else's too is left as it is. Otherwise what is sent from now on goes to the other
        // ztunnel that listens here, if there is one; what waits is answered first.
        if self.pod.is_shared() {
            return;
        }
        if let Err(error) = leave(&socket) {
            tracing::debug!(%error, "a DNS socket closes with what may wait in it");
        }
        for _ in 0..2 {
            for _ in 0..LONGEST_QUEUE {
                let Some((length, client)) = waiting(&socket, &mut buffer) else { break };
                self.take(&socket, buffer.get(..length).unwrap_or_default(), client);
            }
            // The kernel may be about to queue one that came before.
            tokio::time::sleep(LAST_LOOK).await;
        }
    }

    /// One question, answered at the same socket.
    fn take(&self, socket: &Arc<UdpSocket>, question: &[u8], client: SocketAddr) {
        let Some(place) = self.place() else {
            if let Some(reply) = message::overloaded(question) {
                let _ = socket.try_send_to(&reply, client);
            }
            return;
        };
        let (server, socket, question) = (self.clone(), socket.clone(), question.to_vec());
        self.tasks.spawn("dns question", async move {
            let _place = place;
            if let Some(reply) = server.answer(&question, Transport::Udp).await
                && let Err(error) = socket.send_to(&reply, client).await
            {
                tracing::debug!(%error, "DNS answer not sent");
            }
        });
    }

    async fn serve_tcp(&self, acceptor: Acceptor<Arc<TcpListener>>) {
        loop {
            let accepted = tokio::select! {
                accepted = acceptor.accept() => accepted,
                _ = self.watch.signaled() => return,
            };
            let server = self.clone();
            self.tasks.spawn("dns stream", async move {
                let _permit = accepted.permit;
                tokio::select! {
                    ended = server.stream(accepted.connection) => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, "DNS stream");
                        }
                    }
                    _ = server.watch.signaled() => {}
                }
            });
        }
    }

    /// Questions of one stream, one after the other.
    async fn stream(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let Ok(Ok(length)) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
            let mut question = vec![0; usize::from(length)];
            timeout(IDLE, stream.read_exact(&mut question)).await??;
            let reply = match self.place() {
                Some(_place) => self.answer(&question, Transport::Tcp).await,
                None => message::overloaded(&question),
            };
            let Some(reply) = reply else { return Ok(()) };
            let length = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend(reply);
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.places.clone().try_acquire_owned().ok();
        if place.is_none() {
            self.node.metrics.refuse("dns_in_flight");
        }
        place
    }

    /// The reply to a question; `None` is silence.
    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = match Question::parse(bytes) {
            Ok(question) => question,
            Err(malformed) => {
                self.node.metrics.refuse("dns_malformed");
                return match malformed {
                    Malformed::Reply(reply) => Some(reply),
                    Malformed::Silence => None,
                };
            }
        };
        let Ok(client) = self.pod.workload(&self.node).await else { return question.failed(ResponseCode::ServFail) };
        let labels = DnsLabels {
            request_query_type: Text::from(&Arc::from(question.query_type().to_string())),
            request_protocol: Word(transport.as_str()),
            source_canonical_service: Text::from(&client.canonical_name),
            source_canonical_revision: Text::from(&client.canonical_revision),
        };
        self.node.metrics.dns_requests.get(&labels).inc();
        let name = question.name();
        let known = question.family().map(|family| {
            let snapshot = self.node.snapshots.load();
            self.node.zone.answer(&snapshot, &client, &name, family, rand::random())
        });
        let (reply, result, endpoints) = match known {
            Some(Answer::Known { canonical, addresses, .. }) => {
                let reply = question.answered(canonical.as_deref(), &addresses, transport);
                (reply, "answered", addresses.len())
            }
            Some(Answer::Unknown) | None => {
                let reply = self.forward(bytes, transport, &labels).await;
                let result = if reply.is_some() { "forwarded" } else { "failed" };
                (reply.or_else(|| question.failed(ResponseCode::ServFail)), result, 0)
            }
        };
        tracing::event!(
            target: "dns",
            tracing::Level::DEBUG,
            src.workload = &*client.name,
            src.namespace = &*client.namespace,
            query = %question.query_type(),
            domain = %name,
            result,
            endpoints,
            "dns request"
        );
        reply
    }

    async fn forward(&self, bytes: &[u8], transport: Transport, labels: &DnsLabels) -> Option<Vec<u8>> {
        let metrics = &self.node.metrics;
        let forwarder = Forwarder {
            thread: &self.pod.thread,
            mark: Mark(self.node.config.mark.get()),
            servers: &self.node.resolv.servers,
        };
        metrics.dns_upstream_requests.get(labels).inc();
        let started = Instant::now();
        let asked = forwarder.ask(bytes, transport).await;
        metrics.dns_upstream_duration.get(labels).observe(started.elapsed().as_secs_f64());
        match asked {
            Ok(reply) => Some(reply),
            Err(error) => {
                metrics.dns_upstream_failures.get(labels).inc();
                tracing::debug!(%error, "DNS question not answered");
                None
            }
        }
    }
}

/// Takes a socket out of the group of those at the same address (SO_REUSEPORT): it keeps what it has, and gets no more.
fn leave(socket: &UdpSocket) -> io::Result<()> {
    let own = socket.local_addr()?;
    SockRef::from(socket).connect(&own.into())
}

/// A datagram that waits, whether the runtime has heard of it or not.
fn waiting(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    use std::os::fd::AsRawFd as _;
    let (length, client) = nix::sys::socket::recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer).ok()?;
    let client = client?;
    let v4 = client.as_sockaddr_in().map(|client| SocketAddr::V4((*client).into()));
    Some((length, v4.or_else(|| client.as_sockaddr_in6().map(|client| SocketAddr::V6((*client).into())))?))
}
