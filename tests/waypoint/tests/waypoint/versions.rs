//! Versions of TLS: issuers of tokens may speak 1.2, the mesh's own ends do not, in the same process.

use std::sync::Arc;

use http::StatusCode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use stillmesh_core::model::access::JwtKeys;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::issuer::{Signer, Web, believed};
use stillmesh_waypoint_tests::routes::{Shop, asked, shop};
use stillmesh_waypoint_tests::streams::Certificate;
use stillmesh_waypoint_tests::{PATIENCE, World};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

#[test]
fn keys_are_fetched_from_issuers_of_either_version() {
    isolated_async(|| async {
        let certificate = Certificate::new(&["127.0.5.1"]);
        let root = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(root.path(), certificate.pem()).unwrap();
        let environment = [("JWKS_ROOT_CA", root.path().to_str().unwrap())];
        let Shop { world, web, .. } = shop(1, &environment, vec![]).await;
        let mut http = world.client("page", 1).http1(web).await;
        for version in [&TLS12, &TLS13] {
            let signer = Signer::new("k1");
            let keys = Web::over(&world, &signer.keys, Some(certificate.acceptor(&[version]))).await;
            let at = JwtKeys::At(format!("https://{}/keys", keys.address).into());
            world.control.store.publish(vec![believed(at, |_| ())]);
            let bearer = signer.bearer("alice");
            let fetched = async {
                while keys.asked() == 0 {
                    asked(&mut http, "/name", &[("authorization", &bearer)]).await;
                }
            };
            timeout(PATIENCE, fetched).await.expect("keys are asked for");
            let (head, body) = asked(&mut http, "/name", &[("authorization", &bearer)]).await;
            assert_eq!(head.status, StatusCode::OK, "{:?}: {body}", version.version);
        }
    });
}

/// Believes anything.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn tls_error(error: &std::io::Error) -> Option<Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).cloned()
}

#[test]
fn the_meshs_own_servers_refuse_tls_1_2() {
    isolated_async(|| async {
        let Shop { world, .. } = shop(1, &[], vec![]).await;
        let dial = |version: &'static rustls::SupportedProtocolVersion, to| async move {
            let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody))
                .with_no_client_auth();
            config.alpn_protocols = vec![b"h2".to_vec()];
            let stream = TcpStream::connect(to).await.unwrap();
            let name = ServerName::try_from("x.example").unwrap();
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.map(drop)
        };
        for address in [world.hbone(), world.control.address] {
            let refused = dial(&TLS12, address).await.unwrap_err();
            assert_eq!(tls_error(&refused), Some(Error::AlertReceived(AlertDescription::ProtocolVersion)), "{refused}");
            dial(&TLS13, address).await.unwrap();
        }
    });
}

#[test]
fn the_meshs_own_clients_do_not_offer_tls_1_2() {
    isolated_async(|| async {
        let old = Certificate::new(&["x.example"]).acceptor(&[&TLS12]);
        let offered = |listener: TcpListener| {
            let old = old.clone();
            async move {
                let (stream, _) = listener.accept().await.unwrap();
                let refused = old.accept(stream).await.map(drop).unwrap_err();
                tls_error(&refused)
            }
        };
        let not_offered = Some(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled));
        // The control plane of a waypoint.
        let listener = TcpListener::bind("127.0.5.2:0").await.unwrap();
        let mut world = World::new().await;
        let address = format!("https://{}", listener.local_addr().unwrap());
        world.start(&[("XDS_ADDRESS", &address)]).await;
        let seen = timeout(PATIENCE, offered(listener)).await.unwrap();
        assert_eq!(seen, not_offered);
        // A tunnel.
        let listener = TcpListener::bind("127.0.5.3:15008").await.unwrap();
        let client = world.client_of(listener.local_addr().unwrap(), "page", 1);
        let (opened, seen) = tokio::join!(client.open("10.1.0.1:80".parse().unwrap()), offered(listener));
        assert!(opened.is_err());
        assert_eq!(seen, not_offered);
    });
}
