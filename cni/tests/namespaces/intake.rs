//! The plugin's questions: what is decided when the watch is behind, and when the API server is away.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, StatusCode};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use stillmesh_cni::api::Questions;
use stillmesh_cni::enroll::pod::Status;
use stillmesh_cni::intake::{Ask, Desk, QUEUE, Started, server};
use stillmesh_cni::metrics::Metrics;
use stillmesh_cni::netns::Opener;
use stillmesh_cni::writeback::{PodName, Writer};
use stillmesh_k8s::select::NotEnrolled;
use stillmesh_runtime::admin::client::{Answer, Client};
use stillmesh_runtime::sys::unix;
use stillmesh_runtime::{Tasks, accept, drain};
use stillmesh_test_support::isolated_async;
use stillmesh_test_support::net::Place;
use tokio::sync::{mpsc, watch};

/// What the agent says before and after the API server was asked.
#[derive(Clone, Copy)]
enum Knows {
    Captured,
    Unknown { enrolled: Option<bool> },
    Not(NotEnrolled),
}

struct World {
    place: Place,
    directory: tempfile::TempDir,
    tasks: Tasks,
    /// What the API server was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn new() -> Self {
        let (place, directory) = (Place::new("pod"), tempfile::tempdir().unwrap());
        place.netns().bind_to(&directory.path().join("netns")).expect("to bind the namespace");
        Self { place, directory, tasks: Tasks::new("test"), asked: Arc::default() }
    }

    /// An API server that has every object or is away.
    fn api(&self, there: bool) -> Questions {
        self.api_after(if there { 0 } else { usize::MAX })
    }

    /// An API server that has every object, and is away for so many requests.
    fn api_after(&self, requests: usize) -> Questions {
        let asked = Arc::clone(&self.asked);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let mut asked = asked.lock();
            asked.push(request.uri().path().to_owned());
            let answer = if asked.len() > requests {
                let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                let (status, object) = (200, json!({"metadata": {"name": name}}));
                (status, object)
            } else {
                (503, json!({"kind": "Status", "status": "Failure", "code": 503, "message": "away", "reason": ""}))
            };
            let body = Body::from(answer.1.to_string().into_bytes());
            let response = http::Response::builder().status(answer.0).body(body).expect("a response");
            async move { Ok::<_, Infallible>(response) }
        });
        Questions::new(kube::Client::new(service, "default"))
    }

    /// What the plugin is answered.
    async fn ask(&self, api: Option<Questions>, before: Knows, after: Knows, body: Value) -> Answer {
        self.ask_with(Writer::default(), api, before, after, body).await
    }

    async fn ask_with(
        &self,
        writer: Writer,
        api: Option<Questions>,
        before: Knows,
        after: Knows,
        body: Value,
    ) -> Answer {
        let (asks, mut asked) = mpsc::channel(QUEUE);
        let desk = Desk { asks, questions: api, opener: Opener::default(), writer, metrics: Metrics::default() };
        let path = self.directory.path().join("plugin.sock");
        let listener = unix::listen(&path, 0o600).and_then(tokio::net::UnixListener::from_std).expect("a socket");
        let (trigger, drain) = drain::channel();
        let serving = self.tasks.spawn("plugin", server(desk).serve(accept::Listener::from(listener), drain));
        let inode = self.place.netns().inode();
        let agent = self.tasks.spawn("agent", async move {
            let mut seen = false;
            while let Some(ask) = asked.recv().await {
                let Ask::Start(start) = ask else {
                    seen = true;
                    continue;
                };
                assert_eq!(start.looked, seen);
                let started = match if seen { after } else { before } {
                    Knows::Captured => {
                        let status = Status { captured: Some(inode), ..Status::default() };
                        Started::Working(watch::channel(status).1)
                    }
                    Knows::Unknown { enrolled } => Started::Unknown { enrolled },
                    Knows::Not(reason) => Started::NotEnrolled(reason),
                };
                let _ = start.answer.send(started);
            }
        });
        let answer = Client::unix(&path).request(Method::POST, "/cmdadd", body.to_string()).await.expect("an answer");
        drop(trigger);
        serving.cut();
        agent.cut();
        std::fs::remove_file(&path).unwrap();
        answer
    }

    fn ours(&self) -> Value {
        let mut body = self.istios();
        body["PodUID"] = json!("u-1");
        body["AgentDecides"] = json!(true);
        body
    }

    /// As Istio's plugin writes it.
    fn istios(&self) -> Value {
        let address = json!({"Interface": 0, "Address": {"IP": "10.0.0.7", "Mask": "////AA=="}, "Gateway": "10.0.0.1"});
        let netns = self.directory.path().join("netns");
        json!({"Netns": netns, "PodName": "a", "PodNamespace": "shop", "IPs": [address]})
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = stillmesh_runtime::sys::netns::Netns::unbind(&self.directory.path().join("netns"));
    }
}

fn decision(answer: &Answer) -> (u16, Option<bool>) {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    (answer.status.as_u16(), body["captured"].as_bool())
}

#[test]
fn a_pod_that_the_watch_has_not_brought_is_asked_for_and_captured() {
    isolated_async(|| async {
        let world = World::new();
        let unknown = Knows::Unknown { enrolled: Some(true) };
        let answer = world.ask(Some(world.api(true)), unknown, Knows::Captured, world.ours()).await;
        assert_eq!(decision(&answer), (200, Some(true)));
        let mut asked = world.asked.lock().clone();
        asked.sort();
        assert_eq!(asked, ["/api/v1/namespaces/shop", "/api/v1/namespaces/shop/pods/a"]);
        // Istio's plugin reads no answer.
        let answer = world.ask(Some(world.api(true)), unknown, Knows::Captured, world.istios()).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0));
    });
}

#[test]
fn a_label_that_the_watch_has_not_brought_counts() {
    isolated_async(|| async {
        let world = World::new();
        let free = Knows::Not(NotEnrolled::NotSelected);
        let answer = world.ask(Some(world.api(true)), free, Knows::Captured, world.ours()).await;
        assert_eq!(decision(&answer), (200, Some(true)));
        let answer = world.ask(Some(world.api(true)), free, free, world.ours()).await;
        assert_eq!(decision(&answer), (200, Some(false)));
        assert!(answer.text().contains("no istio.io/dataplane-mode label selects it"), "{}", answer.text());
        // What no label can change is not asked.
        world.asked.lock().clear();
        let sidecar = Knows::Not(NotEnrolled::Sidecar);
        assert_eq!(
            decision(&world.ask(Some(world.api(true)), sidecar, sidecar, world.ours()).await),
            (200, Some(false))
        );
        assert!(world.asked.lock().is_empty());
    });
}

#[test]
fn an_api_server_that_fails_at_first_is_asked_again() {
    isolated_async(|| async {
        let world = World::new();
        for before in [Knows::Unknown { enrolled: Some(false) }, Knows::Not(NotEnrolled::NotSelected)] {
            world.asked.lock().clear();
            let answer = world.ask(Some(world.api_after(4)), before, Knows::Captured, world.ours()).await;
            assert_eq!(decision(&answer), (200, Some(true)));
        }
    });
}

#[test]
fn without_the_api_server_no_pod_starts_that_nobody_knows_but_static_ones_outside_of_the_mesh() {
    isolated_async(|| async {
        let world = World::new();
        tokio::time::pause();
        let away = || Some(world.api(false));
        let mut static_pod = world.ours();
        static_pod["PodUID"] = json!("0123456789abcdef0123456789abcdef");
        for (enrolled, is_static, starts) in [
            (Some(true), false, false),
            (Some(false), false, false),
            (None, false, false),
            (Some(true), true, false),
            (Some(false), true, true),
            (None, true, false),
        ] {
            let (knows, body) =
                (Knows::Unknown { enrolled }, if is_static { static_pod.clone() } else { world.ours() });
            let answer = world.ask(away(), knows, knows, body).await;
            let case = format!("{enrolled:?} {is_static}: {}", answer.text());
            assert_eq!(decision(&answer).1, starts.then_some(false), "{case}");
            assert!(answer.text().contains("the API server"), "{case}");
        }
        // Who had the name before says nothing of this one.
        let before = Knows::Not(NotEnrolled::Terminal);
        assert_eq!(decision(&world.ask(away(), before, before, world.ours()).await), (500, None));
        // Of a pod that is known, its labels count.
        let free = Knows::Not(NotEnrolled::NotSelected);
        assert_eq!(decision(&world.ask(away(), free, free, world.ours()).await), (200, Some(false)));
    });
}

#[test]
fn where_nobody_else_can_be_asked_what_the_agent_knows_counts() {
    isolated_async(|| async {
        let world = World::new();
        let inside = Knows::Unknown { enrolled: Some(true) };
        let answer = world.ask(None, inside, inside, world.ours()).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        let outside = Knows::Unknown { enrolled: Some(false) };
        assert_eq!(decision(&world.ask(None, outside, outside, world.ours()).await), (200, Some(false)));
    });
}

#[test]
fn a_captured_pod_waits_a_second_for_its_annotation_and_starts_all_the_same() {
    isolated_async(|| async {
        let world = World::new();
        let pod = PodName { namespace: "shop".into(), name: "a".into() };
        let writer = Writer::default();
        writer.set(&pod, "u-1", [("x", None)].into());
        let start = std::time::Instant::now();
        let ask = world.ask_with(writer.clone(), None, Knows::Captured, Knows::Captured, world.ours());
        assert_eq!(decision(&ask.await), (200, Some(true)));
        assert!(start.elapsed() >= std::time::Duration::from_secs(1), "nobody writes");
    });
}

#[test]
fn a_plugin_that_has_decided_is_not_told_that_all_is_well() {
    isolated_async(|| async {
        let world = World::new();
        for known in [Knows::Not(NotEnrolled::NotSelected), Knows::Unknown { enrolled: Some(false) }] {
            let answer = world.ask(Some(world.api(true)), known, known, world.istios()).await;
            assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        }
    });
}
