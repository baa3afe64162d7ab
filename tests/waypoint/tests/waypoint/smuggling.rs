//! Requests that two readers could read differently: what reaches an endpoint has one meaning, and the waypoint's is the one
//! that counts. Each row is refused, or forwarded in a form that nobody can misread.

use std::sync::Arc;

use parking_lot::Mutex;
use stillmesh_test_support::isolated_async;
use stillmesh_waypoint_tests::{PATIENCE, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// What becomes of a request.
enum Becomes {
    /// 400, and nothing of it reaches the endpoint.
    Refused,
    /// This is what the endpoint reads after the head, and that the head has these lines.
    Forwarded(&'static str, &'static [&'static str]),
}

use Becomes::{Forwarded, Refused};

const TABLE: [(&str, &str, Becomes); 22] = [
    (
        "both lengths: the chunks count, and the other one goes",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        Forwarded("1\r\na\r\n0\r\n\r\n", &["transfer-encoding: chunked"]),
    ),
    (
        "both lengths, the other way round",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n1\r\na\r\n0\r\n\r\n",
        Forwarded("1\r\na\r\n0\r\n\r\n", &["transfer-encoding: chunked"]),
    ),
    ("two lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", Refused),
    ("a list of lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 2\r\n\r\nab", Refused),
    ("a length with a sign", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na", Refused),
    ("a negative length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\na", Refused),
    ("a length in hexadecimal", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x1\r\n\r\na", Refused),
    (
        "a length that is too large",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\na",
        Refused,
    ),
    (
        "chunked is not the last coding",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        Refused,
    ),
    ("an unknown coding", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", Refused),
    ("a coding in HTTP/1.0", "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused),
    ("a space before the colon", "GET / HTTP/1.1\r\nhost: a\r\nx-a : b\r\n\r\n", Refused),
    ("a folded line", "GET / HTTP/1.1\r\nhost: a\r\nx-a: b\r\n c: d\r\n\r\n", Refused),
    ("a carriage return alone", "GET / HTTP/1.1\r\nhost: a\r\nx-a: b\rx-c: d\r\n\r\n", Refused),
    ("a zero byte", "GET / HTTP/1.1\r\nhost: a\r\nx-a: b\0c\r\n\r\n", Refused),
    ("no host", "GET / HTTP/1.1\r\nx-a: b\r\n\r\n", Refused),
    ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", Refused),
    ("a space in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", Refused),
    (
        "the same length twice",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na",
        Forwarded("a", &["content-length: 1"]),
    ),
    (
        "lines that end without a carriage return",
        "POST / HTTP/1.1\nhost: a\ncontent-length: 1\n\na",
        Forwarded("a", &["content-length: 1"]),
    ),
    (
        "an extension of a chunk goes",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1;x=\"y\"\r\na\r\n0\r\n\r\n",
        Forwarded("1\r\na\r\n0\r\n\r\n", &["transfer-encoding: chunked"]),
    ),
    (
        "a whole URI: its host counts, whatever Host says",
        "GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n",
        Forwarded("", &["host: b", "GET / HTTP/1.1"]),
    ),
];

#[test]
fn nothing_reaches_an_endpoint_that_could_be_read_differently() {
    isolated_async(|| async {
        let mut world = World::new().await;
        let workload = world.workload("web");
        let web = world.service("web", "10.1.0.1", 1, &[&workload]);
        let listener = world.endpoint(&workload).await.listen().await;
        world.start(&[]).await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (all, own) = (seen.clone(), world.tasks.clone());
        world.tasks.spawn("application", async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let all = all.clone();
                own.spawn("connection", async move {
                    // Answers when all that is on its way has come, and closes.
                    let mut text = Vec::new();
                    while !is_whole(&text) {
                        if stream.read_buf(&mut text).await.is_ok_and(|length| length == 0) {
                            break;
                        }
                    }
                    all.lock().push(String::from_utf8_lossy(&text).into_owned());
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    drop(stream.write_all(answer).await);
                });
            }
        });

        let client = world.client("page", 1);
        for (name, request, becomes) in TABLE {
            let mut stream = client.stream(web).await;
            stream.write_all(request.as_bytes()).await.expect("a tunnel");
            stream.flush().await.expect("a tunnel");
            let mut answer = Vec::new();
            let read = async {
                while !answer.windows(4).any(|end| end == b"\r\n\r\n")
                    && stream.read_buf(&mut answer).await.is_ok_and(|length| length > 0)
                {}
            };
            assert!(timeout(PATIENCE, read).await.is_ok(), "{name}: no answer");
            let answer = String::from_utf8_lossy(&answer);
            let forwarded = std::mem::take(&mut *seen.lock());
            match becomes {
                Refused => {
                    assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {answer}, after {forwarded:?}");
                    assert!(forwarded.is_empty(), "{name}: {forwarded:?}");
                }
                Forwarded(body, lines) => {
                    assert!(answer.starts_with("HTTP/1.1 200 "), "{name}: {answer}");
                    let [forwarded] = forwarded.as_slice() else { panic!("{name}: {forwarded:?}") };
                    let (head, rest) = forwarded.split_once("\r\n\r\n").expect("a whole head");
                    assert_eq!(rest, body, "{name}");
                    for line in lines {
                        let name_of_line = line.split(':').next().unwrap_or_default();
                        assert_eq!(head.lines().filter(|known| known == line).count(), 1, "{name}: {line} in {head}");
                        let known = head.lines().filter(|known| known.starts_with(&format!("{name_of_line}:"))).count();
                        assert!(known <= 1, "{name}: {head}");
                    }
                    let lengths = ["content-length:", "transfer-encoding:"];
                    let count =
                        head.lines().filter(|line| lengths.iter().any(|length| line.starts_with(length))).count();
                    assert!(count <= 1, "{name}: {head}");
                }
            }
        }
        assert!(seen.lock().is_empty());
    });
}

/// Whether a head and what it announces have come.
fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let Some((head, rest)) = text.split_once("\r\n\r\n") else { return false };
    if head.contains("transfer-encoding: chunked") {
        return rest.ends_with("0\r\n\r\n");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    rest.len() >= length.unwrap_or(0)
}
