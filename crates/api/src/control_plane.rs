//! Where the control plane is and how to trust it: the TLS channel that xDS and CA calls go through.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use stillmesh_core::{Diagnose, Fault};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};

/// The control plane as a node knows it.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// `https://host:port`.
    pub address: String,
    /// What its certificate must be signed by. Read anew for every connection.
    pub root: Root,
    /// The DNS name that its certificate must carry instead of the address's host.
    pub alt_hostname: Option<String>,
    /// What we show. Read anew for every request.
    pub token: Token,
    /// Sent as `clusterid`.
    pub cluster_id: String,
    /// Further gRPC metadata (`XDS_HEADER_*`, `CA_HEADER_*`).
    pub headers: Vec<(String, String)>,
}

/// Trusted certificates.
#[derive(Clone, Debug)]
pub enum Root {
    /// A PEM file.
    File(PathBuf),
    /// PEM text.
    Pem(String),
}

/// A bearer token.
#[derive(Clone)]
pub enum Token {
    /// None is sent.
    None,
    /// The content of a file, trimmed.
    File(PathBuf),
    /// As given.
    Literal(String),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
        }
    }
}

/// Why a channel to the control plane cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// The address is not `https://host:port`.
    #[error("control plane address {address:?}: https://host:port is accepted")]
    Address {
        /// As configured.
        address: String,
    },
    /// The trusted certificates cannot be read.
    #[error("trusted certificates {from}: {problem}")]
    Root {
        /// Where they are read from.
        from: String,
        /// What is wrong.
        problem: String,
    },
    /// The token cannot be read or sent.
    #[error("token {from}: {problem}")]
    Token {
        /// Where it is read from.
        from: String,
        /// What is wrong.
        problem: String,
    },
    /// A configured header cannot be sent.
    #[error("header {name:?} is not a gRPC metadata entry")]
    Header {
        /// Its name.
        name: String,
    },
    /// Nobody answers at the address.
    #[error("cannot connect to the control plane at {address}")]
    Connect {
        /// As configured.
        address: String,
        /// The last attempt's error.
        #[source]
        source: io::Error,
    },
    /// The handshake failed: another root, another name, or no TLS.
    #[error("TLS with the control plane at {address}")]
    Tls {
        /// As configured.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// HTTP/2 failed on the new connection.
    #[error("HTTP/2 with the control plane")]
    Transport(#[from] tonic::transport::Error),
}

impl Diagnose for ControlPlaneError {
    fn code(&self) -> &'static str {
        match self {
            Self::Address { .. } => "API010",
            Self::Root { .. } => "API011",
            Self::Token { .. } => "API012",
            Self::Header { .. } => "API013",
            Self::Connect { .. } => "API014",
            Self::Tls { .. } => "API015",
            Self::Transport(_) => "API016",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Address { .. } | Self::Root { .. } | Self::Token { .. } | Self::Header { .. } => Fault::Config,
            Self::Connect { .. } | Self::Tls { .. } | Self::Transport(_) => Fault::Upstream,
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Address { .. } => "set XDS_ADDRESS and CA_ADDRESS to https://host:port",
            Self::Root { .. } => "check that the root certificate file is mounted and holds PEM certificates",
            Self::Token { .. } => "check that the token file is mounted and not empty",
            Self::Header { .. } => "check XDS_HEADER_* and CA_HEADER_*",
            Self::Connect { .. } => "check that the controller runs and that TCP to its port is not blocked",
            Self::Tls { .. } => "check that the root certificate is the one that signed the controller's certificate",
            Self::Transport(_) => "check that the address is the controller's gRPC port",
        }
    }
}

/// How long finding the control plane's address and connecting may take.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long the TLS handshake may take.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Largest message taken from the control plane (contract 4.1).
pub const MAX_MESSAGE_BYTES: usize = 200 << 20;

impl ControlPlane {
    /// A channel with its first connection made.
    pub(crate) async fn connect(&self) -> Result<Channel, ControlPlaneError> {
        let endpoint = self.endpoint()?;
        // Dialled here once, so that the error is ours and not wrapped in the transport's.
        let mut first = Some(TokioIo::new(self.dial(endpoint.uri()).await?));
        let connector = tower::service_fn(move |_: Uri| {
            let again = || io::Error::new(io::ErrorKind::NotConnected, "the connection is used up");
            std::future::ready(first.take().ok_or_else(again))
        });
        Ok(endpoint.connect_with_connector(connector).await?)
    }

    /// A channel that connects when used, and again after it lost its connection.
    pub(crate) fn lazy(&self) -> Result<Channel, ControlPlaneError> {
        let endpoint = self.endpoint()?;
        let control_plane = Arc::new(self.clone());
        let connector = tower::service_fn(move |uri: Uri| {
            let control_plane = Arc::clone(&control_plane);
            async move { control_plane.dial(&uri).await.map(TokioIo::new) }
        });
        Ok(endpoint.connect_with_connector_lazy(connector))
    }

    fn endpoint(&self) -> Result<Endpoint, ControlPlaneError> {
        let unusable = || ControlPlaneError::Address { address: self.address.clone() };
        let uri: Uri = self.address.parse().map_err(|_| unusable())?;
        if uri.scheme_str() != Some("https") || uri.port_u16().is_none_or(|port| port == 0) {
            return Err(unusable());
        }
        Ok(Endpoint::from(uri)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20))
    }

    pub(crate) async fn dial(&self, uri: &Uri) -> Result<TlsStream<TcpStream>, ControlPlaneError> {
        let unusable = || ControlPlaneError::Address { address: self.address.clone() };
        let host = uri.host().ok_or_else(unusable)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().ok_or_else(unusable)?;
        let name = self.alt_hostname.clone().unwrap_or_else(|| host.clone());
        let name = ServerName::try_from(name).map_err(|_| unusable())?;
        let connector = TlsConnector::from(Arc::new(self.tls().await?));
        let connected = timeout(CONNECT_DEADLINE, connect_any(&host, port)).await;
        let tcp = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| ControlPlaneError::Connect { address: self.address.clone(), source })?;
        let handshake = timeout(HANDSHAKE_DEADLINE, connector.connect(name, tcp)).await;
        handshake
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| ControlPlaneError::Tls { address: self.address.clone(), source })
    }

    async fn tls(&self) -> Result<ClientConfig, ControlPlaneError> {
        let pem = self.root_pem().await?;
        let wrong = |problem: String| ControlPlaneError::Root { from: self.root.to_string(), problem };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(wrong("no certificate in it".to_owned()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// The trusted certificates as they are now.
    pub(crate) async fn root_pem(&self) -> Result<Vec<u8>, ControlPlaneError> {
        match &self.root {
            Root::Pem(pem) => Ok(pem.clone().into_bytes()),
            Root::File(path) => tokio::fs::read(path)
                .await
                .map_err(|error| ControlPlaneError::Root { from: self.root.to_string(), problem: error.to_string() }),
        }
    }

    /// A request with our credentials.
    pub(crate) async fn request<T>(&self, message: T) -> Result<tonic::Request<T>, ControlPlaneError> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = self.read_token().await? {
            let mut value =
                MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| ControlPlaneError::Token {
                    from: format!("{:?}", self.token),
                    problem: "it is not one line of text".to_owned(),
                })?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        insert(request.metadata_mut(), "clusterid", &self.cluster_id)?;
        for (name, value) in &self.headers {
            insert(request.metadata_mut(), name, value)?;
        }
        Ok(request)
    }

    async fn read_token(&self) -> Result<Option<String>, ControlPlaneError> {
        let token = match &self.token {
            Token::None => return Ok(None),
            Token::Literal(token) => Ok(token.clone()),
            Token::File(path) => tokio::fs::read_to_string(path).await.map_err(|error| error.to_string()),
        };
        match token.map(|token| token.trim().to_owned()) {
            Ok(token) if !token.is_empty() => Ok(Some(token)),
            Ok(_) => Err("it is empty".to_owned()),
            Err(problem) => Err(problem),
        }
        .map_err(|problem| ControlPlaneError::Token { from: format!("{:?}", self.token), problem })
    }
}

impl std::fmt::Display for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Pem(_) => f.write_str("given as text"),
        }
    }
}

fn insert(metadata: &mut MetadataMap, name: &str, value: &str) -> Result<(), ControlPlaneError> {
    let wrong = || ControlPlaneError::Header { name: name.to_owned() };
    let key = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| wrong())?;
    metadata.insert(key, value.parse().map_err(|_| wrong())?);
    Ok(())
}

async fn connect_any(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("no address for {host}"));
    for address in lookup_host((host, port)).await? {
        match TcpStream::connect(address).await {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                let keepalive = socket2::TcpKeepalive::new()
                    .with_time(Duration::from_secs(300))
                    .with_interval(Duration::from_secs(75))
                    .with_retries(9);
                socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive)?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
