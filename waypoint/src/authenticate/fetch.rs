//! One GET of an issuer's keys, over HTTP or HTTPS: bounded in time and size, no redirects. Many issuers know no TLS 1.3,
//! so that 1.2 is permitted here and nowhere else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The longest answer that is read, bytes.
const LONGEST: usize = 1 << 20;

/// Fetches.
pub(super) struct Fetcher {
    extra_root: Option<PathBuf>,
    /// Made when it is needed first, since roots take room that most waypoints have no use for. What went wrong, where TLS cannot be spoken.
    tls: OnceCell<Result<TlsConnector, String>>,
}

impl Fetcher {
    /// Trusts the system's roots, and those of a file beside them.
    pub fn new(extra_root: Option<&Path>) -> Self {
        Self { extra_root: extra_root.map(Into::into), tls: OnceCell::new() }
    }

    async fn tls(&self) -> Result<&TlsConnector, String> {
        let make = async || {
            let extra_root = self.extra_root.clone();
            let made = tokio::task::spawn_blocking(move || connector(extra_root.as_deref())).await;
            made.unwrap_or_else(|error| Err(error.to_string()))
        };
        self.tls.get_or_init(make).await.as_ref().map_err(Clone::clone)
    }

    /// The body at `uri`, or why there is none.
    pub async fn get(&self, uri: &str, limit: Duration) -> Result<Bytes, String> {
        match timeout(limit, self.request(uri)).await {
            Ok(result) => result.map_err(|problem| format!("{uri}: {problem}")),
            Err(_) => Err(format!("{uri}: no answer within {limit:?}")),
        }
    }

    /// The keys at the place that an issuer's own description names (OpenID Connect Discovery 1.0 section 4).
    pub async fn discover(&self, issuer: &str, limit: Duration) -> Result<Bytes, String> {
        let at = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let body = self.get(&at, limit).await?;
        let described: Value = serde_json::from_slice(&body).map_err(|_| format!("{at}: not JSON"))?;
        let uri = described.get("jwks_uri").and_then(Value::as_str).ok_or_else(|| format!("{at}: no jwks_uri"))?;
        self.get(uri, limit).await
    }

    async fn request(&self, text: &str) -> Result<Bytes, String> {
        let uri: Uri = text.parse().map_err(|_| "not a URI".to_owned())?;
        let host = uri.host().ok_or("no host")?;
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("neither http nor https".to_owned()),
        };
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = TcpStream::connect((bare.as_str(), port)).await.map_err(|error| error.to_string())?;
        if !is_tls {
            return exchange(stream, &uri).await;
        }
        let connector = self.tls().await?;
        let name = ServerName::try_from(bare).map_err(|_| "not a server's name".to_owned())?;
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        exchange(stream, &uri).await
    }
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, uri: &Uri) -> Result<Bytes, String> {
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(text)?;
        if response.status() != StatusCode::OK {
            return Err(format!("answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), LONGEST).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
    };
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        body = answer.as_mut() => body,
        ended = connection.as_mut() => match ended {
            // What was read before its end is there.
            Ok(()) => answer.await,
            Err(error) => Err(text(error)),
        },
    }
}

fn connector(extra_root: Option<&Path>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = extra_root {
        let listed = CertificateDer::pem_file_iter(path).map_err(|error| format!("{}: {error}", path.display()))?;
        for certificate in listed {
            let certificate = certificate.map_err(|error| format!("{}: {error}", path.display()))?;
            roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| error.to_string())?;
    Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}
