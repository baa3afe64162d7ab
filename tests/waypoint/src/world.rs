//! The waypoint and what it knows.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use stillmesh_core::fixtures;
use stillmesh_core::model::{
    NetworkAddress, Policy, PolicyKey, PortMapping, Service, TunnelProtocol, Workload, WorkloadUid,
};
use stillmesh_core::snapshot::Change;
use stillmesh_runtime::admin::client::{Client as Admin, Endpoint as At};
use stillmesh_runtime::drain::{self, Mode};
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::tasks::{Task, Tasks};
use stillmesh_tunnel_tests::{Control, HOST};
use stillmesh_waypoint::app::Addresses;
use stillmesh_waypoint::{Config, Listeners};

use crate::{Client, Endpoint};

/// How long a test waits for something to become true.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The waypoint's own address.
pub const WAYPOINT: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// A control plane that publishes, and a waypoint once it is started: `gate/w`, behind service `gate/w`.
pub struct World {
    /// What it publishes and signs.
    pub control: Control,
    /// Owns what runs here.
    pub tasks: Tasks,
    running: Option<Running>,
    workloads: u8,
    /// As they were published last.
    published: Mutex<HashMap<WorkloadUid, Workload>>,
}

struct Running {
    addresses: Addresses,
    trigger: drain::Trigger,
    waypoint: Task<Result<(), String>>,
}

/// The waypoint's own workload.
fn own(policies: &[PolicyKey]) -> Workload {
    let mut own = fixtures::workload("gate/w");
    own.addresses = vec![WAYPOINT.into()];
    let front = fixtures::service("gate/w", &[(15008, 15008)]);
    own.services.push((front.key.clone(), front.ports.iter().map(|port| port.mapping).collect()));
    own.authorization_policies = policies.to_vec();
    own
}

impl World {
    /// A control plane that knows of the waypoint alone, which does not run yet.
    pub async fn new() -> Self {
        // What a failed test prints.
        drop(stillmesh_runtime::telemetry::init("test"));
        let tasks = Tasks::new("test world");
        let control = Control::start(&tasks, Duration::from_secs(3600)).await;
        let front = fixtures::service("gate/w", &[(15008, 15008)]);
        control.store.publish(vec![Change::Service(Arc::new(front)), Change::Workload(Arc::new(own(&[])))]);
        Self { control, tasks, running: None, workloads: 0, published: Mutex::default() }
    }

    /// Has these policies, and no others, select the waypoint itself.
    pub fn guard(&self, policies: &[Policy]) {
        let keys: Vec<PolicyKey> = policies.iter().map(|policy| policy.key.clone()).collect();
        let new = policies.iter().map(|policy| Change::Policy(Arc::new(policy.clone())));
        self.control.store.publish(new.chain([Change::Workload(Arc::new(own(&keys)))]).collect());
    }

    /// A workload `shop/name` at an address of its own, with a tunnel; not published yet, and with nothing that listens.
    pub fn workload(&mut self, name: &str) -> Workload {
        self.workloads += 1;
        let mut workload = fixtures::workload(&format!("shop/{name}"));
        workload.addresses = vec![Ipv4Addr::new(127, 0, 2, self.workloads).into()];
        workload
    }

    /// A service `shop/name` at this address, bound to the waypoint, in front of these workloads. `protocol` is its port's,
    /// as numbered on the wire; each port leads to the same one plus 8000.
    pub fn service(&self, name: &str, vip: &str, protocol: i32, endpoints: &[&Workload]) -> SocketAddr {
        let mut service = fixtures::service(&format!("shop/{name}"), &[(80, 8080)]);
        service.waypoint = Some(fixtures::waypoint("gate/w"));
        self.publish_service(service, vip, protocol, endpoints)
    }

    /// [`World::service`], bound to nobody.
    pub fn unbound(&self, name: &str, vip: &str, endpoints: &[&Workload]) -> SocketAddr {
        self.publish_service(fixtures::service(&format!("shop/{name}"), &[(80, 8080)]), vip, 1, endpoints)
    }

    fn publish_service(&self, mut service: Service, vip: &str, protocol: i32, endpoints: &[&Workload]) -> SocketAddr {
        let vip: IpAddr = vip.parse().expect("an address");
        service.vips = vec![NetworkAddress::new("", vip)];
        for port in &mut service.ports {
            port.app_protocol = protocol;
        }
        let ports: Vec<PortMapping> = service.ports.iter().map(|port| port.mapping).collect();
        let mut changes = vec![Change::Service(Arc::new(service.clone()))];
        for endpoint in endpoints {
            let mut published = self.published.lock();
            let workload = published.entry(endpoint.uid.clone()).or_insert_with(|| Workload::clone(endpoint));
            workload.services.push((service.key.clone(), ports.clone()));
            changes.push(Change::Workload(Arc::new(workload.clone())));
        }
        self.control.store.publish(changes);
        (vip, 80).into()
    }

    /// The tunnel of a workload, and an application behind it where the test starts one.
    pub async fn endpoint(&self, workload: &Workload) -> Endpoint {
        assert_eq!(workload.tunnel_protocol, TunnelProtocol::Hbone, "it has a tunnel");
        Endpoint::start(self, workload).await
    }

    /// The environment of a waypoint at this address with all its ports chosen by the kernel, and with more.
    pub fn environment(&self, address: Ipv4Addr, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).to_string();
        let mut values = vec![
            ("POD_NAME".to_owned(), "w".to_owned()),
            ("POD_NAMESPACE".to_owned(), "gate".to_owned()),
            ("SERVICE_ACCOUNT".to_owned(), "w".to_owned()),
            ("NODE_NAME".to_owned(), "node-1".to_owned()),
            ("INSTANCE_IP".to_owned(), address.to_string()),
            ("XDS_ADDRESS".to_owned(), format!("https://{}", self.control.address)),
            ("XDS_ROOT_CA".to_owned(), self.control.root_pem.clone()),
            ("ALT_XDS_HOSTNAME".to_owned(), HOST.to_owned()),
            ("ALT_CA_HOSTNAME".to_owned(), HOST.to_owned()),
            ("AUTH_TOKEN".to_owned(), "gate/w".to_owned()),
            ("HBONE_ADDRESS".to_owned(), SocketAddr::from((address, 0)).to_string()),
            ("ADMIN_ADDRESS".to_owned(), any.clone()),
            ("STATS_ADDRESS".to_owned(), any.clone()),
            ("READINESS_ADDRESS".to_owned(), any),
        ];
        values.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        values
    }

    /// Starts the waypoint with further environment. What was published before is what its first clients see.
    pub async fn start(&mut self, environment: &[(&str, &str)]) {
        let values = self.environment(WAYPOINT, environment);
        let config = Config::read(Reader::from_values(values)).expect("a configuration");
        let listeners = Listeners::bind(&config).expect("free ports");
        let addresses = listeners.addresses().expect("the ports");
        let (trigger, watch) = drain::channel();
        let waypoint = self.tasks.spawn("waypoint", async move {
            stillmesh_waypoint::serve(config, listeners, watch).await.map_err(|error| format!("{error:#}"))
        });
        self.running = Some(Running { addresses, trigger, waypoint });
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("a running waypoint")
    }

    /// Where the waypoint takes tunnels.
    pub fn hbone(&self) -> SocketAddr {
        self.running().addresses.hbone
    }

    /// A client `shop/name` at 127.0.3.`number`.
    pub fn client(&self, name: &str, number: u8) -> Client {
        self.client_of(self.hbone(), name, number)
    }

    /// [`World::client`] of whoever is `gate/w` at this address.
    pub fn client_of(&self, hbone: SocketAddr, name: &str, number: u8) -> Client {
        let address = Ipv4Addr::new(127, 0, 3, number);
        Client::new(self, name, address.into(), hbone)
    }

    /// Whether the waypoint calls itself ready; `None` where its port is closed.
    pub async fn is_ready(&self) -> Option<bool> {
        let answer = Admin::new(At::Tcp(self.running().addresses.readiness)).get("/healthz/ready").await;
        answer.ok().map(|answer| answer.status == StatusCode::OK)
    }

    /// All metrics as text.
    pub async fn metrics(&self) -> String {
        let answer = Admin::new(At::Tcp(self.running().addresses.stats)).get("/stats/prometheus").await;
        answer.expect("the metrics port to answer").text()
    }

    /// The series of a metric whose labels contain all of `labels`, added up.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.metrics().await;
        let series =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let matching = series.filter(|line| labels.iter().all(|label| line.contains(label)));
        matching.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Waits until [`World::metric`] is `expected`: a request is counted a moment after its ends have seen its end.
    pub async fn counts(&self, name: &str, labels: &[&str], expected: f64) {
        let begin = tokio::time::Instant::now();
        loop {
            let count = self.metric(name, labels).await;
            if (count - expected).abs() < 0.5 {
                return;
            }
            let patient = begin.elapsed() < PATIENCE;
            assert!(patient, "{name} {labels:?}: {count}, not {expected}:\n{}", self.metrics().await);
            tokio::task::yield_now().await;
        }
    }

    /// A page of the admin port.
    pub async fn admin(&self, path: &str) -> serde_json::Value {
        let answer = Admin::new(At::Tcp(self.running().addresses.admin)).get(path).await;
        let answer = answer.expect("the admin port to answer");
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.text()))
    }

    /// Has the waypoint drain; what is open may go on for `grace`.
    pub fn drain(&self, grace: Duration) {
        self.running().trigger.start(Mode::Graceful, grace);
    }

    /// Waits until the waypoint has ended.
    pub async fn ended(&mut self) {
        let mut running = self.running.take().expect("to be asked once");
        let ended = tokio::time::timeout(PATIENCE, running.waypoint.join()).await.expect("the waypoint to end in time");
        ended.expect("the waypoint not to be cut").expect("the waypoint to end well");
    }
}
