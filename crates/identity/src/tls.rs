//! The TLS configurations of the mesh: TLS 1.3 only, ALPN `h2`, no resumption, no 0-RTT, no SNI.
//!
//! No handshake is ever shortened, so that an expired certificate or a changed root always bites.

use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use stillmesh_core::model::Identity;

use crate::issuer::Serving;
use crate::verify::{ExpectIdentity, ExpectTrustDomain};
use crate::{Leaf, TlsError};

/// The only protocol spoken inside mesh TLS.
pub const ALPN: &[u8] = b"h2";

/// AES-GCM suites and X25519MLKEM768 before X25519; nothing else.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites =
        vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384, aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
});

/// The cryptography of the mesh's own connections.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// The name to pass to rustls's client. It is not sent (no SNI) and not checked: identities are.
pub fn dummy_server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// How a holder of `leaf` dials a peer that must show one of `expected` (contract 3.1).
///
/// An empty `expected` refuses every peer.
pub fn client_config(leaf: &Leaf, expected: &[Identity]) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = ExpectIdentity::new(Arc::clone(leaf.bundle()), expected.to_vec(), Arc::clone(leaf.revocations()));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    stillmesh_tls::prepare_client(&mut config);
    Ok(Arc::new(config))
}

/// How a holder of `leaf` answers: the peer must show an identity of the leaf's own trust domain (contract 3.1).
///
/// Made once per leaf. A server waits for its leaf ([`Secrets::leaf`](crate::Secrets::leaf)) before the handshake.
pub fn server_config(leaf: &Leaf) -> Result<Arc<ServerConfig>, TlsError> {
    leaf.server(|| {
        let own = leaf.identity().trust_domain.clone();
        let verifier = ExpectTrustDomain::new(Arc::clone(leaf.bundle()), own, Arc::clone(leaf.revocations()))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified())));
        let mut config = without_resumption(config);
        stillmesh_tls::prepare_server(&mut config);
        Ok(Arc::new(config))
    })
}

/// How the control plane answers its nodes: a certificate with DNS and IP names, clients authenticate by token.
pub fn serving_config(serving: &Serving) -> Result<Arc<ServerConfig>, TlsError> {
    let key = provider().key_provider.load_private_key(serving.key.clone_key())?;
    let certified = CertifiedKey::new(serving.chain.clone(), key);
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    Ok(Arc::new(without_resumption(config)))
}

fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}
