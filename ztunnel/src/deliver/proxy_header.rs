//! The PROXY protocol's header, version 2, that application tunnels ask for (contract 3.4): real source, meant
//! destination, and the source's SPIFFE id. Pure.

use std::net::{IpAddr, SocketAddr};

use stillmesh_core::model::Identity;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// TLV type of the source's identity as a URI.
const SOURCE_IDENTITY: u8 = 0xD0;

/// The header of a connection. Addresses of different families are both written as IPv6.
pub fn encode(source: SocketAddr, destination: SocketAddr, identity: Option<&Identity>) -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            body.extend(from.octets());
            body.extend(to.octets());
            TCP_OVER_IPV4
        }
        (from, to) => {
            body.extend(as_v6(from));
            body.extend(as_v6(to));
            TCP_OVER_IPV6
        }
    };
    body.extend(source.port().to_be_bytes());
    body.extend(destination.port().to_be_bytes());
    if let Some(identity) = identity {
        let uri = identity.to_string();
        // Identities are at most three names of 255 bytes.
        let length = u16::try_from(uri.len()).unwrap_or(0);
        body.push(SOURCE_IDENTITY);
        body.extend(length.to_be_bytes());
        body.extend(uri.bytes().take(usize::from(length)));
    }
    let mut header = Vec::with_capacity(16 + body.len());
    header.extend(SIGNATURE);
    header.extend([VERSION_AND_COMMAND, family]);
    header.extend(u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
    header.extend(body);
    header
}

fn as_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use stillmesh_core::model::TrustDomain;

    use super::*;

    #[test]
    fn an_ipv4_header_is_as_the_specification_draws_it() {
        let identity = Identity::new(TrustDomain::default(), "a", "b");
        let header = encode("10.0.0.1:4000".parse().unwrap(), "10.0.0.2:80".parse().unwrap(), Some(&identity));
        let uri = b"spiffe://cluster.local/ns/a/sa/b";
        let mut expected = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x11".to_vec();
        expected.extend([0, 12 + 3 + uri.len() as u8]);
        expected.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x0f, 0xa0, 0, 80]);
        expected.extend([0xD0, 0, uri.len() as u8]);
        expected.extend(uri);
        assert_eq!(header, expected);
    }

    #[test]
    fn mixed_families_are_written_as_ipv6() {
        let header = encode("10.0.0.1:1".parse().unwrap(), "[fd00::1]:2".parse().unwrap(), None);
        assert_eq!(header[13], 0x21);
        assert_eq!(header.len(), 16 + 36);
    }
}
