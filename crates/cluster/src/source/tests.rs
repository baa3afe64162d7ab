//! What a watch's events come to, without a server.

use futures::stream;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::DynamicObject;
use kube::core::Status;

use super::*;

fn follower(shared: &Arc<Shared>, kind: Kind) -> Follower {
    shared.pending.lock().incomplete += 1;
    Follower {
        number: 0,
        watch: Watch::all(kind),
        shared: Arc::clone(shared),
        known: HashMap::new(),
        listing: None,
        complete: false,
        failing: false,
        refused: None,
        backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
    }
}

fn source(shared: &Arc<Shared>) -> KubernetesSource {
    KubernetesSource { shared: Arc::clone(shared), _watches: JoinSet::new() }
}

fn service(name: &str, version: &str) -> Service {
    let mut service = Service::default();
    service.metadata.name = Some(name.to_owned());
    service.metadata.namespace = Some("shop".to_owned());
    service.metadata.resource_version = Some(version.to_owned());
    service
}

/// The update, in short: `+` set, `-` removed.
async fn told(source: &mut KubernetesSource) -> Vec<String> {
    let update = source.next().await.unwrap();
    assert!(update.complete);
    let mut told: Vec<String> = update
        .changes
        .iter()
        .map(|change| match change {
            Change::Set(_) => format!("+{}", change.key().name),
            Change::Removed(_) => format!("-{}", change.key().name),
        })
        .collect();
    told.sort();
    told
}

#[tokio::test]
async fn nothing_is_told_before_every_first_list_is_complete() {
    let shared = Arc::new(Shared::default());
    let (mut services, mut pods) = (follower(&shared, Kind::Service), follower(&shared, Kind::Pod));
    let mut source = source(&shared);
    services.take(Event::<Service>::Init);
    services.take(Event::InitApply(service("a", "1")));
    services.take(Event::<Service>::InitDone);
    let waiting = tokio::time::timeout(Duration::ZERO, source.next()).await;
    assert!(waiting.is_err());
    pods.take(Event::<Pod>::Init);
    pods.take(Event::<Pod>::InitDone);
    assert_eq!(told(&mut source).await, ["+a"]);
}

#[tokio::test]
async fn a_list_made_again_is_a_difference() {
    let shared = Arc::new(Shared::default());
    let mut follower = follower(&shared, Kind::Service);
    let mut source = source(&shared);
    follower.take(Event::<Service>::Init);
    for name in ["a", "b", "c"] {
        follower.take(Event::InitApply(service(name, "1")));
    }
    follower.take(Event::<Service>::InitDone);
    assert_eq!(told(&mut source).await, ["+a", "+b", "+c"]);
    follower.take(Event::<Service>::Init);
    follower.take(Event::InitApply(service("a", "1")));
    follower.take(Event::InitApply(service("b", "2")));
    // Until the list is complete nothing is known to be gone.
    assert_eq!(told(&mut source).await, ["+b"]);
    follower.take(Event::<Service>::InitDone);
    assert_eq!(told(&mut source).await, ["-c"]);
}

#[tokio::test]
async fn a_list_that_breaks_off_takes_nothing_away() {
    let shared = Arc::new(Shared::default());
    let mut follower = follower(&shared, Kind::Service);
    let mut source = source(&shared);
    follower.take(Event::<Service>::Init);
    follower.take(Event::InitApply(service("a", "1")));
    follower.take(Event::<Service>::InitDone);
    assert_eq!(told(&mut source).await, ["+a"]);
    follower.take(Event::<Service>::Init);
    follower.take(Event::<Service>::Init);
    follower.take(Event::InitApply(service("a", "1")));
    follower.take(Event::<Service>::InitDone);
    assert!(tokio::time::timeout(Duration::ZERO, source.next()).await.is_err());
}

#[tokio::test]
async fn a_slow_owner_hears_the_last_word_on_each_object() {
    let shared = Arc::new(Shared::default());
    let mut follower = follower(&shared, Kind::Service);
    let mut source = source(&shared);
    follower.take(Event::<Service>::Init);
    follower.take(Event::<Service>::InitDone);
    assert!(told(&mut source).await.is_empty());
    for version in 0..1000 {
        follower.take(Event::Apply(service("a", &version.to_string())));
        follower.take(Event::Apply(service("b", &version.to_string())));
    }
    follower.take(Event::Delete(service("b", "1001")));
    assert_eq!(shared.pending.lock().changes.len(), 2);
    assert_eq!(told(&mut source).await, ["+a", "-b"]);
    follower.take(Event::Delete(service("b", "1002")));
    assert!(tokio::time::timeout(Duration::ZERO, source.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_the_server_does_not_have_holds_nobody_up() {
    let shared = Arc::new(Shared::default());
    let follower = follower(&shared, Kind::AuthorizationPolicy);
    let mut source = source(&shared);
    let absent = || {
        let status = Status { code: 404, ..Status::default() };
        Err::<Event<DynamicObject>, _>(watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status))))
    };
    let mut task = JoinSet::new();
    task.spawn(follower.follow(stream::iter([absent(), absent()]).chain(stream::pending())));
    assert!(told(&mut source).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_know_a_kind_for_a_while_takes_no_policy_away() {
    let shared = Arc::new(Shared::default());
    let follower = follower(&shared, Kind::AuthorizationPolicy);
    let mut source = source(&shared);
    let absent = || {
        let status = Status { code: 404, ..Status::default() };
        Err(watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(status))))
    };
    let events = [
        Ok(Event::Init),
        Ok(Event::InitApply(policy("a", "ALLOW"))),
        Ok(Event::InitApply(policy("b", "ALLOW"))),
        Ok(Event::InitDone),
        absent(),
        Ok(Event::Init),
        absent(),
        Ok(Event::Init),
        Ok(Event::InitApply(policy("b", "ALLOW"))),
        Ok(Event::InitDone),
    ];
    let mut task = JoinSet::new();
    task.spawn(follower.follow(stream::iter(events).chain(stream::pending())));
    assert_eq!(told(&mut source).await, ["+a", "+b"]);
    assert_eq!(told(&mut source).await, ["-a"]);
}

fn policy(name: &str, action: &str) -> DynamicObject {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": action, "managedFields": [{"manager": "kubectl"}]},
        "spec": {"action": action},
    }))
    .unwrap()
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_stays_as_it_was_and_is_told() {
    let shared = Arc::new(Shared::default());
    let mut follower = follower(&shared, Kind::AuthorizationPolicy);
    let mut source = source(&shared);
    follower.take(Event::<DynamicObject>::Init);
    follower.take(Event::InitApply(policy("a", "ALLOW")));
    follower.take(Event::<DynamicObject>::InitDone);
    assert_eq!(told(&mut source).await, ["+a"]);
    follower.take(Event::Apply(policy("a", "PERHAPS")));
    let update = source.next().await.unwrap();
    assert!(update.changes.is_empty());
    let findings = update.findings.unwrap();
    assert_eq!(findings.len(), 1);
    assert!(findings[0].to_string().starts_with("AuthorizationPolicy shop/a: spec.action: "), "{}", findings[0]);
    follower.take(Event::Apply(policy("a", "ALLOW")));
    let update = source.next().await.unwrap();
    assert_eq!(update.changes.len(), 1);
    assert_eq!(update.findings.as_deref(), Some(&[][..]));
}

#[test]
fn what_nobody_reads_is_not_kept() {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p", "managedFields": [{"manager": "kubelet"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "page", "volumes": [{"name": "v"}],
            "containers": [{"name": "c", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80}],
                "livenessProbe": {"tcpSocket": {"port": 80}}}]},
        "status": {"podIP": "10.0.0.1", "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0}]},
    }))
    .unwrap();
    let mut object = Object::from(pod);
    trim::trim(&mut object);
    let Object::Pod(pod) = object else { panic!("not a pod") };
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!((spec.node_name.as_deref(), spec.service_account_name.as_deref()), (Some("n1"), Some("page")));
    assert!(spec.volumes.is_none() && pod.metadata.managed_fields.is_none());
    assert_eq!(pod.metadata.annotations.as_ref().unwrap().len(), 1);
    let container = &spec.containers[0];
    assert!(container.env.is_none() && container.ports.is_some() && container.liveness_probe.is_some());
    assert_eq!(pod.status.as_ref().unwrap().pod_ip.as_deref(), Some("10.0.0.1"));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_stays_forbidden_is_done_without_and_told_but_policies_are_waited_for() {
    let forbidden = || {
        let status = Status::failure("no", "Forbidden").with_code(403);
        Err(watcher::Error::InitialListFailed(kube::Error::Api(status.boxed())))
    };
    let shared = Arc::new(Shared::default());
    let mut source = source(&shared);
    let (routes, policies) = (follower(&shared, Kind::HttpRoute), follower(&shared, Kind::AuthorizationPolicy));
    let errors = |count: usize| stream::iter((0..count).flat_map(move |_| [Ok(Event::Init), forbidden()]));
    let later = stream::iter([Ok(Event::<DynamicObject>::Init), Ok(Event::InitDone)]);
    let mut tasks = JoinSet::new();
    tasks.spawn(routes.follow(errors(10).chain(stream::pending::<Result<Event<DynamicObject>, _>>())));
    let start = tokio::time::Instant::now();
    tasks.spawn(policies.follow(errors(20).chain(later)));
    let update = source.next().await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(60), "twenty waits for the policies");
    let findings: Vec<String> = update.findings.unwrap().iter().map(|one| one.to_string()).collect();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].contains("HTTPRoute") && findings[0].contains("does not let the controller see"));
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_forbidden_for_a_moment_is_waited_for() {
    let forbidden = Status::failure("no", "Forbidden").with_code(403);
    let forbidden = Err(watcher::Error::InitialListFailed(kube::Error::Api(forbidden.boxed())));
    let shared = Arc::new(Shared::default());
    let mut source = source(&shared);
    let later = stream::iter([forbidden, Ok(Event::<DynamicObject>::Init), Ok(Event::InitDone)]);
    let mut tasks = JoinSet::new();
    tasks.spawn(follower(&shared, Kind::HttpRoute).follow(later.chain(stream::pending())));
    let update = source.next().await.unwrap();
    assert!(update.findings.is_none_or(|all| all.is_empty()));
}
