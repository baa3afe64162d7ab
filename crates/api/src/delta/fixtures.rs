//! Small resources for tests of the machines and the shells.

use stillmesh_core::model::*;
use stillmesh_core::snapshot::Change;

/// A pod `shop/<name>` at 10.244.0.<host> on a node, that names policies and belongs to services.
pub(crate) fn workload(name: &str, host: u8, node: &str, policies: &[&str], services: &[&str]) -> Change {
    let workload = Workload {
        uid: WorkloadUid(uid(name).into()),
        name: name.into(),
        namespace: "shop".into(),
        trust_domain: TrustDomain::default(),
        service_account: "default".into(),
        addresses: vec![[10, 244, 0, host].into()],
        hostname: "".into(),
        network: "".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        waypoint: None,
        network_gateway: None,
        node: node.into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_type: WorkloadType::Pod,
        workload_name: name.into(),
        native_tunnel: false,
        application_tunnel: None,
        services: services.iter().map(|name| (key(name), Vec::new())).collect(),
        authorization_policies: policies.iter().map(|name| PolicyKey::new("shop", *name)).collect(),
        health: Health::Healthy,
        cluster: "Kubernetes".into(),
        locality: Locality::default(),
        capacity: 1,
        direct: false,
    };
    Change::Workload(workload.into())
}

pub(crate) fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/shop/{name}")
}

pub(crate) fn workload_removed(name: &str) -> Change {
    Change::WorkloadRemoved(WorkloadUid(uid(name).into()))
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", format!("{name}.shop.svc.cluster.local"))
}

/// A service `shop/<name>…` at 10.96.0.<host>.
pub(crate) fn service(name: &str, host: u8) -> Change {
    let service = Service {
        name: name.into(),
        key: key(name),
        vips: vec![NetworkAddress::new("", [10, 96, 0, host].into())],
        cidr_vips: Vec::new(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::Automatic,
        canonical: true,
        visibility: Visibility::Public,
    };
    Change::Service(service.into())
}

/// A policy `shop/<name>`.
pub(crate) fn policy(name: &str, action: Action) -> Change {
    let policy = Policy {
        key: PolicyKey::new("shop", name),
        scope: Scope::WorkloadSelector,
        action,
        rules: Vec::new(),
        dry_run: false,
        unreadable: None,
        order: None,
    };
    Change::Policy(policy.into())
}

pub(crate) fn policy_removed(name: &str) -> Change {
    Change::PolicyRemoved(PolicyKey::new("shop", name))
}
