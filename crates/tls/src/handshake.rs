//! The handshake: rustls' unbuffered connections, driven until there are traffic secrets.
//!
//! | what | how |
//! | --- | --- |
//! | what rustls sees | one record at a time (its header says where it ends), so nothing behind the peer's Finished: what is left over is application data, which only [`Session`] opens |
//! | secrets | rustls tells its `KeyLog` of `CLIENT_` and `SERVER_TRAFFIC_SECRET_0` while it processes a record; they are kept for the [`Handshake`] that called it on this thread, by client random, and for nobody else |
//! | that they are the right ones | key and IV of both must be those that rustls itself would go on with |
//! | records sealed already | as rustls counts them: a server with tickets sends them behind its handshake, with its traffic keys |
//! | what may be configured | suites of [`Suite`] only; [`prepare_client`] or [`prepare_server`] was called; no early data |
//! | an error | is [`rustls::Error`]; its alert is sent before it is told. A client is done when its Finished is sent: that the server refuses it, it learns from the first record of its session ([`SessionError::Alert`]) |
//! | most that is buffered | 96 KiB: one message of 64 KiB, which is rustls' limit, and its records' overhead; and what the caller passed at once. More ends the handshake, without an alert |
//!
//! There is no deadline in here: callers have theirs, and drop the future.
//!
//! [`SessionError::Alert`]: crate::SessionError::Alert

use std::io;
use std::mem;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{
    CipherSuite, ClientConfig, CommonState, ExtractedSecrets, OtherError, ServerConfig, SupportedCipherSuite,
};
use rustls_pki_types::{CertificateDer, ServerName};

use crate::keys::Suite;
use crate::record::HEADER;
use crate::session::{Role, Session};
use capture::Captured;

mod capture;
mod stream;

pub use stream::{accept, connect};

/// Most bytes that are kept before the handshake is done.
pub const MAX_BUFFERED: usize = 96 * 1024;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// rustls refuses, or the peer does.
    #[error("the handshake failed")]
    Tls(#[source] rustls::Error),
    /// The connection broke, or ended.
    #[error("the connection broke during the handshake")]
    Io(#[source] io::Error),
    /// The configuration was not made ready.
    #[error("the TLS configuration was not prepared for this crate: call prepare_client or prepare_server")]
    Unprepared,
    /// The configuration has a suite whose records cannot be protected here.
    #[error("the TLS configuration offers {0:?}: offer TLS_AES_256_GCM_SHA384 and TLS_AES_128_GCM_SHA256 only")]
    Suite(CipherSuite),
    /// The peer's messages are too long.
    #[error("the peer's handshake messages take more than {MAX_BUFFERED} bytes")]
    TooLong,
    /// The secrets are missing, or not those of this connection.
    #[error("rustls did not tell the secrets of this connection")]
    Secrets,
    /// It was not done, or went on after an error.
    #[error("the handshake is not done")]
    NotDone,
}

/// As `tokio_rustls` tells it: what rustls says is inside, as `InvalidData`; our own problems are a `rustls::Error::Other`.
impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Tls(error) => Self::new(io::ErrorKind::InvalidData, error),
            HandshakeError::Io(error) => error,
            own => Self::new(io::ErrorKind::InvalidData, rustls::Error::Other(OtherError(Arc::new(own)))),
        }
    }
}

/// Makes a client's configuration one for this crate. It stays usable for rustls' own connections.
pub fn prepare_client(config: &mut ClientConfig) {
    config.key_log = capture::key_log();
    config.enable_secret_extraction = true;
    config.enable_early_data = false;
}

/// Makes a server's configuration one for this crate. It stays usable for rustls' own connections.
pub fn prepare_server(config: &mut ServerConfig) {
    config.key_log = capture::key_log();
    config.enable_secret_extraction = true;
    config.max_early_data_size = 0;
}

/// What a handshake comes to.
#[derive(Debug)]
pub struct Established {
    /// The connection.
    pub session: Session,
    /// The peer's certificates, its own first. Empty: it showed none.
    pub peer_certificates: Vec<CertificateDer<'static>>,
    /// The application protocol that was agreed upon.
    pub alpn: Option<Vec<u8>>,
    /// What came behind the handshake: records for [`Session::open`].
    pub leftover: Vec<u8>,
}

/// A handshake without I/O: bytes in, bytes out.
pub struct Handshake {
    connection: Connection,
    captured: Captured,
    /// What came and is not used up.
    incoming: Vec<u8>,
    /// How much of it rustls sees: up to the end of `record`, as far as that has come.
    shown: usize,
    /// Where the last record begins that rustls sees, and whether it has come as a whole.
    record: (usize, bool),
    outgoing: Vec<u8>,
    state: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Going,
    Done,
    Failed,
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

impl Handshake {
    /// Begins as a client: there is something to [send](Self::outgoing) already.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, HandshakeError> {
        let prepared = capture::is_ours(&config.key_log) && config.enable_secret_extraction;
        check(prepared, &config.crypto_provider().cipher_suites)?;
        let connection = UnbufferedClientConnection::new(config, name).map_err(HandshakeError::Tls)?;
        let mut handshake = Self::new(Connection::Client(connection));
        handshake.receive(&[])?;
        Ok(handshake)
    }

    /// Begins as a server.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, HandshakeError> {
        let prepared = capture::is_ours(&config.key_log) && config.enable_secret_extraction;
        check(prepared, &config.crypto_provider().cipher_suites)?;
        let connection = UnbufferedServerConnection::new(config).map_err(HandshakeError::Tls)?;
        Ok(Self::new(Connection::Server(connection)))
    }

    fn new(connection: Connection) -> Self {
        Self {
            connection,
            captured: Captured::default(),
            incoming: Vec::new(),
            shown: 0,
            record: (0, false),
            outgoing: Vec::new(),
            state: Progress::Going,
        }
    }

    /// Takes what came from the peer. After that, and also after an error, there may be something to send.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        self.incoming.extend_from_slice(bytes);
        let outcome = match self.state {
            Progress::Going => self.drive(),
            Progress::Done => Ok(()),
            Progress::Failed => Err(HandshakeError::NotDone),
        };
        if outcome.is_err() {
            self.state = Progress::Failed;
        }
        outcome
    }

    /// Takes out what has to be sent.
    pub fn outgoing(&mut self) -> Vec<u8> {
        mem::take(&mut self.outgoing)
    }

    /// Whether the handshake is done: as soon as what is [outgoing](Self::outgoing) is sent, [`finish`](Self::finish) it.
    pub fn is_done(&self) -> bool {
        self.state == Progress::Done
    }

    /// Makes a session of it.
    pub fn finish(self) -> Result<Established, HandshakeError> {
        if self.state != Progress::Done || self.shown != 0 || !self.outgoing.is_empty() {
            return Err(HandshakeError::NotDone);
        }
        let common = self.connection.common();
        let peer_certificates = common.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
        let alpn = common.alpn_protocol().map(<[_]>::to_vec);
        let name = common.negotiated_cipher_suite().ok_or(HandshakeError::NotDone)?.suite();
        let suite = Suite::of(name).ok_or(HandshakeError::Suite(name))?;
        let (client, server) = self.captured.into_secrets(suite).ok_or(HandshakeError::Secrets)?;

        let role = self.connection.role();
        let ExtractedSecrets { tx: (sealed, sealing), rx: (opened, opening) } = self.connection.into_secrets()?;
        let (own, peers) = match role {
            Role::Client => (&client, &server),
            Role::Server => (&server, &client),
        };
        if opened != 0 || !own.agrees_with(&sealing) || !peers.agrees_with(&opening) {
            return Err(HandshakeError::Secrets);
        }
        let session = Session::new(role, client, server, sealed).map_err(|_| HandshakeError::Secrets)?;
        let leftover = self.incoming;
        Ok(Established { session, peer_certificates, alpn, leftover })
    }

    /// Lets rustls see one record after the other, until it wants more than has come, or is done.
    fn drive(&mut self) -> Result<(), HandshakeError> {
        loop {
            match self.step() {
                Ok(Step::Going) => {}
                Ok(Step::Done) => {
                    self.state = Progress::Done;
                    return Ok(());
                }
                Ok(Step::WantsMore) if self.show_more() => {}
                Ok(Step::WantsMore) if self.incoming.len() > MAX_BUFFERED => return Err(HandshakeError::TooLong),
                Ok(Step::WantsMore) => return Ok(()),
                Err(error) => {
                    // Its alert waits to be sent. Not one step further: rustls would go on reading.
                    while self.connection.common().wants_write() && matches!(self.step(), Ok(Step::Going)) {}
                    return Err(HandshakeError::Tls(error));
                }
            }
        }
    }

    /// Shows rustls the rest of the record that it sees, or the next one once it has seen all of that. `false`: nothing more has come.
    fn show_more(&mut self) -> bool {
        let start = if self.record.1 { self.shown } else { self.record.0 };
        let unseen = self.incoming.get(start..).unwrap_or_default();
        let length = match unseen {
            &[_, _, _, high, low, ..] => HEADER + usize::from(u16::from_be_bytes([high, low])),
            _ => usize::MAX,
        };
        let before = mem::replace(&mut self.shown, start + unseen.len().min(length));
        self.record = (start, unseen.len() >= length);
        self.shown > before
    }

    /// One call of rustls.
    fn step(&mut self) -> Result<Step, rustls::Error> {
        let (connection, outgoing) = (&mut self.connection, &mut self.outgoing);
        let shown = self.incoming.get_mut(..self.shown).unwrap_or_default();
        let (used, step) = self.captured.during(|| match connection {
            Connection::Client(client) => carry_out(client.process_tls_records(shown), outgoing),
            Connection::Server(server) => carry_out(server.process_tls_records(shown), outgoing),
        });
        let used = used.min(self.shown);
        self.incoming.drain(..used);
        self.shown -= used;
        self.record.0 = self.record.0.saturating_sub(used);
        Ok(match step? {
            Step::Done if self.connection.common().is_handshaking() => Step::WantsMore,
            step => step,
        })
    }
}

/// Where a call of rustls ended.
enum Step {
    Going,
    WantsMore,
    Done,
}

/// Does what rustls wants. Returns how many bytes it has used up.
fn carry_out<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
) -> (usize, Result<Step, rustls::Error>) {
    let UnbufferedStatus { discard, state } = status;
    let step = state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let refused = |error: &dyn std::error::Error| rustls::Error::General(error.to_string());
            let start = outgoing.len();
            // rustls says how much room it needs when there is none.
            let required = match data.encode(&mut []) {
                Err(rustls::unbuffered::EncodeError::InsufficientSize(size)) => size.required_size,
                Err(error) => return Err(refused(&error)),
                Ok(_) => return Ok(Step::Going),
            };
            outgoing.resize(start + required, 0);
            let written = data.encode(outgoing.get_mut(start..).unwrap_or_default()).map_err(|e| refused(&e))?;
            outgoing.truncate(start + written);
            Ok(Step::Going)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Going)
        }
        ConnectionState::BlockedHandshake => Ok(Step::WantsMore),
        // A server without client authentication is here before the client's Finished.
        ConnectionState::WriteTraffic(_) => Ok(Step::Done),
        other => Err(rustls::Error::General(format!("a handshake cannot come to {other:?}"))),
    });
    (discard, step)
}

impl Connection {
    fn common(&self) -> &CommonState {
        match self {
            Self::Client(client) => client,
            Self::Server(server) => server,
        }
    }

    fn role(&self) -> Role {
        match self {
            Self::Client(_) => Role::Client,
            Self::Server(_) => Role::Server,
        }
    }

    /// What rustls would go on with.
    fn into_secrets(self) -> Result<ExtractedSecrets, HandshakeError> {
        match self {
            Self::Client(client) => client.dangerous_into_kernel_connection().map(|(secrets, _)| secrets),
            Self::Server(server) => server.dangerous_into_kernel_connection().map(|(secrets, _)| secrets),
        }
        .map_err(HandshakeError::Tls)
    }
}

fn check(prepared: bool, suites: &[SupportedCipherSuite]) -> Result<(), HandshakeError> {
    if !prepared {
        return Err(HandshakeError::Unprepared);
    }
    let unknown = suites.iter().map(SupportedCipherSuite::suite).find(|name| Suite::of(*name).is_none());
    unknown.map_or(Ok(()), |name| Err(HandshakeError::Suite(name)))
}

#[cfg(test)]
mod tests;
