use std::io;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rustls::{ClientConfig, NamedGroup, ProtocolVersion};
use stillmesh_core::diagnose::Diagnose;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::fixtures::{LocalCa, identity};
use crate::{Leaf, SystemClock, client_config, peer_identity, server_config};

static CA: LazyLock<Arc<LocalCa>> = LazyLock::new(|| LocalCa::with_clock(Arc::new(SystemClock)));
const HOUR: Duration = Duration::from_secs(3600);

/// Both ends' verdicts; the client's includes what the server says after its own handshake is done.
async fn handshake(client: Arc<ClientConfig>, server: &Leaf) -> (Result<(), TlsError>, Result<Identity, TlsError>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let dial = async {
        let mut tls = TlsConnector::from(client).connect(tls::dummy_server_name(), near).await?;
        assert_eq!(tls.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(tls::ALPN));
        let mut byte = [0];
        tls.read_exact(&mut byte).await.map(drop)
    };
    let answer = async {
        let mut tls = TlsAcceptor::from(server_config(server).unwrap()).accept(far).await?;
        tls.write_all(b"x").await?;
        let peer = peer_identity(tls.get_ref().1.peer_certificates().unwrap()).unwrap();
        Ok::<_, io::Error>((peer, tls))
    };
    let (dialled, answered) = tokio::join!(dial, answer);
    (dialled.map_err(TlsError::from_handshake), answered.map(|(peer, _)| peer).map_err(TlsError::from_handshake))
}

fn code<T>(verdict: &Result<T, TlsError>) -> &'static str {
    verdict.as_ref().err().map_or("ok", Diagnose::code)
}

fn around_now() -> (SystemTime, SystemTime) {
    (SystemTime::now() - HOUR, SystemTime::now() + HOUR)
}

#[tokio::test]
async fn each_wrong_certificate_is_refused_for_its_own_reason() {
    let (page, details) = (identity("page"), identity("details"));
    let stranger = LocalCa::with_clock(Arc::new(SystemClock));
    let now = SystemTime::now();
    let (page_uri, details_uri) = (page.to_string(), details.to_string());
    let foreign = "spiffe://other.example/ns/default/sa/page";
    let (past, future) = ((now - 2 * HOUR, now - HOUR), (now + HOUR, now + 2 * HOUR));
    let one = |ca: &LocalCa, names: &[&str], life| ca.forged(&page, names, life);
    // What a side shows as `page`; the verdict when it dials; the verdict when it is dialled by `details`.
    let cases = [
        ("good", CA.leaf(&page), "ok", "ok"),
        ("expired", one(&CA, &[&page_uri], past), "TLS001", "TLS001"),
        ("of the future", one(&CA, &[&page_uri], future), "TLS002", "TLS002"),
        ("another CA", one(&stranger, &[&page_uri], around_now()), "TLS003", "TLS003"),
        ("no name", one(&CA, &[], around_now()), "TLS004", "TLS004"),
        ("not SPIFFE", one(&CA, &["https://example.org/page"], around_now()), "TLS004", "TLS004"),
        ("malformed", one(&CA, &["spiffe://cluster.local/page"], around_now()), "TLS004", "TLS004"),
        ("too deep", one(&CA, &[&format!("{page_uri}/x")], around_now()), "TLS004", "TLS004"),
        ("foreign", one(&CA, &[foreign], around_now()), "TLS005", "TLS006"),
        ("another", one(&CA, &["spiffe://cluster.local/ns/default/sa/x"], around_now()), "ok", "TLS006"),
        ("prefix", one(&CA, &["spiffe://cluster.local/ns/default/sa/pag"], around_now()), "ok", "TLS006"),
        ("right one second", one(&CA, &[foreign, &page_uri], around_now()), "ok", "ok"),
        ("two of the own domain", one(&CA, &[&details_uri, &page_uri], around_now()), "ok", "ok"),
    ];
    let good = CA.leaf(&details);
    for (name, shown, as_client, as_server) in cases {
        // A stranger's holder trusts the mesh here, so that only the other side's check is tried.
        let shown = match name {
            "another CA" => Arc::new(shown.trusting(Arc::clone(good.bundle()))),
            _ => shown,
        };
        let (_, answered) = handshake(client_config(&shown, std::slice::from_ref(&details)).unwrap(), &good).await;
        assert_eq!(code(&answered), as_client, "{name} dials: {answered:?}");
        let dial = client_config(&good, std::slice::from_ref(&page)).unwrap();
        let (dialled, _) = handshake(dial, &shown).await;
        assert_eq!(code(&dialled), as_server, "{name} is dialled: {dialled:?}");
    }
}

#[tokio::test]
async fn errors_name_who_was_met_and_who_was_expected() {
    let page = CA.leaf(&identity("page"));
    let dial = client_config(&page, &[identity("details")]).unwrap();
    let (dialled, answered) = handshake(dial, &CA.leaf(&identity("ratings"))).await;
    let text = dialled.unwrap_err().to_string();
    assert!(text.contains("sa/ratings") && text.contains("details"), "{text}");
    assert_eq!(code(&answered), "TLS009", "the server learns it by an alert");
}

#[tokio::test]
async fn any_of_several_expected_identities_will_do_and_none_expected_refuses() {
    let (client, server) = (CA.leaf(&identity("page")), CA.leaf(&identity("details")));
    let dial = client_config(&client, &[identity("x"), identity("details")]).unwrap();
    let (dialled, answered) = handshake(dial, &server).await;
    assert_eq!((code(&dialled), answered.unwrap()), ("ok", identity("page")));
    let (dialled, _) = handshake(client_config(&client, &[]).unwrap(), &server).await;
    assert_eq!(code(&dialled), "TLS006");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let server = CA.leaf(&identity("details"));
    let verifier = ExpectIdentity::new(Arc::clone(server.bundle()), vec![identity("details")], Arc::default());
    let mut dial = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    dial.alpn_protocols = vec![tls::ALPN.to_vec()];
    let (dialled, answered) = handshake(Arc::new(dial), &server).await;
    assert_eq!((code(&dialled), code(&answered)), ("TLS009", "TLS008"));
}

#[tokio::test]
async fn another_application_protocol_is_refused() {
    let server = CA.leaf(&identity("details"));
    let dial = client_config(&CA.leaf(&identity("page")), &[identity("details")]).unwrap();
    let mut dial = ClientConfig::clone(&dial);
    dial.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (_, answered) = handshake(Arc::new(dial), &server).await;
    assert_eq!(code(&answered), "TLS011");
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_first_and_classic_where_the_peer_cannot() {
    let (client, server) = (CA.leaf(&identity("page")), CA.leaf(&identity("details")));
    let both = client_config(&client, &[identity("details")]).unwrap();
    let mut classic = tls::provider().as_ref().clone();
    classic.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    let verifier = ExpectIdentity::new(Arc::clone(server.bundle()), vec![identity("details")], Arc::default());
    let mut old = ClientConfig::builder_with_provider(Arc::new(classic))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::clone(&both.client_auth_cert_resolver));
    old.alpn_protocols = vec![tls::ALPN.to_vec()];
    for (dial, group) in [(both, NamedGroup::X25519MLKEM768), (Arc::new(old), NamedGroup::X25519)] {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (dialled, _answered) = tokio::join!(
            TlsConnector::from(dial).connect(tls::dummy_server_name(), near),
            TlsAcceptor::from(server_config(&server).unwrap()).accept(far)
        );
        assert_eq!(dialled.unwrap().get_ref().1.negotiated_key_exchange_group().unwrap().name(), group);
    }
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let (client, server) = (CA.leaf(&identity("page")), CA.leaf(&identity("details")));
    let dial = client_config(&client, &[identity("details")]).unwrap();
    for _ in 0..2 {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (dialled, answered) = tokio::join!(
            TlsConnector::from(Arc::clone(&dial)).connect(tls::dummy_server_name(), near),
            TlsAcceptor::from(server_config(&server).unwrap()).accept(far)
        );
        let (mut dialled, mut answered) = (dialled.unwrap(), answered.unwrap());
        answered.write_all(b"x").await.unwrap();
        dialled.read_exact(&mut [0]).await.unwrap();
        assert_eq!(dialled.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(dialled.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn the_client_sends_no_server_name() {
    let (client, server) = (CA.leaf(&identity("page")), CA.leaf(&identity("details")));
    let dial = client_config(&client, &[identity("details")]).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let answer = async {
        let started = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), far).await.unwrap();
        assert_eq!(started.client_hello().server_name(), None);
        started.into_stream(server_config(&server).unwrap()).await.unwrap()
    };
    let (dialled, _) = tokio::join!(TlsConnector::from(dial).connect(tls::dummy_server_name(), near), answer);
    dialled.unwrap();
}

async fn answer_to(bytes: &[u8]) -> Result<(), TlsError> {
    let (mut near, far): (DuplexStream, DuplexStream) = tokio::io::duplex(1 << 16);
    near.write_all(bytes).await.unwrap();
    near.shutdown().await.unwrap();
    let server = server_config(&CA.leaf(&identity("details"))).unwrap();
    TlsAcceptor::from(server).accept(far).await.map(drop).map_err(TlsError::from_handshake)
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_told_from_one_that_leaves() {
    assert_eq!(code(&answer_to(b"GET / HTTP/1.1\r\n\r\n").await), "TLS010");
    assert_eq!(code(&answer_to(b"").await), "TLS012");
}

proptest! {
    #[test]
    fn no_certificate_makes_the_parser_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), cut in 0..600_usize) {
        let _ = peer_identity(&[CertificateDer::from(bytes.clone())]);
        let mut good = CA.leaf(&identity("page")).chain()[0].to_vec();
        bytes.truncate(4);
        let place = cut.min(good.len() - bytes.len());
        good[place..place + bytes.len()].copy_from_slice(&bytes);
        let _ = (peer_identity(&[CertificateDer::from(good.clone())]), crate::expiry(&[CertificateDer::from(good)]));
    }
}
