//! Connections that are no HTTP: routes for them, and applications that greet, in the clear or over TLS of their own.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName as TlsName};
use stillmesh_core::fixtures::service_key;
use stillmesh_core::model::http::{HttpRoute, RouteBackend, RouteKey, RouteKind, RouteParent};
use stillmesh_core::model::stream::{ServerName, StreamBackend, StreamMatch, StreamRule};
use stillmesh_core::snapshot::Change;
use stillmesh_runtime::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::World;

/// Service `shop/NAME` as a backend.
pub fn to(name: &str, weight: u32) -> StreamBackend {
    let service = service_key(&format!("shop/{name}"));
    StreamBackend { backend: RouteBackend::Service { service, port: NonZeroU16::new(80), subset: None }, weight }
}

/// What asks for these names goes there; whatever there is, where there are none.
pub fn rule(names: &[&str], backends: Vec<StreamBackend>) -> StreamRule {
    let server_names: Vec<ServerName> = names.iter().map(|name| ServerName::read(name)).collect();
    let matched = StreamMatch { server_names, port: None };
    StreamRule { name: None, matches: if names.is_empty() { Vec::new() } else { vec![matched] }, backends }
}

/// A route on service `shop/web`.
pub fn route(kind: RouteKind, name: &str, streams: Vec<StreamRule>) -> Change {
    Change::Route(Arc::new(HttpRoute {
        key: RouteKey { kind, namespace: "shop".into(), name: name.into() },
        parents: vec![RouteParent { service: service_key("shop/web"), port: None }],
        consumer: None,
        created: 0,
        rules: Vec::new(),
        streams,
    }))
}

/// An application's certificate, which its clients know.
pub struct Certificate {
    certificate: CertificateDer<'static>,
    pem: String,
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// A new one for these names.
    pub fn new(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        Self { certificate: made.cert.der().clone(), pem: made.cert.pem(), key: key.into() }
    }

    /// TLS with whoever has this certificate, as a client that asks for a name.
    ///
    /// # Errors
    /// There is no such end, or another one.
    pub async fn connect<IO>(&self, io: IO, name: &str) -> std::io::Result<TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = TlsName::try_from(name.to_owned()).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, io).await
    }

    /// As a file has it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Takes connections over TLS of these versions.
    pub fn acceptor(&self, versions: &[&'static SupportedProtocolVersion]) -> TlsAcceptor {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .expect("a certificate");
        TlsAcceptor::from(Arc::new(config))
    }

    /// Greets over TLS with this name, then sends back what comes.
    pub fn serve(&self, name: &'static str, listener: TcpListener, tasks: &Tasks) {
        let acceptor = self.acceptor(rustls::DEFAULT_VERSIONS);
        let own = tasks.clone();
        tasks.spawn("tls", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                own.spawn("tls connection", async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        greet(stream, name).await;
                    }
                });
            }
        });
    }
}

/// Greets with this name, then sends back what comes.
pub fn serve(name: &'static str, listener: TcpListener, tasks: &Tasks) {
    let own = tasks.clone();
    tasks.spawn("greeter", async move {
        while let Ok((stream, _)) = listener.accept().await {
            own.spawn("greeted connection", greet(stream, name));
        }
    });
}

async fn greet(mut stream: impl AsyncRead + AsyncWrite + Unpin, name: &str) {
    if stream.write_all(name.as_bytes()).await.is_err() || stream.flush().await.is_err() {
        return;
    }
    let mut piece = vec![0; 16 << 10];
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        let sent = stream.write_all(piece.get(..length).unwrap_or_default()).await;
        if sent.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
    drop(stream.shutdown().await);
}

/// What an application greets with; three characters.
///
/// # Errors
/// It does not greet: the connection ends before.
pub async fn greeting(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut name = [0; 3];
    stream.read_exact(&mut name).await?;
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// Services `web`, `one` and `two`, whose applications greet with their names.
pub struct Greeters {
    /// What is on both sides of the waypoint.
    pub world: World,
    /// Where `web` is dialled.
    pub web: SocketAddr,
}

/// Greeters with these routes on `web`, and a waypoint with further environment. `protocol` is that of all ports; with
/// certificates they greet over TLS.
pub async fn greeters(
    protocol: i32,
    environment: &[(&str, &str)],
    routes: Vec<Change>,
    certificates: Option<&[Certificate; 3]>,
) -> Greeters {
    let mut world = World::new().await;
    let mut web = None;
    for (number, name) in ["web", "one", "two"].into_iter().enumerate() {
        let workload = world.workload(name);
        let address = world.service(name, &format!("10.1.0.{}", number + 1), protocol, &[&workload]);
        let listener = world.endpoint(&workload).await.listen().await;
        match certificates.and_then(|all| all.get(number)) {
            Some(certificate) => certificate.serve(name, listener, &world.tasks),
            None => serve(name, listener, &world.tasks),
        }
        web.get_or_insert(address);
    }
    world.control.store.publish(routes);
    world.start(environment).await;
    Greeters { world, web: web.expect("the first of three") }
}
