//! Passes questions on to resolvers: a fresh socket and id per try, so that answers cannot be guessed; another server
//! after a silent one; one deadline for all.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use stillmesh_runtime::sys::netns::NetnsThread;
use stillmesh_runtime::sys::socket::{self, Mark, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::message::{self, Transport};

/// From question to answer, all tries together.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// What one server may take before the next is asked.
const TRY: Duration = Duration::from_millis(1500);

/// How often the list of servers is gone through.
const ROUNDS: usize = 2;

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is nobody to ask.
    #[error("no resolver is configured")]
    NoServer,
    /// Nobody answered in time.
    #[error("no resolver answered within {limit:?}")]
    Slow {
        /// The deadline.
        limit: Duration,
    },
    /// The last server could not be asked.
    #[error("resolver {server}: {source}")]
    Io {
        /// Which one.
        server: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Where questions go.
#[derive(Clone, Copy, Debug)]
pub struct Forwarder<'a> {
    /// Makes sockets in the pod's namespace.
    pub thread: &'a NetnsThread,
    /// On every socket.
    pub mark: Mark,
    /// Whom to ask, in this order.
    pub servers: &'a [SocketAddr],
}

impl Forwarder<'_> {
    /// Asks until somebody answers. The reply carries the question's own id.
    pub async fn ask(&self, question: &[u8], transport: Transport) -> Result<Vec<u8>, ForwardError> {
        let deadline = Instant::now() + DEADLINE;
        let mut last = ForwardError::NoServer;
        let mut failure: Option<Vec<u8>> = None;
        for server in self.servers.iter().cycle().take(self.servers.len() * ROUNDS) {
            let until = deadline.min(Instant::now() + TRY);
            let asked = timeout_at(until, self.ask_one(*server, question, transport)).await;
            match asked {
                // A server that cannot answer is no better than a silent one, while there is another.
                Ok(Ok(reply)) if is_failure(&reply) => failure = Some(reply),
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(source)) => last = ForwardError::Io { server: *server, source },
                Err(_) => last = ForwardError::Slow { limit: DEADLINE },
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        failure.ok_or(last)
    }

    async fn ask_one(&self, server: SocketAddr, question: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
        let Some(original) = message::id(question) else { return Err(io::ErrorKind::InvalidData.into()) };
        let mut question = question.to_vec();
        message::set_id(&mut question, rand::random());
        let mut reply = match transport {
            Transport::Udp => self.over_udp(server, &question).await?,
            Transport::Tcp => self.over_tcp(server, &question).await?,
        };
        message::set_id(&mut reply, original);
        Ok(reply)
    }

    async fn over_udp(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let options = Options { mark: Some(self.mark), transparent: false, reuse_port: false };
        let socket = self.thread.run(move || socket::udp_socket(any, options)).await??;
        let socket = UdpSocket::from_std(socket)?;
        socket.connect(server).await?;
        socket.send(question).await?;
        let mut buffer = vec![0; LARGEST_MESSAGE];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if let Some(reply) = buffer.get(..length).filter(|reply| message::answers(question, reply)) {
                return Ok(reply.to_vec());
            }
        }
    }

    async fn over_tcp(&self, server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let mark = Some(self.mark);
        let socket = self.thread.run(move || socket::tcp_connect_socket(server, mark, None)).await??;
        let mut stream = socket.connect(server).await?;
        let length = u16::try_from(question.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(question);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await?;
        if message::answers(question, &reply) { Ok(reply) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

const LARGEST_MESSAGE: usize = 65_535;

fn is_failure(reply: &[u8]) -> bool {
    matches!(message::response_code(reply), Some(ResponseCode::ServFail | ResponseCode::Refused))
}
