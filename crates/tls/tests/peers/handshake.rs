//! Handshakes: with rustls' own connections and with each other, well and badly.

use std::io;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::version::TLS13;
use rustls::{AlertDescription, CipherSuite, ClientConfig, NamedGroup, RootCertStore, ServerConfig};
use stillmesh_tls::{Handshake, HandshakeError, SessionError, Suite, accept, connect, prepare_client, prepare_server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use crate::end::End;
use crate::pki::{Pki, name};
use crate::rustls_peer::{Peer, pattern, shake};

fn client(mut config: ClientConfig) -> Handshake {
    prepare_client(&mut config);
    Handshake::client(Arc::new(config), name()).unwrap()
}

fn server(mut config: ServerConfig) -> Handshake {
    prepare_server(&mut config);
    Handshake::server(Arc::new(config)).unwrap()
}

#[test]
fn a_handshake_says_who_the_peer_is_and_what_is_spoken() {
    let pki = Pki::new();
    for suite in Suite::ALL {
        for piece in [1, 7, 100_000] {
            let mut peer = Peer::server(pki.server(suite));
            let ours = shake(client(pki.client(suite)), &mut peer, piece).unwrap();
            assert_eq!(ours.peer_certificates.len(), 1);
            assert_eq!(ours.alpn.as_deref(), Some(&b"h2"[..]));
            let shown = peer.0.peer_certificates().unwrap().len();
            assert_eq!(shown, 1);

            let mut peer = Peer::client(pki.client(suite));
            let ours = shake(server(pki.server(suite)), &mut peer, piece).unwrap();
            assert_eq!(ours.peer_certificates.len(), 1);
            assert_eq!(ours.alpn.as_deref(), Some(&b"h2"[..]));

            let mut peer = Peer::client(pki.anonymous(suite));
            let ours = shake(server(pki.open_server(suite)), &mut peer, piece).unwrap();
            assert_eq!((ours.peer_certificates, ours.alpn), (Vec::new(), None));
        }
    }
}

#[test]
fn what_comes_behind_the_handshake_is_the_sessions() {
    let pki = Pki::new();
    for suite in Suite::ALL {
        // As a server: the client's Finished and its data in one piece.
        let (mut ours, mut peer) = (server(pki.server(suite)), Peer::client(pki.client(suite)));
        let hello = peer.outgoing();
        ours.receive(&hello).unwrap();
        let flight = ours.outgoing();
        peer.receive(&flight).unwrap();
        let data = pattern(100_000);
        let wire = peer.send(&data);
        for bytes in wire.chunks(9_000) {
            ours.receive(bytes).unwrap();
        }
        assert!(ours.is_done());
        // Two tickets of rustls' own.
        assert!(!ours.outgoing().is_empty());
        let established = ours.finish().unwrap();
        assert!(established.leftover.len() > data.len());
        let mut end = End::new(established);
        assert!(end.receive(&[]).unwrap().data == data);

        // As a client: data that the server sends with its own Finished, which it may when it wants no certificate.
        let mut config = pki.open_server(suite);
        config.send_half_rtt_data = true;
        let (mut ours, mut peer) = (client(pki.anonymous(suite)), Peer::server(config));
        peer.receive(&ours.outgoing()).unwrap();
        let wire = peer.send(&data);
        ours.receive(&wire).unwrap();
        assert!(ours.is_done());
        peer.receive(&ours.outgoing()).unwrap();
        let mut end = End::new(ours.finish().unwrap());
        assert!(end.receive(&[]).unwrap().data == data);
        // And what was sealed before our session began counts.
        let wire = peer.outgoing();
        end.receive(&wire).unwrap();
        assert_eq!(end.others, 1, "a record with two tickets");
    }
}

#[test]
fn tickets_that_rustls_sealed_for_us_count_as_records() {
    let pki = Pki::new();
    for tickets in 0..5 {
        let mut config = pki.server(Suite::Aes128GcmSha256);
        config.send_tls13_tickets = tickets;
        let mut peer = Peer::client(pki.client(Suite::Aes128GcmSha256));
        let mut end = End::new(shake(server(config), &mut peer, 1000).unwrap());
        let wire = end.send(b"behind them");
        assert_eq!(peer.receive(&wire).unwrap().data, b"behind them");
    }
}

#[test]
fn a_group_that_was_not_guessed_is_asked_for() {
    let pki = Pki::new();
    let suite = Suite::Aes256GcmSha384;
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|known| known.suite() == suite.name());
    provider.kx_groups.retain(|group| group.name() == NamedGroup::secp384r1);
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&pki.open_server(suite).cert_resolver));
    let mut peer = Peer::client(pki.anonymous(suite));
    let mut end = End::new(shake(server(config), &mut peer, 13).unwrap());
    let wire = end.send(b"x");
    assert_eq!(peer.receive(&wire).unwrap().data, b"x");
    assert_eq!(peer.0.handshake_kind(), Some(rustls::HandshakeKind::FullWithHelloRetryRequest));
}

#[test]
fn a_configuration_that_was_not_prepared_is_refused() {
    let pki = Pki::new();
    let config = Arc::new(pki.client(Suite::Aes128GcmSha256));
    assert!(matches!(Handshake::client(config, name()), Err(HandshakeError::Unprepared)));
    let mut config = pki.server(Suite::Aes128GcmSha256);
    assert!(matches!(Handshake::server(Arc::new(config.clone())), Err(HandshakeError::Unprepared)));
    // Somebody else's key log.
    prepare_server(&mut config);
    config.key_log = Arc::new(rustls::KeyLogFile::new());
    assert!(matches!(Handshake::server(Arc::new(config)), Err(HandshakeError::Unprepared)));

    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    prepare_client(&mut config);
    let refused = Handshake::client(Arc::new(config), name()).err().unwrap();
    assert!(matches!(refused, HandshakeError::Suite(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256)), "{refused}");
    // As an I/O error, a reader of rustls' errors finds it.
    let error = io::Error::from(refused);
    let inside = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert!(matches!(inside, Some(rustls::Error::Other(_))), "{error}");
}

#[test]
fn a_prepared_configuration_still_serves_rustls_own_connections() {
    let pki = Pki::new();
    let (mut config, suite) = (pki.server(Suite::Aes128GcmSha256), Suite::Aes128GcmSha256);
    prepare_server(&mut config);
    let mut peer = Peer::server(config);
    let mut end = End::new(shake(client(pki.client(suite)), &mut peer, 1000).unwrap());
    let wire = end.send(b"x");
    assert_eq!(peer.receive(&wire).unwrap().data, b"x");
}

#[test]
fn an_error_is_rustls_own_and_its_alert_goes_to_the_peer() {
    let (pki, foreign, suite) = (Pki::new(), Pki::new(), Suite::Aes128GcmSha256);
    // The server's certificate is of another CA.
    let mut ours = client(foreign.client(suite));
    let mut peer = Peer::server(pki.server(suite));
    peer.receive(&ours.outgoing()).unwrap();
    let error = ours.receive(&peer.outgoing()).unwrap_err();
    let HandshakeError::Tls(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) = error else {
        panic!("{error:?}")
    };
    let told = peer.receive(&ours.outgoing());
    assert_eq!(told, Err(rustls::Error::AlertReceived(AlertDescription::UnknownCA)));
    assert!(matches!(ours.receive(&[0; 10]), Err(HandshakeError::NotDone)));
    assert!(matches!(ours.finish(), Err(HandshakeError::NotDone)));

    // Bytes that are not TLS, by the first header.
    for (bytes, alert) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], AlertDescription::DecodeError),
        (&[22, 3, 1, 255, 255][..], AlertDescription::DecodeError),
    ] {
        let mut ours = server(pki.server(suite));
        let error = ours.receive(bytes).unwrap_err();
        assert!(matches!(error, HandshakeError::Tls(rustls::Error::InvalidMessage(_))), "{error:?}");
        assert_eq!(ours.outgoing(), [21, 3, 3, 0, 2, 2, u8::from(alert)], "{error:?}");
    }

    // Changed on its way, sealed with the handshake's keys.
    let mut ours = client(pki.client(suite));
    let mut peer = Peer::server(pki.server(suite));
    peer.receive(&ours.outgoing()).unwrap();
    let mut flight = peer.outgoing();
    let last = flight.len() - 1;
    flight[last] ^= 1;
    let error = ours.receive(&flight).unwrap_err();
    assert!(matches!(error, HandshakeError::Tls(rustls::Error::DecryptError)), "{error:?}");
    let told = peer.receive(&ours.outgoing());
    assert_eq!(told, Err(rustls::Error::AlertReceived(AlertDescription::BadRecordMac)));
}

#[test]
fn a_refused_client_learns_it_from_the_first_record() {
    let (pki, foreign) = (Pki::new(), Pki::new());
    for suite in Suite::ALL {
        // Trusts the server's CA, and shows a certificate of another.
        let mut stranger = pki.client(suite);
        stranger.client_auth_cert_resolver = foreign.client(suite).client_auth_cert_resolver;
        for (config, alert) in
            [(pki.anonymous(suite), AlertDescription::CertificateRequired), (stranger, AlertDescription::UnknownCA)]
        {
            let mut peer = Peer::server(pki.server(suite));
            let mut end = End::new(shake(client(config), &mut peer, 1000).unwrap());
            let refusal = peer.outgoing();
            let error = end.receive(&refusal).unwrap_err();
            assert_eq!(error, SessionError::Alert(alert));
            assert!(!end.session().due());
        }
    }
}

#[test]
fn what_is_buffered_is_bounded() {
    // A ClientHello of 65 KB, one byte per record: with their headers it would be five times as long.
    let mut ours = server(Pki::new().server(Suite::Aes128GcmSha256));
    let message = [&[1, 0, 255, 255][..], &[0; 65_535]].concat();
    let mut outcome = Ok(());
    let mut sent = 0;
    for byte in message {
        outcome = ours.receive(&[22, 3, 1, 0, 1, byte]);
        sent += 6;
        if outcome.is_err() {
            break;
        }
    }
    assert!(matches!(outcome, Err(HandshakeError::TooLong)), "{outcome:?}");
    assert!(sent <= stillmesh_tls::handshake::MAX_BUFFERED + 6);
}

#[tokio::test]
async fn streams_are_driven_to_a_session_on_both_ends() {
    let pki = Pki::new();
    let (mut near, mut far) = duplex(100);
    let (mut client, mut server) = (pki.client(Suite::Aes256GcmSha384), pki.server(Suite::Aes256GcmSha384));
    prepare_client(&mut client);
    prepare_server(&mut server);
    // The client is done before they come, and this one does not read on.
    server.send_tls13_tickets = 0;
    let (near_end, far_end) =
        tokio::join!(connect(&mut near, Arc::new(client), name()), accept(&mut far, Arc::new(server)));
    let (mut client, mut server) = (End::new(near_end.unwrap()), End::new(far_end.unwrap()));
    let mut wire = client.send(b"to the server");
    let came = server.receive(&std::mem::take(&mut wire)).unwrap();
    assert_eq!(came.data, b"to the server");
    let wire = server.send(b"to the client");
    assert_eq!(client.receive(&wire).unwrap().data, b"to the client");
}

#[tokio::test]
async fn streams_that_end_or_talk_nonsense_are_errors() {
    let mut config = Pki::new().server(Suite::Aes128GcmSha256);
    prepare_server(&mut config);
    let config = Arc::new(config);
    let (near, mut far) = duplex(100);
    drop(near);
    let error = io::Error::from(accept(&mut far, Arc::clone(&config)).await.unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);

    let (mut near, mut far) = duplex(100);
    near.write_all(b"SSH-2.0-nonsense\r\n").await.unwrap();
    let error = io::Error::from(accept(&mut far, config).await.unwrap_err());
    let inside = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert!(matches!(inside, Some(rustls::Error::InvalidMessage(_))), "{error}");
    drop(far);
    let mut told = Vec::new();
    near.read_to_end(&mut told).await.unwrap();
    assert_eq!(told[0], 21, "an alert");
}
