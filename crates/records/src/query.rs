//! What is asked of the records, as the query of a request to the admin port.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::record::{Field, Hop, Recorded};

/// Most records that one question is answered with.
pub const MOST_ANSWERS: usize = 1000;

/// Records of a question that does not say how many.
const USUAL_ANSWERS: usize = 100;

/// A question. Conditions of one kind are alternatives; all kinds have to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Any of these ids: of a CONNECT, of the one that carried it on, of a request, or what a refused client was told.
    pub ids: Vec<u128>,
    /// Clients.
    pub sources: Vec<Term>,
    /// Who was meant, or served.
    pub destinations: Vec<Term>,
    /// A port that was dialled or served.
    pub port: Option<u16>,
    /// Written within this time, or open still.
    pub since: Option<Duration>,
    /// A request's path; what is no request is taken whatever it asks for.
    pub path: Option<String>,
    /// A request's method, likewise.
    pub method: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// A workload: `pod/namespace/name`.
    Pod(String),
    /// An address: `ip/address`.
    Ip(IpAddr),
    /// A service: `service/namespace/hostname`, or `service/namespace/name` whatever the cluster's domain is.
    Service(String),
    /// An identity: `identity/spiffe://…`.
    Identity(String),
}

/// A question that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryError {
    key: String,
    value: String,
    accepted: &'static str,
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={:?}: {} is accepted", self.key, self.value, self.accepted)
    }
}

impl std::error::Error for QueryError {}

impl FromStr for Term {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (kind, name) = text.split_once('/').ok_or(())?;
        let named = || (!name.is_empty()).then(|| name.to_owned()).ok_or(());
        match kind {
            "pod" => named().map(Self::Pod),
            "service" => named().map(Self::Service),
            "identity" => named().map(Self::Identity),
            "ip" => name.parse::<IpAddr>().map(|ip| Self::Ip(ip.to_canonical())).map_err(drop),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod/{name}"),
            Self::Ip(ip) => write!(f, "ip/{ip}"),
            Self::Service(name) => write!(f, "service/{name}"),
            Self::Identity(identity) => write!(f, "identity/{identity}"),
        }
    }
}

impl Query {
    /// Everything, as much as is usual.
    pub fn all() -> Self {
        Self { limit: USUAL_ANSWERS, ..Self::default() }
    }

    /// Records with one of these ids, as much as may be told.
    pub fn of(ids: Vec<u128>) -> Self {
        Self { ids, limit: MOST_ANSWERS, ..Self::default() }
    }

    /// Reads the parameters of a request: `id`, `src`, `dst` (each any number of times), `port`, `since` in seconds, `path`,
    /// `method`, `limit`.
    pub fn read(parameters: &[(String, String)]) -> Result<Self, QueryError> {
        let mut query = Self::all();
        for (key, value) in parameters {
            let bad = |accepted| QueryError { key: key.clone(), value: value.clone(), accepted };
            let term = || value.parse().map_err(|()| bad("pod/NS/NAME, ip/ADDRESS, service/NS/HOST or identity/URI"));
            match key.as_str() {
                "id" => query.ids.push(id(value).ok_or_else(|| bad("an id of 16 or 32 hexadecimal digits"))?),
                "src" => query.sources.push(term()?),
                "dst" => query.destinations.push(term()?),
                "port" => query.port = Some(value.parse().map_err(|_| bad("a port"))?),
                "since" => {
                    let seconds = value.parse().map_err(|_| bad("a number of seconds"))?;
                    query.since = Some(Duration::from_secs(seconds));
                }
                "path" => query.path = Some(value.clone()),
                "method" => query.method = Some(value.clone()),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MOST_ANSWERS).contains(limit));
                    query.limit = limit.ok_or_else(|| bad("a number from 1 to 1000"))?;
                }
                _ => return Err(bad("of id, src, dst, port, since, path, method and limit one")),
            }
        }
        Ok(query)
    }

    /// Whether a request is asked for, by its method and its path as records have it.
    pub fn takes_request(&self, method: &str, path: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| wanted == method)
            && self.path.as_deref().is_none_or(|wanted| crate::draft::shortened(wanted) == path)
    }

    /// Whether what was dialled as `service` (its key; empty where no service was) may be asked for: whoever asks for a service
    /// does not mean another one that its pods serve too.
    pub fn is_for_service(&self, service: &str) -> bool {
        let named = self.destinations.iter().filter_map(|term| match term {
            Term::Service(name) => Some(name),
            _ => None,
        });
        let mut wanted = named.peekable();
        service.is_empty() || wanted.peek().is_none() || wanted.any(|name| is_service(service, name))
    }

    /// Whether a record is asked for. One that is written after `now_us` counts as new.
    pub fn takes(&self, recorded: &impl Recorded, now_us: u64) -> bool {
        let record = recorded.record();
        if let Some(since) = self.since {
            let age = now_us.saturating_sub(record.at_us);
            if u128::from(age) > since.as_micros() {
                return false;
            }
        }
        let own = [record.id, record.next, record.request, u128::from(record.decision)];
        if !self.ids.is_empty() && !self.ids.iter().any(|id| own.contains(id)) {
            return false;
        }
        let addresses = [record.original.get(), record.upstream.get()];
        if let Some(port) = self.port
            && !addresses.iter().flatten().any(|address| address.port() == port)
            && !is_port(recorded.text(Field::Authority), port)
        {
            return false;
        }
        if record.hop == Hop::Request && !self.takes_request(recorded.text(Field::Method), recorded.text(Field::Path)) {
            return false;
        }
        let is_source = |term: &Term| match term {
            Term::Pod(name) => is_pod(recorded.text(Field::Source), name),
            Term::Ip(ip) => record.source.get().is_some_and(|source| source.ip() == *ip),
            Term::Identity(identity) => recorded.text(Field::SourceIdentity) == identity,
            Term::Service(_) => false,
        };
        if !self.sources.is_empty() && !self.sources.iter().any(is_source) {
            return false;
        }
        let is_destination = |term: &Term| match term {
            Term::Pod(name) => is_pod(recorded.text(Field::Endpoint), name),
            Term::Ip(ip) => addresses.iter().flatten().any(|address| address.ip() == *ip),
            Term::Service(name) => {
                is_service(recorded.text(Field::Service), name) || is_authority(recorded.text(Field::Authority), name)
            }
            Term::Identity(_) => false,
        };
        if !self.is_for_service(recorded.text(Field::Service)) {
            return false;
        }
        self.destinations.is_empty() || self.destinations.iter().any(is_destination)
    }
}

/// As parameters of a request, escaped; [`Query::read`] reads them.
impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pairs = form_urlencoded::Serializer::new(String::new());
        pairs.extend_pairs(self.ids.iter().map(|id| ("id", format!("{id:032x}"))));
        pairs.extend_pairs(self.sources.iter().map(|term| ("src", term.to_string())));
        pairs.extend_pairs(self.destinations.iter().map(|term| ("dst", term.to_string())));
        pairs.extend_pairs(self.port.map(|port| ("port", port.to_string())));
        pairs.extend_pairs(self.since.map(|since| ("since", since.as_secs().to_string())));
        pairs.extend_pairs(self.path.as_ref().map(|path| ("path", path)));
        pairs.extend_pairs(self.method.as_ref().map(|method| ("method", method)));
        pairs.append_pair("limit", &self.limit.to_string());
        f.write_str(&pairs.finish())
    }
}

/// Whether a workload's uid (`cluster/group/kind/namespace/name`) is that of `namespace/name`.
fn is_pod(uid: &str, name: &str) -> bool {
    uid.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('/'))
}

/// Whether a service's key (`namespace/hostname`) is the one that is named.
fn is_service(key: &str, named: &str) -> bool {
    key == named
        || key
            .split_once('/')
            .zip(named.split_once('/'))
            .is_some_and(|((namespace, host), (wanted, name))| namespace == wanted && is_host(host, namespace, name))
}

/// Whether a CONNECT's authority is a port of the service that is named.
fn is_authority(authority: &str, named: &str) -> bool {
    let Some((host, (namespace, name))) = authority.rsplit_once(':').map(|(host, _)| host).zip(named.split_once('/'))
    else {
        return false;
    };
    host == name || is_host(host, namespace, name)
}

/// Whether a hostname is `name.namespace.svc.…`.
fn is_host(host: &str, namespace: &str, name: &str) -> bool {
    let rest = host.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
    rest.and_then(|rest| rest.strip_prefix(namespace)).is_some_and(|rest| rest.starts_with(".svc."))
}

fn is_port(authority: &str, port: u16) -> bool {
    authority.rsplit_once(':').is_some_and(|(_, text)| text.parse() == Ok(port))
}

/// An id as people have it: 16 or 32 hexadecimal digits, with hyphens or without. `None` is no id.
pub fn id(text: &str) -> Option<u128> {
    let digits: String = text.chars().filter(|one| *one != '-').collect();
    let legal = matches!(digits.len(), 16 | 32) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    legal.then(|| u128::from_str_radix(&digits, 16).ok()).flatten().filter(|id| *id != 0)
}
