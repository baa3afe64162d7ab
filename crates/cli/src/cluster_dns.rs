//! The cluster DNS of a mesh on this machine: what CoreDNS is to a cluster. Runs as a system pod.
//!
//! Answers for the cluster's own names from the cluster directory, over UDP and TCP. There is nothing else to ask: the
//! pods of one machine reach each other and not the outside world, so other names do not exist.

mod zone;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::seq::SliceRandom;
use stillmesh_objects::directory::{DirectorySource, Options};
use stillmesh_objects::{Change, Source};
use stillmesh_runtime::accept::Acceptor;
use stillmesh_runtime::drain;
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use zone::{Meaning, Zone};

/// How long clients may keep an answer, seconds: names follow pods closely.
const TTL: u32 = 5;
/// What fits a UDP answer without EDNS, bytes (RFC 1035 section 4.2.1).
const PLAIN_UDP: u16 = 512;
/// Largest UDP answer, bytes.
const LARGEST_UDP: u16 = 1232;
/// TCP clients served at a time; more wait.
const MOST_CLIENTS: usize = 256;
/// How long a TCP client may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// From the environment.
#[derive(Debug)]
pub(crate) struct Config {
    /// The cluster directory (`OBJECTS_DIR`).
    objects: std::path::PathBuf,
    /// Domain of the cluster (`CLUSTER_DOMAIN`, default `cluster.local`).
    domain: String,
    /// Where to listen (`LISTEN`, default port 53 of every address).
    listen: SocketAddr,
}

impl Config {
    /// Reads and checks all of it.
    pub(crate) fn from_env(mut env: Reader) -> anyhow::Result<Self> {
        let config = Self {
            objects: env.required("OBJECTS_DIR", "the directory of the cluster's objects").into(),
            domain: env.string("CLUSTER_DOMAIN").unwrap_or_else(|| "cluster.local".to_owned()),
            listen: env.parse_or("LISTEN", SocketAddr::from((Ipv6Addr::UNSPECIFIED, 53)), "an address and port"),
        };
        env.finish()?;
        Ok(config)
    }
}

/// The cluster's names, shared by all who answer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Names(Arc<RwLock<Zone>>);

impl Names {
    /// A cluster of this domain without names of its own.
    pub fn new(domain: &str) -> Self {
        Self(Arc::new(RwLock::new(Zone::new(domain))))
    }

    /// Takes what changed; objects without names are passed over.
    pub fn take<'a>(&self, changes: impl IntoIterator<Item = &'a Change>) {
        let mut zone = self.0.write().unwrap_or_else(PoisonError::into_inner);
        changes.into_iter().for_each(|change| zone.take(change));
    }

    /// The answer to a question's bytes; `None` where there is nothing to say (not a question). `limit`: the largest
    /// answer where the client says nothing about it (UDP).
    pub fn respond(&self, bytes: &[u8], limit: Option<u16>) -> Option<Vec<u8>> {
        let zone = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let question = Message::from_vec(bytes).ok()?;
        if question.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
        reply.metadata = Metadata::response_from_request(&question.metadata);
        reply.metadata.recursion_available = true;
        let mut largest = limit;
        if let Some(edns) = &question.edns {
            largest = limit.map(|limit| edns.max_payload().clamp(limit, LARGEST_UDP));
            let mut answer = Edns::new();
            answer.set_max_payload(LARGEST_UDP);
            reply.set_edns(answer);
        }
        reply.metadata.response_code = match question.queries.as_slice() {
            _ if question.metadata.op_code != OpCode::Query => ResponseCode::NotImp,
            [query] if query.query_class() == DNSClass::IN => {
                reply.add_query(query.clone());
                fill(&zone, query, &mut reply)
            }
            [_] => ResponseCode::Refused,
            _ => ResponseCode::FormErr,
        };
        let bytes = reply.to_vec().ok()?;
        match largest {
            Some(largest) if bytes.len() > usize::from(largest) => reply.truncate().to_vec().ok(),
            _ => Some(bytes),
        }
    }
}

/// Serves until the drain starts.
pub(crate) async fn run(config: Config, drain: drain::Watch) -> anyhow::Result<()> {
    let directory = config.objects.display();
    let mut source =
        DirectorySource::open(&config.objects, Options::default()).with_context(|| format!("watch {directory}"))?;
    let names = Names::new(&config.domain);
    // Both families where the machine has IPv6, else IPv4.
    let listen = match UdpSocket::bind(config.listen).await {
        Ok(_) => config.listen,
        Err(_) if config.listen.ip() == Ipv6Addr::UNSPECIFIED => SocketAddr::from(([0, 0, 0, 0], config.listen.port())),
        Err(error) => return Err(error).with_context(|| format!("listen on {}", config.listen)),
    };
    let udp = UdpSocket::bind(listen).await.with_context(|| format!("listen on UDP {listen}"))?;
    let tcp = TcpListener::bind(listen).await.with_context(|| format!("listen on TCP {listen}"))?;
    let tasks = Tasks::new("cluster-dns");
    tasks.spawn("udp", serve_udp(udp, names.clone()));
    tasks.spawn("tcp", serve_tcp(tcp, names.clone(), tasks.child("clients")));
    loop {
        let update = tokio::select! {
            update = source.next() => update,
            _ = drain.signaled() => return Ok(()),
        };
        let Some(update) = update else { return Ok(()) };
        names.take(&update.changes);
    }
}

async fn serve_udp(socket: UdpSocket, names: Names) {
    let mut packet = [0; 4096];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut packet).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let reply = packet.get(..length).and_then(|bytes| names.respond(bytes, Some(PLAIN_UDP)));
        if let Some(reply) = reply {
            // A client that cannot be reached asks again or not.
            let _ = socket.send_to(&reply, client).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, names: Names, tasks: Tasks) {
    let acceptor = Acceptor::new("cluster-dns", listener, MOST_CLIENTS);
    loop {
        let accepted = acceptor.accept().await;
        let names = names.clone();
        tasks.spawn("client", async move {
            let _permit = accepted.permit;
            let mut stream = accepted.connection;
            while let Ok(Ok(())) = timeout(PATIENCE, exchange(&mut stream, &names)).await {}
        });
    }
}

/// One question and its answer over TCP. Errors: the client is done, or asks what has no answer.
async fn exchange(stream: &mut TcpStream, names: &Names) -> std::io::Result<()> {
    let mut question = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut question).await?;
    let reply = names.respond(&question, None).ok_or(std::io::ErrorKind::InvalidData)?;
    let length = u16::try_from(reply.len()).map_err(std::io::Error::other)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend(reply);
    stream.write_all(&message).await
}

/// Puts the answer's records into `reply`.
fn fill(zone: &Zone, query: &Query, reply: &mut Message) -> ResponseCode {
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    reply.metadata.authoritative = zone.owns(&name);
    let meaning = zone.meaning(&name);
    let exists = meaning.is_some();
    let mut records = meaning.map(|meaning| data(meaning, query.query_type())).unwrap_or_default();
    records.shuffle(&mut rand::rng());
    let empty = records.is_empty();
    for record in records {
        reply.add_answer(Record::from_rdata(query.name().clone(), TTL, record));
    }
    if empty
        && let (Ok(zone), Ok(server)) = (Name::from_ascii("cluster.local."), Name::from_ascii("ns.dns.cluster.local."))
    {
        // How long "there is none" may be kept (RFC 2308 section 5).
        let soa = SOA::new(server.clone(), server, 1, 7200, 1800, 86400, TTL);
        reply.add_authority(Record::from_rdata(zone, TTL, RData::SOA(soa)));
    }
    if exists { ResponseCode::NoError } else { ResponseCode::NXDomain }
}

/// The records of the type asked for.
fn data(meaning: Meaning, wanted: RecordType) -> Vec<RData> {
    let name = |text: &str| Name::from_ascii(format!("{text}.")).ok();
    let any = wanted == RecordType::ANY;
    match meaning {
        Meaning::Addresses(addresses) => addresses
            .into_iter()
            .filter_map(|address| match address {
                std::net::IpAddr::V4(address) if any || wanted == RecordType::A => Some(RData::A(A(address))),
                std::net::IpAddr::V6(address) if any || wanted == RecordType::AAAA => Some(RData::AAAA(AAAA(address))),
                _ => None,
            })
            .collect(),
        Meaning::Services(targets) if any || wanted == RecordType::SRV => {
            let record = |target: &zone::Target| Some(RData::SRV(SRV::new(0, 100, target.port, name(&target.host)?)));
            targets.iter().filter_map(record).collect()
        }
        // An alias answers every type (RFC 1034 section 3.6.2).
        Meaning::Alias(other) => name(&other).map(|other| RData::CNAME(CNAME(other))).into_iter().collect(),
        Meaning::Pointers(names) if any || wanted == RecordType::PTR => {
            names.iter().filter_map(|text| name(text)).map(|name| RData::PTR(PTR(name))).collect()
        }
        Meaning::Text(text) if any || wanted == RecordType::TXT => vec![RData::TXT(TXT::new(vec![text]))],
        Meaning::Services(_) | Meaning::Pointers(_) | Meaning::Text(_) | Meaning::Nothing => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, wanted: RecordType) -> Message {
        let names = Names::new("cluster.local");
        let manifests = "{apiVersion: v1, kind: Service, metadata: {name: page, namespace: shop}, \
                         spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}}";
        for placed in stillmesh_k8s::parse::documents("test.yaml", manifests).objects {
            names.take(&[Change::Set(placed)]);
        }
        let mut question = Message::query();
        question.metadata.id = 7;
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), wanted));
        let reply = names.respond(&question.to_vec().unwrap(), Some(PLAIN_UDP)).unwrap();
        Message::from_vec(&reply).unwrap()
    }

    #[test]
    fn a_service_is_answered_with_its_address() {
        let reply = ask("Page.shop.svc.cluster.local.", RecordType::A);
        assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::NoError));
        assert_eq!(reply.answers.len(), 1);
    }

    #[test]
    fn a_family_that_is_not_there_is_an_empty_answer_and_an_unknown_name_does_not_exist() {
        let reply = ask("page.shop.svc.cluster.local.", RecordType::AAAA);
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(ask("nobody.shop.svc.cluster.local.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(ask("example.org.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    }

    #[test]
    fn garbage_gets_no_answer() {
        let names = Names::new("cluster.local");
        assert_eq!(names.respond(b"", Some(PLAIN_UDP)), None);
        assert_eq!(names.respond(&[0xff; 40], Some(PLAIN_UDP)), None);
    }
}
