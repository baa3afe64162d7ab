//! Client and service over real TLS on the loopback interface, and against peers that misbehave.

use std::sync::Arc;

use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use stillmesh_core::model::Action;
use stillmesh_runtime::drain::Mode;
use stillmesh_runtime::tasks::Tasks;
use tokio::io::DuplexStream;
use tonic::service::Routes;
use tonic::transport::Endpoint;

use super::*;
use crate::delta::fixtures::{policy, uid, workload, workload_removed};
use crate::delta::server::ACK_DEADLINE;
use crate::fixtures::{Authority, Ear, Heard, Notebook, OneToken, Server};
use crate::serve::Limits;
use crate::xds::ResourceType::{Address, Authorization};
use crate::xds::{Store, service};
use crate::{Root, Token};

const NAME: &str = "istiod.istio-system.svc";

fn node() -> NodeInfo {
    NodeInfo::ztunnel("ztunnel-1", "istio-system", "n1", None, "cluster.local")
}

fn routes(store: &Arc<Store>, ear: Arc<Ear>) -> Routes {
    Routes::new(service(Arc::clone(store), Arc::new(OneToken), ear))
}

struct Running {
    status: watch::Receiver<Status>,
    cancel: CancellationToken,
    tasks: Tasks,
}

fn run(control_plane: ControlPlane, node: NodeInfo, sink: Notebook) -> Running {
    let client = Client::new(control_plane, node);
    let (status, cancel, tasks) = (client.status(), CancellationToken::new(), Tasks::new("test"));
    tasks.spawn("client", client.run(sink, cancel.clone()));
    Running { status, cancel, tasks }
}

impl Running {
    async fn failed_with(&mut self, text: &str) {
        let said = |status: &Status| status.last_error.as_deref().is_some_and(|error| error.contains(text));
        if timeout(Duration::from_secs(120), self.status.wait_for(said)).await.is_err() {
            panic!("not said: {text:?}; said: {:?}", *self.status.borrow());
        }
    }

    async fn end(self) {
        self.cancel.cancel();
        self.tasks.shutdown(Duration::from_secs(3600)).await;
    }
}

#[tokio::test]
async fn a_node_gets_what_is_published_acknowledges_it_and_is_observed() {
    let (authority, store) = (Authority::new(), Arc::new(Store::new()));
    let (ear, mut heard) = Ear::new();
    store.publish(vec![policy("p", Action::Deny), workload("a", 1, "n1", &["p"], &[])]);
    let server = Server::start(authority.server(&[NAME]), routes(&store, ear), Limits::default()).await;
    let (sink, mut batches) = Notebook::new();
    let mut client = run(server.control_plane(&authority), node(), sink);

    let policies = batches.recv().await.unwrap();
    assert_eq!((policies.kind, policies.first), (Authorization, true));
    assert_eq!(policies.changes, [policy("p", Action::Deny)]);
    let addresses = batches.recv().await.unwrap();
    assert_eq!((addresses.kind, addresses.first), (Address, true));
    assert_eq!(addresses.changes, [workload("a", 1, "n1", &["p"], &[])]);
    client.status.wait_for(|status| status.ready && status.connected).await.unwrap();
    let id = "ztunnel~1.1.1.1~ztunnel-1.istio-system~istio-system.svc.cluster.local";
    assert_eq!(heard.recv().await.unwrap(), Heard::Connected(id.into(), "n1".into()));
    assert_eq!(heard.recv().await.unwrap(), Heard::Acked(Authorization, 1));
    assert_eq!(heard.recv().await.unwrap(), Heard::Acked(Address, 1));

    let generation = store.publish(vec![workload_removed("a")]);
    assert_eq!(batches.recv().await.unwrap().changes, [workload_removed("a")]);
    assert_eq!(heard.recv().await.unwrap(), Heard::Acked(Address, generation));
    assert_eq!(store.streams(), 1);
    client.end().await;
    assert!(matches!(heard.recv().await.unwrap(), Heard::Gone(_)));
    assert_eq!(store.streams(), 0);
}

#[tokio::test]
async fn what_a_node_refuses_is_heard_by_name() {
    let (authority, store) = (Authority::new(), Arc::new(Store::new()));
    let (ear, mut heard) = Ear::new();
    store.publish(vec![workload("a", 1, "n1", &[], &[]), workload("b", 2, "n1", &[], &[])]);
    let server = Server::start(authority.server(&[NAME]), routes(&store, ear), Limits::default()).await;
    let (mut sink, mut batches) = Notebook::new();
    sink.refuse = Some(uid("b"));
    let client = run(server.control_plane(&authority), node(), sink);
    batches.recv().await.unwrap();
    assert_eq!(batches.recv().await.unwrap().changes.len(), 2);
    heard.recv().await.unwrap();
    heard.recv().await.unwrap();
    let rejected = vec![Rejected { name: uid("b"), reason: "not today".into() }];
    assert_eq!(heard.recv().await.unwrap(), Heard::Nacked(Address, rejected));
    client.end().await;
}

#[tokio::test]
async fn a_control_plane_that_drains_or_dies_is_redialled_and_only_the_difference_comes() {
    let (authority, store) = (Authority::new(), Arc::new(Store::new()));
    let tls = authority.server(&[NAME]);
    let (ear, _heard) = Ear::new();
    store.publish(vec![workload("a", 1, "n1", &[], &[]), workload("b", 2, "n1", &[], &[])]);
    let server = Server::start(Arc::clone(&tls), routes(&store, Arc::clone(&ear)), Limits::default()).await;
    let (sink, mut batches) = Notebook::new();
    let client = run(server.control_plane(&authority), node(), sink);
    assert_eq!(batches.recv().await.unwrap().kind, Authorization);
    assert_eq!(batches.recv().await.unwrap().changes.len(), 2);

    // Drained in order: streams end by themselves, long before the deadline of an hour.
    store.publish(vec![]);
    let server = server.replace(Mode::Graceful, Arc::clone(&tls), routes(&store, Arc::clone(&ear))).await;
    for kind in [Authorization, Address] {
        let batch = batches.recv().await.unwrap();
        assert_eq!((batch.kind, batch.changes, batch.first), (kind, Vec::new(), false));
    }

    // Killed, and back with an empty memory: a store of its own.
    let other = Arc::new(Store::new());
    other.publish(vec![workload("a", 1, "n1", &[], &[]), workload("c", 3, "n1", &[], &[])]);
    let _server = server.replace(Mode::Immediate, tls, routes(&other, ear)).await;
    assert_eq!(batches.recv().await.unwrap().kind, Authorization);
    let difference = batches.recv().await.unwrap().changes;
    assert_eq!(difference, [workload("c", 3, "n1", &[], &[]), workload_removed("b")]);
    client.end().await;
}

#[tokio::test]
async fn token_and_root_files_are_read_anew() {
    let (authority, store) = (Authority::new(), Arc::new(Store::new()));
    let (ear, _heard) = Ear::new();
    let server = Server::start(authority.server(&[NAME]), routes(&store, ear), Limits::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let (token, root) = (directory.path().join("token"), directory.path().join("root.pem"));
    let mut control_plane = server.control_plane(&authority);
    control_plane.token = Token::File(token.clone());
    control_plane.root = Root::File(root.clone());
    let (sink, mut batches) = Notebook::new();
    let mut client = run(control_plane, node(), sink);
    client.failed_with("root.pem").await;
    std::fs::write(&root, "nonsense").unwrap();
    client.failed_with("no certificate in it").await;
    std::fs::write(&root, Authority::new().pem()).unwrap();
    client.failed_with("TLS with the control plane").await;
    std::fs::write(&root, authority.pem()).unwrap();
    client.failed_with("token File(").await;
    std::fs::write(&token, "wrong\n").unwrap();
    client.failed_with("request authenticate failure: who are you").await;
    std::fs::write(&token, "secret\n").unwrap();
    assert_eq!(batches.recv().await.unwrap().kind, Authorization);
    client.end().await;
}

#[tokio::test]
async fn a_certificate_of_another_name_is_not_the_control_plane() {
    let (authority, store) = (Authority::new(), Arc::new(Store::new()));
    let (ear, _heard) = Ear::new();
    let server = Server::start(authority.server(&["other.svc"]), routes(&store, ear), Limits::default()).await;
    let (sink, _batches) = Notebook::new();
    let mut client = run(server.control_plane(&authority), node(), sink);
    client.failed_with("not valid for name").await;
    client.end().await;
}

#[tokio::test]
async fn a_node_that_claims_what_its_credentials_do_not_say_is_refused() {
    let (authority, store) = (Authority::new(), Arc::new(Store::new()));
    let (ear, _heard) = Ear::new();
    let server = Server::start(authority.server(&[NAME]), routes(&store, ear), Limits::default()).await;
    let elsewhere = [("NAMESPACE", "shop"), ("NODE_NAME", "n2"), ("SERVICE_ACCOUNT", "admin")];
    for (key, value) in elsewhere {
        let mut node = node();
        node.metadata.insert(key.to_owned(), value.to_owned());
        let (sink, _batches) = Notebook::new();
        let mut client = run(server.control_plane(&authority), node, sink);
        client.failed_with(&format!("{key} is not that of the credentials")).await;
        client.end().await;
    }
}

#[tokio::test]
async fn an_address_that_is_none_is_said_so() {
    for address in ["istiod:15012", "http://istiod:15012", "https://istiod", "https://istiod:0"] {
        let (sink, _batches) = Notebook::new();
        let control_plane = ControlPlane {
            address: address.to_owned(),
            root: Root::Pem(String::new()),
            alt_hostname: None,
            token: Token::None,
            cluster_id: String::new(),
            headers: Vec::new(),
        };
        let mut client = run(control_plane, node(), sink);
        client.failed_with("https://host:port is accepted").await;
        client.end().await;
    }
}

/// A server over a pipe: no real time passes in it.
async fn channel(tasks: &Tasks, routes: Routes) -> Channel {
    let (near, far) = tokio::io::duplex(1 << 20);
    tasks.spawn("server", async move {
        let incoming = futures::stream::once(async { Ok::<_, std::io::Error>(far) }).chain(futures::stream::pending());
        let _ = tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming).await;
    });
    let mut near = Some(TokioIo::new(near));
    let connector = tower::service_fn(move |_: http::Uri| {
        let near: Option<TokioIo<DuplexStream>> = near.take();
        std::future::ready(near.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)))
    });
    Endpoint::from_static("http://pipe").connect_with_connector(connector).await.unwrap()
}

fn with_secret<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
    request.metadata_mut().insert("clusterid", "Kubernetes".parse().unwrap());
    request
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_acknowledges_is_given_up_and_told_so() {
    let (store, tasks) = (Arc::new(Store::new()), Tasks::new("test"));
    let (ear, mut heard) = Ear::new();
    let mut service = AggregatedDiscoveryServiceClient::new(channel(&tasks, routes(&store, ear)).await);
    let (requests, receiver) = mpsc::channel(8);
    let mut first = Machine::new(node().wire(), &ResourceType::NODE).opened(Instant::now().into_std());
    requests.send(first.remove(0)).await.unwrap();
    let request = with_secret(ReceiverStream::new(receiver));
    let mut responses = service.delta_aggregated_resources(request).await.unwrap().into_inner();
    responses.message().await.unwrap().unwrap();
    let started = Instant::now();
    let end = responses.message().await.unwrap_err();
    assert_eq!(end.code(), tonic::Code::DeadlineExceeded);
    assert!(started.elapsed() >= ACK_DEADLINE);
    assert!(matches!(heard.recv().await.unwrap(), Heard::Connected(..)));
    assert!(matches!(heard.recv().await.unwrap(), Heard::Gone(_)));
    assert_eq!(store.streams(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_opens_a_stream_and_says_nothing_is_given_up() {
    let (store, tasks) = (Arc::new(Store::new()), Tasks::new("test"));
    let (ear, _heard) = Ear::new();
    let mut service = AggregatedDiscoveryServiceClient::new(channel(&tasks, routes(&store, ear)).await);
    let (_requests, receiver) = mpsc::channel(8);
    let request = with_secret(ReceiverStream::new(receiver));
    let mut responses = service.delta_aggregated_resources(request).await.unwrap().into_inner();
    assert_eq!(responses.message().await.unwrap_err().code(), tonic::Code::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_opens_a_stream_and_says_nothing_is_given_up() {
    use crate::proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
    use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    };

    struct Mute;

    #[tonic::async_trait]
    impl AggregatedDiscoveryService for Mute {
        type DeltaAggregatedResourcesStream = futures::stream::Pending<Result<DeltaDiscoveryResponse, tonic::Status>>;

        async fn delta_aggregated_resources(
            &self,
            _: tonic::Request<tonic::Streaming<DeltaDiscoveryRequest>>,
        ) -> Result<tonic::Response<Self::DeltaAggregatedResourcesStream>, tonic::Status> {
            Ok(tonic::Response::new(futures::stream::pending()))
        }
    }

    let tasks = Tasks::new("test");
    let channel = channel(&tasks, Routes::new(AggregatedDiscoveryServiceServer::new(Mute))).await;
    let control_plane = ControlPlane {
        address: "https://pipe:1".to_owned(),
        root: Root::Pem(String::new()),
        alt_hostname: None,
        token: Token::None,
        cluster_id: "Kubernetes".to_owned(),
        headers: Vec::new(),
    };
    let mut client = Client::new(control_plane, node());
    let (mut sink, _batches) = Notebook::new();
    let ended = client.exchange(channel, &mut sink).await.unwrap_err();
    assert!(matches!(ended, StreamError::Slow { what: "answer", .. }), "{ended}");
}

#[test]
fn a_waypoint_says_what_it_is_and_asks_for_routes_too() {
    let info = NodeInfo::waypoint("w-1", "shop", "node-1", Some([10, 0, 0, 9].into()), "cluster.local");
    assert_eq!(info.id, "waypoint~10.0.0.9~w-1.shop~shop.svc.cluster.local");
    assert!(info.kinds.contains(&ResourceType::Route));
    let tunnel = NodeInfo::ztunnel("z", "istio-system", "node-1", None, "cluster.local");
    assert_eq!(tunnel.id, "ztunnel~1.1.1.1~z.istio-system~istio-system.svc.cluster.local");
    assert!(!tunnel.kinds.contains(&ResourceType::Route));
}
