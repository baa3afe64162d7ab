//! What rustls tells us against what rustls itself goes on with: through all generations.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::*;

/// Both sides of a finished handshake, ours.
fn done(suite: Suite) -> (Handshake, Handshake) {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|known| known.suite() == suite.name());
    let provider = Arc::new(provider);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    server.send_tls13_tickets = 0;
    prepare_client(&mut client);
    prepare_server(&mut server);
    let mut client = Handshake::client(Arc::new(client), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut server = Handshake::server(Arc::new(server)).unwrap();
    server.receive(&client.outgoing()).unwrap();
    client.receive(&server.outgoing()).unwrap();
    server.receive(&client.outgoing()).unwrap();
    assert!(client.is_done() && server.is_done());
    (client, server)
}

#[test]
fn secrets_are_those_of_rustls_in_every_generation() {
    for suite in Suite::ALL {
        let (client, server) = done(suite);
        let Connection::Client(theirs) = client.connection else { panic!("a client") };
        let (mut secrets, mut kernel) = theirs.dangerous_into_kernel_connection().unwrap();
        let (mut own, mut peers) = client.captured.into_secrets(suite).unwrap();
        for generation in 0..5 {
            assert!(own.agrees_with(&secrets.tx.1), "{suite:?}: {generation}");
            assert!(peers.agrees_with(&secrets.rx.1), "{suite:?}: {generation}");
            assert!(!own.agrees_with(&secrets.rx.1), "{suite:?}: {generation}");
            assert_eq!((secrets.tx.0, secrets.rx.0), (0, 0));
            secrets.tx = kernel.update_tx_secret().unwrap();
            secrets.rx = kernel.update_rx_secret().unwrap();
            (own, peers) = (own.next().unwrap(), peers.next().unwrap());
        }
        server.finish().unwrap();
    }
}

#[test]
fn secrets_of_another_connection_are_refused() {
    let suite = Suite::Aes128GcmSha256;
    let ((mut client, _), (other, _)) = (done(suite), done(suite));
    client.captured = other.captured;
    assert!(matches!(client.finish(), Err(HandshakeError::Secrets)));
    let (mut client, _) = done(suite);
    client.captured = Captured::default();
    assert!(matches!(client.finish(), Err(HandshakeError::Secrets)));
}

#[test]
fn secrets_go_to_the_call_that_they_are_of_and_to_nobody_else() {
    let log = capture::key_log();
    // Nobody asks.
    log.log("CLIENT_TRAFFIC_SECRET_0", &[1; 32], &[1; 32]);
    let (mut outer, mut inner) = (Captured::default(), Captured::default());
    outer.during(|| {
        log.log("CLIENT_TRAFFIC_SECRET_0", &[2; 32], &[2; 32]);
        inner.during(|| {
            log.log("CLIENT_TRAFFIC_SECRET_0", &[3; 32], &[3; 32]);
            log.log("SERVER_TRAFFIC_SECRET_0", &[3; 32], &[3; 32]);
        });
        log.log("EXPORTER_SECRET", &[2; 32], &[9; 32]);
        log.log("SERVER_TRAFFIC_SECRET_0", &[2; 32], &[2; 32]);
    });
    for (captured, byte) in [(outer, 2), (inner, 3)] {
        let (client, server) = captured.into_secrets(Suite::Aes128GcmSha256).unwrap();
        assert_eq!((client.bytes(), server.bytes()), (&[byte; 32][..], &[byte; 32][..]));
    }
    // Halves of two connections are no pair.
    let mut mixed = Captured::default();
    mixed.during(|| {
        log.log("CLIENT_TRAFFIC_SECRET_0", &[2; 32], &[2; 32]);
        log.log("SERVER_TRAFFIC_SECRET_0", &[3; 32], &[3; 32]);
    });
    assert!(mixed.into_secrets(Suite::Aes128GcmSha256).is_none());
    assert!(log.will_log("SERVER_TRAFFIC_SECRET_0") && !log.will_log("EXPORTER_SECRET"));
}
