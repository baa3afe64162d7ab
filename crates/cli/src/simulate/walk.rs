//! One connection on its way through the mesh. Nothing is decided here: each hop asks core what its tunnel or waypoint would
//! ask, of the same snapshot, and goes on with the answer.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Uri, header};
use serde_json::Value;
use stillmesh_core::attrs::{
    AccessAttrs, Authority, ConnectAttrs, InboundAttrs, Opening, OutboundAttrs, RequestAttrs, StreamAttrs, Token,
};
use stillmesh_core::decide::{self, Dial, Endpoint, Live, OutboundPlan, OutboundProtocol, Refusal, Target, Verdict};
use stillmesh_core::explain::Reason;
use stillmesh_core::model::access::{JwtRule, normalize};
use stillmesh_core::model::http::RouteKey;
use stillmesh_core::model::{AppProtocol, Identity, Service, Str, TunnelProtocol, Workload, WorkloadUid};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_records::{Field, Hop, Told};
use stillmesh_waypoint::authenticate;
use stillmesh_waypoint::path::plan::{self, Action};
use stillmesh_waypoint::path::{All, Spoken, Version, spoken};

use super::request::Read;
use super::tell::Telling;

/// Who connects.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Its workload, where it has one.
    pub(crate) workload: Option<Arc<Workload>>,
    /// Its address.
    pub(crate) ip: IpAddr,
}

impl Client {
    /// Its workload, where a tunnel carries what it sends.
    fn captured(&self) -> Option<&Arc<Workload>> {
        self.workload.as_ref().filter(|workload| workload.tunnel_protocol == TunnelProtocol::Hbone)
    }
}

/// What is dialled.
#[derive(Clone, Debug)]
pub(crate) enum To {
    /// A Service, by its name.
    Service {
        /// Which.
        service: Arc<Service>,
        /// Its port.
        port: u16,
    },
    /// An address.
    Address(SocketAddr),
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) client: &'a Client,
    pub(crate) to: &'a To,
    /// What of a request is said.
    pub(crate) request: Option<&'a Read>,
    /// The name that a client of TLS asks for.
    pub(crate) server_name: Option<&'a str>,
}

/// What became of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    /// In order.
    pub(crate) hops: Vec<Told>,
    /// What is to be known besides.
    pub(crate) notes: BTreeSet<String>,
}

impl Way {
    /// Whether it was refused anywhere.
    pub(crate) fn is_refused(&self) -> bool {
        self.hops.iter().any(|told| told.refused)
    }

    /// The same for ways that differ in nothing but who of several equal endpoints serves them.
    pub(crate) fn signature(&self) -> String {
        let one = |told: &Told| {
            let because = if told.reason.starts_with("TO_") { "" } else { &told.because };
            // Of an endpoint's several services one is guessed.
            let service = if told.hop == Hop::Inbound { "" } else { told.destination.service.as_str() };
            let status = told.status;
            format!("{:?} {} {} {} {service} {status:?} {because}", told.hop, told.refused, told.reason, told.object)
        };
        self.hops.iter().map(one).collect::<Vec<_>>().join("\n")
    }

    /// The hop that decided: the one that refused it, else the last.
    pub(crate) fn decisive(&self) -> Option<&Told> {
        self.hops.iter().find(|told| told.refused).or(self.hops.last())
    }
}

/// The random bits of a draw: the same for the same number, spread evenly.
pub(crate) fn entropy(draw: u64) -> u64 {
    draw.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Goes its way. `entropy` is for what is left to chance.
pub(crate) fn walk(asked: &Asked<'_>, entropy: u64) -> Way {
    let mut walk = Walk { asked, entropy, way: Way::default() };
    walk.begin();
    walk.way
}

struct Walk<'a> {
    asked: &'a Asked<'a>,
    entropy: u64,
    way: Way,
}

/// Who comes to a hop.
#[derive(Clone, Copy)]
struct Coming<'a> {
    ip: IpAddr,
    identity: Option<&'a Identity>,
    workload: Option<&'a Workload>,
}

impl<'a> Walk<'a> {
    fn begin(&mut self) {
        let asked = self.asked;
        let Some(to) = self.address() else { return };
        let client = asked.client;
        match client.captured().cloned() {
            Some(source) => self.outbound(&source, to),
            None => {
                match &client.workload {
                    Some(workload) => self.note(format!(
                        "{}/{} is not in the mesh: what it sends leaves in clear text",
                        workload.namespace, workload.name
                    )),
                    None => self.note("the client is outside the mesh: what it sends comes in clear text".to_owned()),
                }
                self.clear(to);
            }
        }
    }

    /// What the client dials: a name is one of its addresses, as DNS answers.
    fn address(&mut self) -> Option<SocketAddr> {
        let snapshot = self.asked.snapshot;
        let (service, port) = match self.asked.to {
            To::Address(address) => return Some(*address),
            To::Service { service, port } => (service, *port),
        };
        let vips = service.vips.iter().filter(|vip| vip.network == *snapshot.network());
        let vip = vips.min_by_key(|vip| vip.address.is_ipv6()).map(|vip| SocketAddr::new(vip.address, port));
        // Kubernetes leads who is in no mesh to an endpoint; a headless Service's name is its endpoints' addresses.
        if vip.is_some() && self.asked.client.captured().is_some() {
            return vip;
        }
        let found = self.endpoint_of(service, port, vip.is_none());
        if let Err(reason) = &found {
            let mut telling = Telling::at(Hop::Inbound, "Kubernetes".to_owned(), self.asked.client.ip);
            telling.client(self.asked.client.workload.as_deref(), None);
            telling.name(Field::Service, &service.key);
            vip.into_iter().for_each(|vip| telling.original(vip));
            telling.refused(reason);
            self.way.hops.push(telling.told());
        }
        found.ok()
    }

    /// An endpoint as Kubernetes draws it.
    fn endpoint_of(&self, service: &Service, port: u16, is_headless: bool) -> Result<SocketAddr, Reason> {
        let known = service.port(port);
        if known.is_none() && !is_headless {
            return Err(Reason::NoServicePort { service: service.key.clone(), port });
        }
        let endpoints: Vec<&Arc<Workload>> = self.asked.snapshot.endpoints(&service.key).collect();
        let drawn = usize::try_from(self.entropy).unwrap_or(usize::MAX).checked_rem(endpoints.len());
        let nobody = || Reason::NoHealthyEndpoint { service: service.key.clone() };
        let workload = drawn.and_then(|index| endpoints.get(index)).ok_or_else(nobody)?;
        let target = known.map_or(port, |known| known.mapping.target_port);
        // Headless: DNS gives addresses, and the port stays as it was dialled.
        let port = if is_headless { port } else { workload.target_port(&service.key, port).unwrap_or(target) };
        workload.addresses.first().map(|ip| SocketAddr::new(*ip, port)).ok_or_else(nobody)
    }

    /// At the client's tunnel.
    fn outbound(&mut self, source: &Arc<Workload>, to: SocketAddr) {
        let snapshot = self.asked.snapshot;
        let attrs = OutboundAttrs { source, destination: to, entropy: self.entropy, tried: &[] };
        let planned = decide::outbound(snapshot, &attrs);
        let identity = source.identity();
        let mut telling = Telling::at(Hop::Outbound, tunnel(source), self.asked.client.ip);
        telling.client(Some(source), Some(&identity));
        telling.original(to);
        let plan = match planned {
            Ok(plan) => plan,
            Err(refusal) => return self.refuse(telling, &refusal),
        };
        carried(&mut telling, &plan);
        telling.because(&plan.reason);
        self.way.hops.push(telling.told());
        let coming = Coming { ip: self.asked.client.ip, identity: Some(&identity), workload: Some(source) };
        self.follow(&plan, coming);
    }

    /// Goes on where a plan leads.
    fn follow(&mut self, plan: &OutboundPlan, coming: Coming<'_>) {
        let Some(upstream) = &plan.upstream else { return };
        match &plan.protocol {
            OutboundProtocol::Passthrough => {}
            OutboundProtocol::Tcp => self.note(format!(
                "{}/{} is not in the mesh: it is reached in clear text, and no policy of the mesh is enforced there",
                upstream.namespace, upstream.name
            )),
            OutboundProtocol::Hbone { authority, waypoint, .. } => {
                let Some(local) = local(&plan.dial, upstream) else {
                    return self.note(format!(
                        "{} has a name and no address: what it resolves to is not known",
                        upstream.name
                    ));
                };
                match waypoint {
                    true => self.waypoint(upstream, local, authority, coming),
                    false => self.inbound(upstream, local, authority, coming),
                }
            }
        }
    }

    /// In clear text to an address.
    fn clear(&mut self, to: SocketAddr) {
        let snapshot = self.asked.snapshot;
        let client = self.asked.client;
        let at = stillmesh_core::model::NetworkAddress::new(snapshot.network().clone(), to.ip());
        let Some(destination) = snapshot.workload_at(&at).cloned() else {
            return self.note(format!("{to} is nobody's in the mesh: nothing of the mesh is on the way"));
        };
        if destination.tunnel_protocol != TunnelProtocol::Hbone {
            return self.note(format!(
                "{}/{} is not in the mesh: no policy of the mesh is enforced there",
                destination.namespace, destination.name
            ));
        }
        let mut telling = Telling::at(Hop::Inbound, tunnel(&destination), client.ip);
        telling.client(client.workload.as_deref(), None);
        telling.original(to);
        telling.upstream(to);
        telling.name(Field::Endpoint, &destination.uid);
        telling.name_some(
            Field::Service,
            decide::inbound_service(snapshot, &destination, None, to.port()).as_ref().map(|one| &one.key),
        );
        if let Err(refusal) = decide::inbound_plaintext(to) {
            return self.refuse(telling, &refusal);
        }
        let attrs =
            InboundAttrs { destination: &destination, upstream: to, source_ip: client.ip, source_identity: None };
        if !self.judge(telling, &attrs, &decide::authorize(snapshot, &attrs)) {
            self.note("its kubelet's probes pass all the same, on the ports that they ask".to_owned());
        }
        let is_bound = |service: &&Arc<Service>| service.waypoints().next().is_some();
        let services = destination.services.iter().filter_map(|(key, _)| snapshot.service(key));
        if let Some(service) = services.into_iter().find(is_bound) {
            self.note(format!("the waypoint of {} is not on the way of who is not in the mesh", service.key));
        }
    }

    /// At the server's tunnel.
    fn inbound(&mut self, destination: &Arc<Workload>, local: SocketAddr, authority: &Authority, coming: Coming<'_>) {
        let snapshot = self.asked.snapshot;
        let mut telling = Telling::at(Hop::Inbound, tunnel(destination), coming.ip);
        telling.tunnelled(true);
        telling.client(coming.workload, coming.identity);
        telling.authority(authority);
        telling.original(local);
        telling.name(Field::Endpoint, &destination.uid);
        let attrs = ConnectAttrs { destination, local_ip: local.ip(), authority };
        let plan = match decide::inbound(snapshot, &attrs) {
            Ok(plan) => plan,
            Err(refusal) => return self.refuse(telling, &refusal),
        };
        telling.upstream(plan.upstream);
        let guess = || decide::inbound_service(snapshot, destination, None, plan.upstream.port());
        telling.name_some(Field::Service, plan.service.clone().or_else(guess).as_ref().map(|one| &one.key));
        let attrs = InboundAttrs {
            destination,
            upstream: plan.upstream,
            source_ip: coming.ip,
            source_identity: coming.identity,
        };
        self.judge(telling, &attrs, &decide::authorize(snapshot, &attrs));
    }

    /// Writes down what policies say of a connection; whether it may pass.
    fn judge(&mut self, mut telling: Telling, attrs: &InboundAttrs<'_>, verdict: &Verdict) -> bool {
        for reason in &verdict.dry_run {
            self.note(format!("a policy in dry run would have decided otherwise: {reason}"));
        }
        if verdict.allowed {
            telling.because(&verdict.reason);
        } else {
            telling.refused(&verdict.reason);
            telling.missed(self.asked.snapshot, attrs);
        }
        self.way.hops.push(telling.told());
        verdict.allowed
    }

    /// At a waypoint.
    fn waypoint(&mut self, own: &Arc<Workload>, local: SocketAddr, authority: &Authority, coming: Coming<'_>) {
        let snapshot = self.asked.snapshot;
        let Some(identity) = coming.identity else { return };
        let mut telling = at_waypoint(Hop::Connection, own, local, authority, coming);
        let attrs =
            InboundAttrs { destination: own, upstream: local, source_ip: coming.ip, source_identity: coming.identity };
        let verdict = decide::authorize_at_waypoint(snapshot, &attrs);
        if !verdict.allowed {
            self.judge(telling, &attrs, &verdict);
            return;
        }
        let attrs = ConnectAttrs { destination: own, local_ip: local.ip(), authority };
        let target = match decide::waypoint(snapshot, &attrs) {
            Ok(target) => target,
            Err(refusal) => return self.refuse(telling, &refusal),
        };
        telling.name_some(Field::Service, target.service().map(|service| &service.key));
        let read = Read::default();
        let at = Place { own, local, authority, coming, identity, target: &target };
        match (spoken(snapshot, &target, &identity.namespace), self.asked.request) {
            (Spoken::Stream, request) => {
                if request.is_some() {
                    self.note("the port is no HTTP: what is said of a request decides nothing".to_owned());
                }
                self.stream(telling, at);
            }
            (Spoken::Unclear, None) => self.stream(telling, at),
            (Spoken::Http | Spoken::Unclear, Some(request)) => self.request(request, at),
            (Spoken::Http, None) => {
                self.note(
                    "the port is HTTP: a request GET / is taken; --path, --method, --header say another".to_owned(),
                );
                self.request(&read, at);
            }
        }
    }

    /// A connection that is no HTTP.
    fn stream(&mut self, mut telling: Telling, at: Place<'_>) {
        let snapshot = self.asked.snapshot;
        let server_name = self.asked.server_name;
        let attrs = at.access(server_name, None, at.coming.ip);
        let verdict = decide::authorize_request(snapshot, &attrs);
        if !verdict.allowed {
            telling.missed_request(snapshot, &attrs);
            return self.refuse(telling, &verdict.reason.into());
        }
        let name = server_name.map(str::to_ascii_lowercase);
        let opening = name.as_deref().map_or(Opening::Bytes, |name| Opening::Tls(Some(name)));
        let client_namespace = &*at.identity.namespace;
        let attrs = StreamAttrs { target: at.target, client_namespace, opening, entropy: self.entropy };
        let streamed = match decide::stream::stream(snapshot, &attrs) {
            Ok(streamed) => streamed,
            Err(refusal) => return self.refuse(telling, &refusal),
        };
        said_by(&mut telling, streamed.by.as_ref().map(|(route, rule)| (&route.key, *rule)), &verdict.reason);
        self.onwards(telling, at, &streamed.target);
    }

    /// A request.
    fn request(&mut self, request: &Read, at: Place<'_>) {
        let snapshot = self.asked.snapshot;
        let mut telling = at_waypoint(Hop::Request, at.own, at.local, at.authority, at.coming);
        telling.name_some(Field::Service, at.target.service().map(|service| &service.key));
        let Some(mut head) = head(request, at.target) else {
            return self.fail(telling, 400, "BAD_REQUEST", "no request can be made of this");
        };
        let level = snapshot.request_settings().map(|settings| settings.normalization).unwrap_or_default();
        let path = match normalize(head.uri.path(), level) {
            Ok(Cow::Borrowed(path)) => path.to_owned(),
            Ok(Cow::Owned(path)) => path,
            Err(_) => return self.fail(telling, 400, "BAD_REQUEST", "an ambiguous path"),
        };
        let whole = head.uri.query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        let Ok(uri) = whole.parse::<Uri>() else {
            return self.fail(telling, 400, "BAD_REQUEST", "an ambiguous path");
        };
        head.uri = uri;
        let authority = plan::authority(&head).into_owned();
        telling.name(Field::Method, &head.method);
        telling.name(Field::Host, &authority);
        telling.name(Field::Path, &path);
        let token = match self.token(request, at) {
            Ok(token) => token,
            Err(reason) => {
                telling.status(if matches!(reason, Reason::TokenRefused { .. }) { 401 } else { 403 });
                return self.refuse(telling, &reason.into());
            }
        };
        let attrs = RequestAttrs {
            method: head.method.as_str(),
            scheme: "http",
            authority: &authority,
            path: head.uri.path(),
            query: head.uri.query(),
            headers: &All(&head.headers),
            port: match at.target {
                Target::Service { port, .. } => port.mapping.service_port,
                Target::Workload { address, .. } => address.port(),
            },
            token: token.as_ref(),
        };
        // Whom a gateway of the mesh speaks for is believed; of others it is the client itself.
        let remote_ip = self.remote_ip(&head, at);
        let attrs = AccessAttrs { token: token.as_ref(), ..at.access(None, Some(&attrs), remote_ip) };
        let verdict = decide::authorize_request(snapshot, &attrs);
        for reason in &verdict.dry_run {
            self.note(format!("a policy in dry run would have decided otherwise: {reason}"));
        }
        if !verdict.allowed {
            telling.status(403);
            telling.missed_request(snapshot, &attrs);
            return self.refuse(telling, &verdict.reason.into());
        }
        self.routed(telling, head, token.as_ref(), at, &verdict.reason);
    }

    /// A request that may pass: what the route says.
    fn routed(
        &mut self,
        mut telling: Telling,
        mut head: Parts,
        token: Option<&Token>,
        at: Place<'_>,
        allowed: &Reason,
    ) {
        let snapshot = self.asked.snapshot;
        let client_namespace = &*at.identity.namespace;
        let asked = plan::Asked { version: Version::One, client_namespace, token, entropy: self.entropy };
        let planned = match plan::plan(at.target, snapshot, &mut head, asked) {
            Ok(planned) => planned,
            Err(error) => return self.fail(telling, 400, "BAD_REQUEST", &error.to_string()),
        };
        if let Some(fault) = planned.taken.rule().and_then(|rule| rule.fault.as_ref()) {
            self.note(format!("the route fails or delays requests on purpose: {fault:?}"));
        }
        let by = planned.taken.by().map(|(route, rule)| (&route.key, *rule));
        said_by(&mut telling, by, allowed);
        match planned.action {
            Action::Forward(target) => self.onwards(telling, at, &target),
            Action::Answer(answer) => {
                let status = answer.status;
                telling.status(status.as_u16());
                match answer.reason {
                    Some(reason) => self.refuse(telling, &reason.into()),
                    None => {
                        self.note(format!("the waypoint itself answers {status}"));
                        self.way.hops.push(telling.told());
                    }
                }
            }
        }
    }

    /// From a waypoint to an endpoint.
    fn onwards(&mut self, mut telling: Telling, at: Place<'_>, target: &Target) {
        let snapshot = self.asked.snapshot;
        let own = at.own;
        let endpoint = Endpoint {
            waypoint: own,
            target,
            entropy: self.entropy,
            tried: &[],
            live: &Idle,
            turn: self.entropy,
            hash: None,
        };
        let plan = match decide::endpoint(snapshot, &endpoint) {
            Ok(plan) => plan,
            Err(refusal) => return self.refuse(telling, &refusal),
        };
        telling.name_some(Field::Service, target.service().map(|service| &service.key));
        telling.name_some(Field::Endpoint, plan.upstream.as_ref().map(|workload| &workload.uid));
        if let Dial::Address(address) = plan.dial {
            telling.upstream(address);
        }
        self.way.hops.push(telling.told());
        let identity = own.identity();
        let ip = own.addresses.first().copied().unwrap_or(at.local.ip());
        self.follow(&plan, Coming { ip, identity: Some(&identity), workload: Some(own) });
    }

    /// The token that claims make, where somebody believes their issuer.
    fn token(&mut self, request: &Read, at: Place<'_>) -> Result<Option<Token>, Reason> {
        let snapshot = self.asked.snapshot;
        let service = at.target.service().map(|service| &service.key);
        let authentications = snapshot.request_authentications(at.own, service);
        let unreadable = authentications.iter().find_map(|one| Some((&one.key, one.unreadable.clone()?)));
        if let Some((policy, detail)) = unreadable {
            return Err(Reason::PolicyUnreadable { policy: policy.clone(), detail });
        }
        let Some(claims) = &request.claims else { return Ok(None) };
        let rules: Vec<&JwtRule> = authentications.iter().flat_map(|one| &one.rules).collect();
        if rules.is_empty() {
            self.note(
                "no RequestAuthentication is about it: nobody looks at its token, and its claims count for nothing"
                    .to_owned(),
            );
            return Ok(None);
        }
        let mut claims = claims.clone();
        if let ([only], false) = (rules.as_slice(), claims.contains_key("iss")) {
            self.note(format!("its token is taken to be of the only issuer that is believed, {}", only.issuer));
            claims.insert("iss".to_owned(), Value::from(&*only.issuer));
        }
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        let rules: Vec<&JwtRule> = rules.into_iter().filter(|rule| *rule.issuer == *issuer).collect();
        if rules.is_empty() {
            return Err(Reason::TokenRefused { problem: authenticate::Problem::Issuer.code() });
        }
        if !rules.iter().any(|rule| authenticate::is_for(rule, &claims)) {
            return Err(Reason::TokenRefused { problem: authenticate::Problem::Audience.code() });
        }
        let claims = claims.into_iter().map(|(name, value)| (Str::from(name), authenticate::claim(value)));
        Ok(Some(Token::new(claims.collect())))
    }

    fn remote_ip(&self, head: &Parts, at: Place<'_>) -> IpAddr {
        let gateways = self.asked.snapshot.request_settings().map_or(&[][..], |settings| &settings.gateways);
        let last = head.headers.get_all("x-forwarded-for").iter().next_back().and_then(|value| value.to_str().ok());
        let told = last.and_then(|list| list.rsplit(',').next()?.trim().parse().ok());
        told.filter(|_| gateways.contains(at.identity)).unwrap_or(at.coming.ip)
    }

    fn refuse(&mut self, mut telling: Telling, refusal: &Refusal) {
        telling.refused(&refusal.reason);
        self.way.hops.push(telling.told());
    }

    fn fail(&mut self, mut telling: Telling, status: u16, code: &'static str, what: &str) {
        telling.status(status);
        telling.failed(code, what);
        self.way.hops.push(telling.told());
    }

    fn note(&mut self, note: String) {
        self.way.notes.insert(note);
    }
}

/// What a waypoint knows of who comes and what for.
#[derive(Clone, Copy)]
struct Place<'a> {
    own: &'a Arc<Workload>,
    local: SocketAddr,
    authority: &'a Authority,
    coming: Coming<'a>,
    identity: &'a Identity,
    target: &'a Target,
}

impl<'a> Place<'a> {
    fn access(
        &self,
        server_name: Option<&'a str>,
        request: Option<&'a RequestAttrs<'a>>,
        remote_ip: IpAddr,
    ) -> AccessAttrs<'a> {
        AccessAttrs {
            waypoint: self.own,
            target: self.target,
            source_identity: Some(self.identity),
            source_ip: self.coming.ip,
            remote_ip,
            server_name,
            request,
            token: None,
        }
    }
}

fn at_waypoint(hop: Hop, own: &Workload, local: SocketAddr, authority: &Authority, coming: Coming<'_>) -> Telling {
    let mut telling = Telling::at(hop, format!("waypoint {}/{}", own.namespace, own.workload_name), coming.ip);
    telling.tunnelled(true);
    telling.client(coming.workload, coming.identity);
    telling.authority(authority);
    telling.original(local);
    telling
}

/// Who says where something goes: a route, else whoever let it pass.
fn said_by(telling: &mut Telling, by: Option<(&RouteKey, usize)>, allowed: &Reason) {
    match by {
        Some((route, rule)) => {
            telling.said("ROUTED", format_args!("taken by {route}, rule {rule}"));
            telling.name(Field::Object, format_args!("{route}, rule {rule}"));
        }
        None if *allowed == Reason::NoPolicy => {
            telling.said("CARRIED", "no route is attached: carried to what was dialled");
        }
        None => telling.because(allowed),
    }
}

/// The head of a request as it comes from a client.
fn head(request: &Read, target: &Target) -> Option<Parts> {
    let mut made = http::Request::builder().method(&request.method).uri(&request.target);
    if let Some(headers) = made.headers_mut() {
        headers.extend(request.headers.clone());
        let name = match target {
            Target::Service { service, port, .. } if port.mapping.service_port == 80 => {
                service.key.hostname.to_string()
            }
            Target::Service { service, port, .. } => format!("{}:{}", service.key.hostname, port.mapping.service_port),
            Target::Workload { address, .. } => address.to_string(),
        };
        let host = request.host.clone().or_else(|| name.parse().ok())?;
        headers.entry(header::HOST).or_insert(host);
        if is_grpc(target) {
            headers.entry(header::CONTENT_TYPE).or_insert(http::HeaderValue::from_static("application/grpc"));
        }
    }
    Some(made.body(()).ok()?.into_parts().0)
}

fn is_grpc(target: &Target) -> bool {
    matches!(target, Target::Service { port, .. } if port.protocol() == AppProtocol::Grpc)
}

/// What of a plan is told.
fn carried(telling: &mut Telling, plan: &OutboundPlan) {
    telling.name_some(Field::Service, plan.service.as_ref().map(|service| &service.key));
    telling.name_some(Field::Endpoint, plan.upstream.as_ref().map(|workload| &workload.uid));
    if let OutboundProtocol::Hbone { authority, .. } = &plan.protocol {
        telling.tunnelled(true);
        telling.authority(authority);
    }
    if let Dial::Address(address) = plan.dial {
        telling.upstream(address);
    }
}

/// The address at which a dialled workload sees a connection arrive.
fn local(dial: &Dial, workload: &Workload) -> Option<SocketAddr> {
    match dial {
        Dial::Address(address) => Some(*address),
        Dial::Name(_, port) => workload.addresses.first().map(|ip| SocketAddr::new(*ip, *port)),
    }
}

/// The tunnel of a workload's node.
fn tunnel(workload: &Workload) -> String {
    match &*workload.node {
        "" => "ztunnel".to_owned(),
        node => format!("ztunnel on {node}"),
    }
}

/// Nothing is known of endpoints: all are as good as each other.
#[derive(Debug)]
struct Idle;

impl Live for Idle {
    fn active(&self, _: &WorkloadUid) -> u64 {
        0
    }

    fn is_ejected(&self, _: &WorkloadUid) -> bool {
        false
    }

    fn age(&self, _: &WorkloadUid) -> Duration {
        Duration::MAX
    }
}
