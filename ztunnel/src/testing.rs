//! Builders and captures for this crate's tests.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use stillmesh_core::model::{
    Health, Locality, NetworkMode, TrustDomain, TunnelProtocol, Workload, WorkloadType, WorkloadUid,
};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// A workload `<app>-<n>` of `namespace`: its account and canonical name are the app's name.
pub fn workload(namespace: &str, name: &str, address: impl Into<IpAddr>) -> Workload {
    let app = name.rsplit_once('-').map_or(name, |(app, _)| app);
    Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/{namespace}/{name}").into()),
        name: name.into(),
        namespace: namespace.into(),
        trust_domain: TrustDomain::default(),
        service_account: app.into(),
        addresses: vec![address.into()],
        hostname: "".into(),
        network: "".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        waypoint: None,
        network_gateway: None,
        node: "node-1".into(),
        canonical_name: app.into(),
        canonical_revision: "latest".into(),
        workload_type: WorkloadType::Deployment,
        workload_name: app.into(),
        native_tunnel: false,
        application_tunnel: None,
        services: Vec::new(),
        authorization_policies: Vec::new(),
        health: Health::Healthy,
        cluster: "Kubernetes".into(),
        locality: Locality::default(),
        capacity: 1,
        direct: false,
    }
}

/// One captured event.
#[derive(Clone, Debug, Default)]
pub struct Event {
    /// Its level, upper case.
    pub level: String,
    /// Its scope.
    pub target: String,
    /// Its fixed text.
    pub message: String,
    /// Its fields in order: text quoted, everything else as displayed.
    pub fields: Vec<(String, String)>,
}

impl Event {
    /// A field's value.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

impl Visit for Event {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push((name.to_owned(), format!("{value:?}"))),
        }
    }
}

/// The events that a piece of code wrote.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    /// Runs `code` and captures what it writes on this thread.
    pub fn capture(code: impl FnOnce()) -> Self {
        let events = Self::default();
        let subscriber = tracing_subscriber::registry().with(events.clone());
        tracing::subscriber::with_default(subscriber, code);
        events
    }

    /// The only event with this text.
    pub fn of(&self, message: &str) -> Event {
        let events = self.0.lock();
        let mut found = events.iter().filter(|event| event.message == message);
        let event = found.next().unwrap_or_else(|| panic!("no event {message:?} in {events:?}"));
        assert!(found.next().is_none(), "several events {message:?}");
        event.clone()
    }
}

impl<S: tracing::Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut captured =
            Event { level: metadata.level().to_string(), target: metadata.target().to_owned(), ..Event::default() };
        event.record(&mut captured);
        self.0.lock().push(captured);
    }
}
