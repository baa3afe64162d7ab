//! Requests, written by hand as no client library would, and what is answered.

use std::collections::BTreeMap;
use std::io;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::chance::Chance;
use super::table::{ARGUMENTS, HOSTS, METHODS, NAMES, PARAMETERS, PATHS, VALUES};

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub method: &'static str,
    /// Path and query, as they are written.
    pub target: String,
    pub host: &'static str,
    pub headers: Vec<(&'static str, &'static str)>,
}

impl Asked {
    /// A request by chance.
    pub fn new(chance: &mut Chance) -> Self {
        let method = if chance.hits(60) { "GET" } else { chance.of(METHODS) };
        let mut target = a_path(chance);
        let query: Vec<String> = if chance.hits(35) {
            chance.some(3, |chance| match chance.below(5) {
                0 => chance.of(PARAMETERS).to_owned(),
                _ => format!("{}={}", chance.of(PARAMETERS), chance.of(ARGUMENTS)),
            })
        } else {
            Vec::new()
        };
        if !query.is_empty() {
            target = format!("{target}?{}", query.join("&"));
        }
        let headers = chance.some(3, |chance| (chance.of(NAMES), chance.of(VALUES)));
        Self { method, target, host: chance.of(HOSTS), headers }
    }

    /// The path without its query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&*self.target, |(path, _)| path)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.target, self.host);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if self.method != "GET" {
            text += "content-length: 0\r\n";
        }
        (text + "\r\n").into_bytes()
    }
}

fn a_path(chance: &mut Chance) -> String {
    let mut path = chance.of(PATHS).to_owned();
    while chance.hits(40) {
        let at = |chance: &mut Chance, path: &str, what: char| {
            let all: Vec<usize> = path.match_indices(what).map(|(index, _)| index).collect();
            (!all.is_empty()).then(|| chance.of(&all))
        };
        match chance.below(14) {
            0 => path.push('/'),
            1 => path += chance.of(PATHS),
            2 => path.push('x'),
            3 => path = path.to_ascii_uppercase(),
            4 => path += chance.of(&["/.", "/..", "/./b", "/../b", "/%2e%2E/b", "/..;a", "/.;/b"]),
            5 => {
                if let Some(index) = at(chance, &path, '/') {
                    path.insert(index, '/');
                }
            }
            6 => {
                if let Some(index) = at(chance, &path, 'a') {
                    path.replace_range(index..=index, "%61");
                }
            }
            7 => {
                if let Some(index) = at(chance, &path, '/').filter(|index| *index > 0) {
                    path.replace_range(index..=index, chance.of(&["%2F", "%2f", "%5C", "\\"]));
                }
            }
            8 => path += chance.of(&["%", "%zz", "%4", "%%341", "%00", "%252F", "%C3%A9", "%3f"]),
            9 => path += chance.of(&[";p=1", "&", "=", "+", "~", "'", "(b)", "@", ":", "$", "!", "*", ","]),
            _ => {}
        }
    }
    path
}

/// What is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    /// Those whose name begins with `x-`, by name.
    pub headers: BTreeMap<String, Vec<String>>,
    /// Of an answer that no backend made: its type and its words.
    pub own: Option<(Option<String>, String)>,
    /// What a backend saw.
    pub seen: Option<Seen>,
}

/// What a backend saw of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    pub method: String,
    pub target: String,
    pub headers: BTreeMap<String, Vec<String>>,
}

/// Headers in which both differ by design: who the client is, what a request is called, what belongs to one hop.
fn is_compared(name: &str) -> bool {
    !name.starts_with("x-envoy")
        && !matches!(name, "x-request-id" | "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-client-cert")
}

/// Sends a request and reads its answer; says whether the connection may be used again.
pub async fn ask(io: &mut dyn Io, asked: &Asked) -> io::Result<(Answer, bool)> {
    io.write_all(&asked.bytes()).await?;
    io.flush().await?;
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        more(io, &mut read).await?;
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let mut rest = read.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let bad = || io::Error::other(format!("no answer: {head:?}"));
    let status: u16 = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(bad)?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())))
        .collect();
    let value = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let length: usize = match value("content-length") {
        _ if asked.method == "HEAD" || matches!(status, 204 | 304) => 0,
        Some(length) => length.parse().map_err(io::Error::other)?,
        None if value("transfer-encoding").is_some() => return Err(bad()),
        None => 0,
    };
    while rest.len() < length {
        more(io, &mut rest).await?;
    }
    let body = String::from_utf8_lossy(&rest).into_owned();
    let by_backend = value("x-backend").is_some();
    let mut answer = Answer { status, location: value("location"), ..Answer::default() };
    for (name, value) in headers.iter().filter(|(name, _)| name.starts_with("x-") && is_compared(name)) {
        answer.headers.entry(name.clone()).or_default().push(value.clone());
    }
    if by_backend {
        let name = value("x-backend").unwrap_or_default();
        answer.seen = Some(Seen::read(name, &body));
    } else {
        answer.own = Some((value("content-type"), body));
    }
    Ok((answer, value("connection").as_deref() != Some("close")))
}

async fn more(io: &mut dyn Io, into: &mut Vec<u8>) -> io::Result<()> {
    match io.read_buf(into).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

impl Seen {
    /// An answer to HEAD has no more than the name.
    fn read(name: String, body: &str) -> Self {
        let seen: Value = serde_json::from_str(body).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in seen["headers"].as_array().into_iter().flatten() {
            let name = text(&pair[0]);
            if is_compared(&name) {
                headers.entry(name).or_default().push(text(&pair[1]));
            }
        }
        Self { name, method: text(&seen["method"]), target: text(&seen["target"]), headers }
    }
}
