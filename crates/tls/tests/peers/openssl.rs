//! OpenSSL's `s_server` and `s_client` as the peer, over Unix sockets, with certificates on both sides. A line on their
//! standard input is sent; `K` and `k` send a KeyUpdate, `Q` ends.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use stillmesh_tls::session::KeyUpdateRequest;
use stillmesh_tls::{Established, Suite, accept, connect, prepare_client, prepare_server};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::end::End;
use crate::pki::{Leaf, Pki, name};
use crate::rustls_peer::pattern;

/// Nothing here takes long: whoever waits so long waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `openssl`.
struct OpenSsl {
    _child: Child,
    input: ChildStdin,
    output: ChildStdout,
    said: Vec<u8>,
}

impl OpenSsl {
    fn start(directory: &Path, pki: &Pki, suite: Suite, arguments: &[&str]) -> Self {
        let Leaf { certificate, key } = pki.leaf();
        for (file, text) in [("ca", pki.pem()), ("certificate", certificate.pem()), ("key", key.serialize_pem())] {
            std::fs::write(directory.join(file), text).unwrap();
        }
        let suite = match suite {
            Suite::Aes128GcmSha256 => "TLS_AES_128_GCM_SHA256",
            Suite::Aes256GcmSha384 => "TLS_AES_256_GCM_SHA384",
        };
        let mut child = Command::new("openssl")
            .args(arguments)
            .args(["-unix", "socket", "-tls1_3", "-ciphersuites", suite, "-cert", "certificate", "-key", "key"])
            .args(["-CAfile", "ca", "-verify_return_error", "-alpn", "h2"])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("openssl (Debian: apt-get install openssl): {error}"));
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { _child: child, input, output, said: Vec::new() }
    }

    async fn tell(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).await.unwrap();
        self.input.flush().await.unwrap();
    }

    /// Waits until it has said this, behind what was waited for before.
    async fn says(&mut self, text: &[u8]) {
        let mut bytes = vec![0; 1 << 16];
        loop {
            if let Some(at) = self.said.windows(text.len()).position(|window| window == text) {
                self.said.drain(..at + text.len());
                return;
            }
            let read = timeout(PATIENCE, self.output.read(&mut bytes)).await;
            let read = read.map_or(0, Result::unwrap);
            let said = String::from_utf8_lossy(&self.said).into_owned();
            assert!(read > 0, "openssl did not say {:?}, but {said:?}", String::from_utf8_lossy(text));
            self.said.extend(&bytes[..read]);
        }
    }
}

/// Our end on a socket.
struct Wire {
    end: End,
    io: UnixStream,
    came: Vec<u8>,
}

impl Wire {
    fn new(established: Established, io: UnixStream) -> Self {
        // Its own, and the CA's, which it knows.
        assert_eq!(established.peer_certificates.len(), 2);
        assert_eq!(established.alpn.as_deref(), Some(&b"h2"[..]));
        let mut end = End::new(established);
        let came = end.receive(&[]).unwrap().data;
        Self { end, io, came }
    }

    async fn write(&mut self, bytes: Vec<u8>) {
        timeout(PATIENCE, self.io.write_all(&bytes)).await.unwrap().unwrap();
    }

    async fn send(&mut self, data: &[u8]) {
        let bytes = self.end.send(data);
        self.write(bytes).await;
    }

    /// Reads once. Whether the peer has closed its direction.
    async fn read(&mut self) -> bool {
        let mut bytes = vec![0; 1 << 16];
        let read = timeout(PATIENCE, self.io.read(&mut bytes)).await.unwrap().unwrap();
        assert!(read > 0, "truncated: {:?}", self.end.session().end_of_stream());
        let came = self.end.receive(&bytes[..read]).unwrap();
        self.came.extend(came.data);
        came.closed
    }

    async fn expect(&mut self, data: &[u8]) {
        while self.came.len() < data.len() {
            assert!(!self.read().await, "closed");
        }
        assert!(self.came == data, "other bytes came");
        self.came.clear();
    }

    async fn expect_end(&mut self) {
        while !self.read().await {}
        assert!(self.came.is_empty());
        assert_eq!(self.end.session().end_of_stream(), Ok(()));
    }
}

/// All that both roles do.
async fn talk(mut wire: Wire, mut openssl: OpenSsl, first_to_end: First) {
    wire.send(b"first\n").await;
    openssl.says(b"first\n").await;
    openssl.tell("second\n").await;
    wire.expect(b"second\n").await;

    // Its KeyUpdates, without a question and with one, which we answer.
    for command in ["k\n", "K\n", "k\n", "K\n"] {
        let before = wire.end.others;
        openssl.tell(command).await;
        while wire.end.others == before {
            assert!(!wire.read().await, "closed");
        }
        assert_eq!(wire.end.session().due(), command == "K\n");
        wire.send(b"with new keys\n").await;
        openssl.says(b"with new keys\n").await;
        openssl.tell("with new keys, too\n").await;
        wire.expect(b"with new keys, too\n").await;
    }
    // Ours; it answers with what it sends next.
    for (request, answers) in [(KeyUpdateRequest::NotRequested, 0), (KeyUpdateRequest::Requested, 1)] {
        let before = wire.end.others;
        let update = wire.end.update(request);
        wire.write(update).await;
        wire.send(b"with newer keys\n").await;
        openssl.says(b"with newer keys\n").await;
        openssl.tell("with newer keys, too\n").await;
        wire.expect(b"with newer keys, too\n").await;
        assert_eq!(wire.end.others - before, answers);
    }
    // In bulk; as text, for it to be printed as it is.
    let bulk: Vec<u8> = pattern(300_000).iter().map(|byte| b'a' + byte % 26).collect();
    // No more at once than its output's pipe holds.
    for part in bulk.chunks(40_000) {
        wire.send(part).await;
        openssl.says(part).await;
    }
    for _ in 0..100 {
        let line = [&bulk[..2000], b"\n"].concat();
        openssl.tell(std::str::from_utf8(&line).unwrap()).await;
        wire.expect(&line).await;
    }
    match first_to_end {
        First::We => {
            let end = wire.end.close();
            wire.write(end).await;
        }
        First::OpenSsl => openssl.tell("Q\n").await,
    }
    wire.expect_end().await;
}

/// Who sends close_notify first. `s_server` only answers it: told to end, it just closes its socket.
enum First {
    We,
    OpenSsl,
}

fn version() -> String {
    let run = std::process::Command::new("openssl").arg("version").output();
    let run = run.unwrap_or_else(|error| panic!("openssl (Debian: apt-get install openssl): {error}"));
    String::from_utf8(run.stdout).unwrap()
}

#[tokio::test]
async fn its_server_and_our_client() {
    let pki = Pki::new();
    assert!(version().starts_with("OpenSSL 3."), "{}", version());
    for (suite, moves) in [(Suite::Aes128GcmSha256, false), (Suite::Aes256GcmSha384, true)] {
        let directory = TempDir::new().unwrap();
        let mut openssl = OpenSsl::start(directory.path(), &pki, suite, &["s_server", "-Verify", "1"]);
        openssl.says(b"ACCEPT").await;
        let mut io = UnixStream::connect(directory.path().join("socket")).await.unwrap();
        let mut config = pki.client(suite);
        prepare_client(&mut config);
        let shaken = timeout(PATIENCE, connect(&mut io, Arc::new(config), name())).await.unwrap().unwrap();
        let mut wire = Wire::new(shaken, io);
        wire.end.moves = moves;
        // Two tickets.
        while wire.end.others < 2 {
            assert!(!wire.read().await, "closed");
        }
        talk(wire, openssl, First::We).await;
    }
}

#[tokio::test]
async fn its_client_and_our_server() {
    let pki = Pki::new();
    for (suite, moves) in [(Suite::Aes128GcmSha256, true), (Suite::Aes256GcmSha384, false)] {
        let directory = TempDir::new().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let openssl = OpenSsl::start(directory.path(), &pki, suite, &["s_client", "-verify", "1"]);
        let (mut io, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut config = pki.server(suite);
        prepare_server(&mut config);
        let shaken = timeout(PATIENCE, accept(&mut io, Arc::new(config))).await.unwrap().unwrap();
        let mut wire = Wire::new(shaken, io);
        wire.end.moves = moves;
        talk(wire, openssl, First::OpenSsl).await;
    }
}
