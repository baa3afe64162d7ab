//! Whether a client begins with TLS, and which name it asks for: read from its ClientHello, which passes on untouched. Pure;
//! rustls parses.

use std::io::Cursor;

use rustls::server::Acceptor;

/// A ClientHello that is longer is none, bytes.
pub const LONGEST: usize = 16 << 10;

/// What a client's first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// It is TLS, asking for this name, in lower case.
    Tls(Option<String>),
    /// It is something else, or a ClientHello that cannot be read.
    Other,
    /// Not enough of it yet.
    Unclear,
}

/// Reads a ClientHello as it comes.
#[derive(Default)]
pub struct Reader {
    acceptor: Acceptor,
    /// How much of it was read.
    read: usize,
}

impl Reader {
    /// Says what `seen`, all that has come so far, begins with. To be asked until it is clear.
    pub fn look(&mut self, seen: &[u8]) -> Hello {
        // A handshake's record, of a version that begins with 3 (RFC 8446 section 5.1).
        let begins: &[u8] = &[22, 3];
        if !begins.iter().zip(seen).all(|(wanted, byte)| wanted == byte) {
            return Hello::Other;
        }
        if seen.len() < begins.len() {
            return Hello::Unclear;
        }
        let new = seen.get(self.read..LONGEST.min(seen.len())).unwrap_or_default();
        let mut cursor = Cursor::new(new);
        while cursor.position() < new.len() as u64 {
            match self.acceptor.read_tls(&mut cursor) {
                Ok(0) => break,
                Ok(length) => self.read += length,
                Err(_) => return Hello::Other,
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                    return Hello::Tls(name);
                }
                Err(_) => return Hello::Other,
            }
        }
        if self.read < LONGEST { Hello::Unclear } else { Hello::Other }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// What a client sends first that asks for a name.
    fn hello(name: &str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    #[test]
    fn the_name_is_known_when_the_hello_is_whole_however_it_comes() {
        let bytes = hello("A.Shop.example");
        let mut reader = Reader::default();
        for length in 0..bytes.len() {
            assert_eq!(reader.look(&bytes[..length]), Hello::Unclear, "{length} of {}", bytes.len());
        }
        let expected = Hello::Tls(Some("a.shop.example".to_owned()));
        assert_eq!(reader.look(&bytes), expected);
        let early = [&bytes[..], b"and more"].concat();
        assert_eq!(Reader::default().look(&early), expected);
    }

    #[test]
    fn a_client_may_ask_for_no_name() {
        assert_eq!(Reader::default().look(&hello("10.0.0.1")), Hello::Tls(None));
    }

    #[test]
    fn what_is_no_hello_is_told_at_once() {
        for other in [b"GET / HTTP/1.1\r\n".as_slice(), b"\x16GET", b"\x00", b"\x15\x03\x03\x00\x02\x01\x00"] {
            assert_eq!(Reader::default().look(other), Hello::Other, "{other:?}");
        }
        // An alert where a hello should be; a handshake's record with something else in it.
        assert_eq!(Reader::default().look(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"), Hello::Other);
    }

    #[test]
    fn a_hello_that_never_ends_is_none() {
        // One message of 1 MiB, in records of 4 KiB.
        let mut bytes = Vec::new();
        for record in 0..8 {
            bytes.extend([22, 3, 1, 16, 0]);
            let mut content = vec![0; 4096];
            if record == 0 {
                content[..4].copy_from_slice(&[1, 16, 0, 0]);
            }
            bytes.extend(content);
        }
        let mut reader = Reader::default();
        let ends = bytes.chunks(1000).scan(0, |end, chunk| {
            *end += chunk.len();
            Some(*end)
        });
        let seen: Vec<Hello> = ends.map(|end| reader.look(&bytes[..end])).collect();
        assert_eq!(seen.first(), Some(&Hello::Unclear));
        assert_eq!(seen.iter().position(|one| *one == Hello::Other).map(|at| at < 17), Some(true), "{seen:?}");
    }
}
