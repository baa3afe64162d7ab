//! Who takes spans and records of logs: one queue and one task for each collector that somebody asks for. The collector is
//! reached as everything is that a waypoint sends: at its service's endpoints, over HBONE where they have tunnels.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use stillmesh_core::decide::{self, Endpoint, Target};
use stillmesh_core::model::telemetry::Collector;
use stillmesh_otlp::message::{InstrumentationScope, KeyValue, Resource};
use stillmesh_otlp::{Batches, Exporter, Failure, Opening, To, queue};
use tokio::time::timeout;

use crate::record::Metrics;
use crate::upstream::{Way, dial};
use crate::waypoint::{Waypoint, own_in};

/// All collectors that are told something.
#[derive(Debug, Default)]
pub(super) struct Collectors(Mutex<HashMap<Collector, Weak<Kept>>>);

/// One of them; its task ends when the last who holds it has let go of it and all is told.
#[derive(Debug)]
pub(super) struct Kept(pub Exporter);

impl Collectors {
    /// The queue of a collector.
    pub fn open(&self, waypoint: &Arc<Waypoint>, collector: &Collector) -> Arc<Kept> {
        let mut open = self.0.lock();
        open.retain(|_, kept| kept.strong_count() > 0);
        if let Some(kept) = open.get(collector).and_then(Weak::upgrade) {
            return kept;
        }
        let metrics = waypoint.metrics.clone();
        let what = what(collector);
        let (exporter, batches) = queue(move || metrics.lost(what));
        let cancel = waypoint.background.token();
        let running = run(Arc::downgrade(waypoint), waypoint.metrics.clone(), collector.clone(), batches);
        waypoint.background.spawn("collector", async move {
            tokio::select! {
                () = running => {}
                () = cancel.cancelled() => {}
            }
        });
        let kept = Arc::new(Kept(exporter));
        open.insert(collector.clone(), Arc::downgrade(&kept));
        kept
    }

    /// Waits until all that was told before has been sent or given up, at most so long together.
    pub async fn flush(&self, limit: Duration) {
        let open: Vec<_> = self.0.lock().values().filter_map(Weak::upgrade).collect();
        if timeout(limit, join_all(open.iter().map(|kept| kept.0.flush()))).await.is_err() {
            tracing::warn!(?limit, "collectors have not taken all there was to tell: the rest is dropped");
        }
    }
}

/// What a collector is told, as it is counted.
fn what(collector: &Collector) -> &'static str {
    if collector.log_name.is_empty() { "span" } else { "log_record" }
}

async fn run(waypoint: Weak<Waypoint>, metrics: Arc<Metrics>, collector: Collector, batches: Batches) {
    let to = To {
        authority: To::authority(&collector.host, collector.port),
        path: collector.path.as_ref().map(ToString::to_string),
        timeout: collector.timeout,
    };
    let scope =
        InstrumentationScope { name: "stillmesh-waypoint".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let resource = || waypoint.upgrade().map(|waypoint| resource(&waypoint, &collector)).unwrap_or_default();
    let open = || -> Opening<'_, Way> {
        Box::pin(async {
            let waypoint = waypoint.upgrade().ok_or_else(|| Failure::passing("the waypoint has ended"))?;
            open(&waypoint, &collector, &to).await
        })
    };
    let lost = |count| metrics.lost_many(what(&collector), count);
    stillmesh_otlp::run(batches, &to, scope, resource, open, lost).await;
}

fn resource(waypoint: &Waypoint, collector: &Collector) -> Resource {
    let config = &waypoint.config;
    let own = own_in(config, &waypoint.snapshots.load());
    let name = own.as_ref().map_or(config.pod_name.as_str(), |own| &own.canonical_name);
    let mut resource =
        Resource::of_pod(name, &config.cluster_id, &config.node, &config.pod_namespace, &config.pod_name);
    if !collector.log_name.is_empty() {
        resource.attributes.push(KeyValue::text("log_name", &*collector.log_name));
    }
    resource
}

/// A stream to one of a collector's endpoints.
async fn open(waypoint: &Arc<Waypoint>, collector: &Collector, to: &To) -> Result<Way, Failure> {
    let snapshot = waypoint.snapshots.load();
    let own = own_in(&waypoint.config, &snapshot);
    let service = snapshot.service_named(&waypoint.config.pod_namespace, &collector.host);
    let Some((service, own)) = service.cloned().zip(own) else {
        // It is none of the mesh's.
        let stream = tokio::net::TcpStream::connect((&*collector.host, collector.port)).await;
        return stream.map(Way::Tcp).map_err(|error| Failure::passing(format!("{}: {error}", to.authority)));
    };
    let port = service.ports.iter().find(|port| port.mapping.service_port == collector.port).copied();
    let port = port.ok_or_else(|| Failure::passing(format!("{}: the service has no such port", to.authority)))?;
    let address = service.vips.first().map(|vip| SocketAddr::new(vip.address, collector.port));
    let target = Target::Service { service, port, address, subset: None };
    let cluster = waypoint.clusters.of(&target);
    let plan = {
        let attrs = Endpoint {
            waypoint: &own,
            target: &target,
            entropy: rand::random(),
            tried: &[],
            live: &*cluster,
            turn: cluster.turn(),
            hash: None,
        };
        decide::endpoint(&snapshot, &attrs).map_err(|refusal| Failure::passing(refusal.reason))?
    };
    drop(snapshot);
    let deadline = tokio::time::Instant::now() + to.timeout;
    let opened = dial::way(waypoint, &own, &plan, None, dial::trace(&plan), deadline).await;
    opened.map_err(Failure::passing)
}
