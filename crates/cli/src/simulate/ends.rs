//! Both ends of what is simulated, from names as people write them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::Value;
use stillmesh_core::model::{
    Health, Identity, Locality, NetworkAddress, NetworkMode, TunnelProtocol, Workload, WorkloadType, WorkloadUid,
};
use stillmesh_core::snapshot::Snapshot;
use stillmesh_k8s::translate::{Mesh, service_key, workload_uid};
use stillmesh_records::Term;

use super::walk::{Client, To};
use crate::why::place::Place;
use crate::why::who::{self, End, Role};

/// Who is not in the mesh.
const OUTSIDE: &str = "outside";
/// An address that is nobody's (RFC 5737): of clients and servers outside the mesh.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Finds ends among what is known.
pub(super) struct Who<'a> {
    pub(super) place: &'a Place,
    pub(super) snapshot: &'a Snapshot,
    pub(super) mesh: &'a Mesh,
    pub(super) workloads: &'a [Arc<Workload>],
}

impl Who<'_> {
    /// The client, and what was assumed of it.
    pub(super) async fn client(
        &self,
        text: &str,
        namespace: &str,
        ip: Option<IpAddr>,
    ) -> anyhow::Result<(Client, Vec<String>)> {
        if text == OUTSIDE {
            return Ok((Client { workload: None, ip: ip.unwrap_or(NOBODY) }, Vec::new()));
        }
        if text.starts_with("spiffe://") {
            return self.identified(&text.parse()?, ip);
        }
        let end = who::find(self.place, text, namespace, Role::Source).await.context("SRC")?;
        let mut notes = Vec::new();
        if let Some(ip) = address(&end) {
            let workload = self.snapshot.workload_at(&self.at(ip)).cloned();
            return Ok((Client { workload, ip }, notes));
        }
        let workload = self.workload(&end)?;
        if end.pods.len() > 1 {
            notes.push(format!("{end} has {} pods; {} is asked about", end.pods.len(), workload.name));
        }
        let ip = ip.or(workload.addresses.first().copied()).unwrap_or(NOBODY);
        Ok((Client { workload: Some(workload), ip }, notes))
    }

    /// Whom it dials, and what was assumed.
    pub(super) async fn destination(&self, text: &str, namespace: &str) -> anyhow::Result<(To, Vec<String>)> {
        if let Some(port) = text.strip_prefix(OUTSIDE).filter(|rest| rest.is_empty() || rest.starts_with(':')) {
            let port = port.strip_prefix(':').map_or(Ok(443), str::parse);
            let port = port.ok().filter(|port| *port > 0).context("DST: what follows the colon is no port")?;
            return Ok((To::Address(SocketAddr::new(NOBODY, port)), Vec::new()));
        }
        if let Some((identity, port)) = text.strip_prefix("spiffe://").and_then(|rest| rest.rsplit_once(':')) {
            let identity: Identity = format!("spiffe://{identity}").parse()?;
            let port: u16 = port.parse().ok().context("DST: what follows the colon is no port")?;
            let found = self.workloads.iter().find(|one| one.identity() == identity);
            let ip = found.and_then(|one| one.addresses.first()).copied();
            let ip = ip.with_context(|| format!("DST: no workload has the identity {identity}"))?;
            return Ok((To::Address(SocketAddr::new(ip, port)), Vec::new()));
        }
        let (name, port) = who::port_of(text)?;
        let end = who::find(self.place, name, namespace, Role::Destination).await;
        let end = end.context("DST; what is outside the mesh is written outside:PORT")?;
        if let Some(ip) = address(&end) {
            let port = port.context("DST: an address needs a port: ADDRESS:PORT")?;
            return Ok((To::Address(SocketAddr::new(ip, port)), Vec::new()));
        }
        if end.is_service {
            return self.service(&end, port);
        }
        let workload = self.workload(&end)?;
        let port = match port {
            Some(port) => port,
            None => self.only_port(&workload).await?,
        };
        let ip = workload.addresses.first().copied().with_context(|| format!("DST: {end} has no address"))?;
        let mut notes = Vec::new();
        let declared = self.declared(&workload).await?;
        if !declared.is_empty() && !declared.contains(&port) {
            notes.push(format!(
                "no container of {} declares port {port}; whether one listens is not known",
                workload.name
            ));
        }
        Ok((To::Address(SocketAddr::new(ip, port)), notes))
    }

    fn service(&self, end: &End, port: Option<u16>) -> anyhow::Result<(To, Vec<String>)> {
        let name = end.terms.iter().find_map(|term| match term {
            Term::Service(name) => name.split_once('/'),
            _ => None,
        });
        let (namespace, name) = name.with_context(|| format!("DST: {end} has no name"))?;
        let service = self.snapshot.service(&service_key(namespace, name, self.mesh)).cloned();
        let service =
            service.with_context(|| format!("DST: nodes know nothing of {end}: it has no ports that are TCP"))?;
        let ports: Vec<u16> = service.ports.iter().map(|port| port.mapping.service_port).collect();
        let port = match (port, ports.as_slice()) {
            (Some(port), _) => port,
            (None, [port]) => *port,
            (None, []) => bail!("DST: {end} has no ports"),
            (None, ports) => bail!("DST: {end} has the ports {ports:?}; which one? NAME:PORT"),
        };
        Ok((To::Service { service, port }, Vec::new()))
    }

    /// Whoever runs under an identity; nobody does: a captured client that has it and is nowhere.
    fn identified(&self, identity: &Identity, ip: Option<IpAddr>) -> anyhow::Result<(Client, Vec<String>)> {
        if let Some(found) = self.workloads.iter().find(|one| one.identity() == *identity) {
            let ip = ip.or(found.addresses.first().copied()).unwrap_or(NOBODY);
            let mut workload = (**found).clone();
            // An identity is proved by mutual TLS alone.
            workload.tunnel_protocol = TunnelProtocol::Hbone;
            return Ok((Client { workload: Some(Arc::new(workload)), ip }, Vec::new()));
        }
        let ip = ip.unwrap_or(NOBODY);
        let notes = vec![format!("nobody runs as {identity}; a captured client at {ip} is taken to")];
        Ok((Client { workload: Some(Arc::new(self.imagined(identity))), ip }, notes))
    }

    fn imagined(&self, identity: &Identity) -> Workload {
        let name = identity.service_account.clone();
        Workload {
            uid: WorkloadUid(format!("{}//Pod/{}/{name}", self.mesh.cluster, identity.namespace).into()),
            name: name.clone(),
            namespace: identity.namespace.clone(),
            trust_domain: identity.trust_domain.clone(),
            service_account: name.clone(),
            addresses: Vec::new(),
            hostname: "".into(),
            network: self.mesh.network.clone(),
            tunnel_protocol: TunnelProtocol::Hbone,
            network_mode: NetworkMode::Standard,
            waypoint: None,
            network_gateway: None,
            node: "".into(),
            canonical_name: name.clone(),
            canonical_revision: "latest".into(),
            workload_type: WorkloadType::Pod,
            workload_name: name,
            native_tunnel: false,
            application_tunnel: None,
            services: Vec::new(),
            authorization_policies: Vec::new(),
            health: Health::Healthy,
            cluster: self.mesh.cluster.clone(),
            locality: Locality::default(),
            capacity: 1,
            direct: false,
        }
    }

    /// The first workload of an end.
    fn workload(&self, end: &End) -> anyhow::Result<Arc<Workload>> {
        let known = end.pods.iter().find_map(|pod| {
            let (namespace, name) = pod.name.split_once('/')?;
            self.snapshot.workload(&workload_uid(namespace, name, self.mesh)).cloned()
        });
        known.with_context(|| format!("{end} has no pod that runs"))
    }

    async fn only_port(&self, workload: &Workload) -> anyhow::Result<u16> {
        match self.declared(workload).await?.as_slice() {
            [port] => Ok(*port),
            [] => bail!("DST: {} declares no port; which one? NAME:PORT", workload.name),
            ports => bail!("DST: {} declares the ports {ports:?}; which one? NAME:PORT", workload.name),
        }
    }

    /// The TCP ports that a pod's containers declare.
    async fn declared(&self, workload: &Workload) -> anyhow::Result<Vec<u16>> {
        let pods = self.place.list("Pod", &workload.namespace, "").await?;
        let pod = pods.iter().find(|pod| pod["metadata"]["name"] == *workload.name);
        let containers = pod.and_then(|pod| pod["spec"]["containers"].as_array()).into_iter().flatten();
        let ports = containers.flat_map(|one| one["ports"].as_array().into_iter().flatten());
        let is_tcp = |port: &&Value| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
        let mut all: Vec<u16> =
            ports.filter(is_tcp).filter_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok()).collect();
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    fn at(&self, ip: IpAddr) -> NetworkAddress {
        NetworkAddress::new(self.mesh.network.clone(), ip)
    }
}

/// The address, where that is all that is known of an end.
fn address(end: &End) -> Option<IpAddr> {
    match end.terms.as_slice() {
        [Term::Ip(ip)] => Some(*ip),
        _ => None,
    }
}
