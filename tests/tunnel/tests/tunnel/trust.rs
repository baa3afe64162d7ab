//! Roots that change and certificates that are revoked, under traffic.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use stillmesh_core::model::TrustDomain;
use stillmesh_identity::Issuer;
use stillmesh_test_support::isolated_async;
use stillmesh_tunnel_tests::{Mesh, Node, Pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

async fn open(from: &Pod, to: &Pod) -> TcpStream {
    let mut stream = from.connect(to.at(8080)).await.unwrap();
    let mut greeting = vec![0; from.v4.to_string().len() + 1];
    timeout(SOON, stream.read_exact(&mut greeting)).await.unwrap().unwrap();
    stream
}

async fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    timeout(SOON, stream.read_exact(&mut echo)).await.unwrap().unwrap();
}

fn list<'a>(certificate: &'a Value, key: &str) -> &'a [Value] {
    certificate[key].as_array().map_or(&[], Vec::as_slice)
}

/// Carries on until the certificates of a node are such.
async fn until(node: &Node, page: &Pod, details: &Pod, stream: &mut TcpStream, done: impl Fn(&Value) -> bool) {
    let carrying = async {
        loop {
            page.ask(details.at(8080), "hello").await.unwrap();
            echoes(stream).await;
            let dump = node.admin("/config_dump").await;
            let all = dump["certificates"].as_array().unwrap();
            if !all.is_empty() && all.iter().all(&done) {
                return;
            }
        }
    };
    timeout(SOON * 3, carrying).await.unwrap();
}

#[test]
fn a_root_is_replaced_under_traffic_without_a_failure() {
    isolated_async(|| async {
        let mut mesh = Mesh::with_leaf_life(Duration::from_secs(6)).await;
        let (one, two) = (mesh.node().await, mesh.node().await);
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        details.echo(8080).await;
        let mut stream = open(&page, &details).await;
        let old = mesh.control.issuer.clone();
        let new = Arc::new(Issuer::create(&TrustDomain::default(), SystemTime::now()).unwrap());
        let first = {
            let dump = one.admin("/config_dump").await;
            dump["certificates"][0]["rootCerts"][0]["pem"].clone()
        };
        for (signs, roots) in [(&old, vec![&old, &new]), (&new, vec![&old, &new]), (&new, vec![&new])] {
            mesh.control.rotate(signs, &roots);
            let serials = async |node: &Node| {
                let dump = node.admin("/config_dump").await;
                dump["certificates"][0]["certChain"][0]["serialNumber"].clone()
            };
            for node in [&one, &two] {
                let before = serials(node).await;
                until(node, &page, &details, &mut stream, |certificate| {
                    let renewed = certificate["certChain"][0]["serialNumber"] != before;
                    renewed && list(certificate, "rootCerts").len() == roots.len()
                })
                .await;
            }
        }
        for node in [&one, &two] {
            let dump = node.admin("/config_dump").await;
            assert_ne!(dump["certificates"][0]["rootCerts"][0]["pem"], first, "the old root is gone");
            node.counts("istio_tcp_connections_failed_total", &[], 0).await;
        }
        // A connection that is opened now is between two that know nothing of the old root.
        echoes(&mut open(&page, &details).await).await;
    });
}

/// The serial number of a node's only certificate, hexadecimal.
async fn serial(node: &Node) -> String {
    let dump = node.admin("/config_dump").await;
    let decimal = dump["certificates"][0]["certChain"][0]["serialNumber"].as_str().unwrap().to_owned();
    let mut bytes = vec![0u8];
    for digit in decimal.bytes() {
        let mut carry = u32::from(digit - b'0');
        for byte in bytes.iter_mut().rev() {
            let value = u32::from(*byte) * 10 + carry;
            *byte = u8::try_from(value & 0xff).unwrap();
            carry = value >> 8;
        }
        if carry > 0 {
            bytes.insert(0, u8::try_from(carry).unwrap());
        }
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_revoked_certificate_ends_open_connections_and_opens_none() {
    isolated_async(|| async {
        let mut mesh = Mesh::new().await;
        let dir = tempfile::tempdir().unwrap();
        let crl = dir.path().join("crl.pem");
        let issuer = mesh.control.issuer.clone();
        let revoke = |serials: &[&str]| {
            let list = issuer.revocation_list(serials, Duration::from_secs(3600), SystemTime::now()).unwrap();
            std::fs::write(&crl, list).unwrap();
        };
        revoke(&[]);
        let path = crl.display().to_string();
        let one = mesh.node_with(&[("CRL_PATH", &path)]).await;
        // The other end knows of no list: what ends the connections is this node's.
        let two = mesh.node().await;
        let (page, details) = (mesh.pod(&one, "shop/page").await, mesh.pod(&two, "shop/details").await);
        for pod in [&page, &details] {
            pod.echo(8080).await;
        }
        let (mut out, mut back) = (open(&page, &details).await, open(&details, &page).await);
        echoes(&mut out).await;
        echoes(&mut back).await;

        revoke(&[&serial(&two).await]);
        for stream in [&mut out, &mut back] {
            let mut rest = Vec::new();
            let ended = timeout(SOON, stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "it outlives its certificate");
        }
        assert!(page.ask(details.at(8080), "hello").await.is_err());
        assert!(details.ask(page.at(8080), "hello").await.is_err());
        one.counts("istio_tcp_connections_failed_total", &["response_flags=\"CERT_REVOKED\""], 1).await;
        for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
            assert!(one.metric("istio_crl_policy_rejections_total", &[reporter]).await >= 2, "{reporter}");
        }

        revoke(&[]);
        let forgiven = async {
            while page.ask(details.at(8080), "hello").await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, forgiven).await.unwrap();
        two.counts("istio_crl_policy_rejections_total", &[], 0).await;
    });
}
