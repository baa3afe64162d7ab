//! Writes statuses back to where the objects come from. What waits is at most one status per object, and only where it
//! differs from what the object has: a restart writes nothing.

mod steered;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::Method;
use k8s_openapi::api::core::v1::Service;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::{Value, json};
use stillmesh_cluster::{Cluster, Leader};
use stillmesh_k8s::gateway::condition;
use stillmesh_k8s::gateway::grpc_route::GrpcRoute;
use stillmesh_k8s::gateway::http_route::HttpRoute;
use stillmesh_k8s::gateway::stream_route::{TcpRoute, TlsRoute};
use stillmesh_k8s::istio::destination_rule::DestinationRule;
use stillmesh_k8s::istio::telemetry::Telemetry;
use stillmesh_k8s::istio::virtual_service::VirtualService;
use stillmesh_k8s::istio::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication, StatusCondition};
use stillmesh_k8s::status::Condition;
use stillmesh_k8s::steering::{Bypass, Quarantine};
use stillmesh_k8s::{Kind, ObjectKey, status};
use stillmesh_runtime::Backoff;
use stillmesh_runtime::admin::client::Client;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::build::Verdict;
use crate::cluster::chain;
use crate::metrics::Metrics;
use crate::receipts::{IN_FORCE, essence};

/// The least time between two writes: a thousand changed policies do not keep the API server busy.
const PACE: Duration = Duration::from_millis(20);
/// How long one write may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// The waits of an object that cannot be written. Others go on meanwhile.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The least time before the same status is written once more, because somebody else has written another one over it; doubled
/// as long as that goes on.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// What is to be written, the newest per object.
pub(crate) struct Statuses {
    waiting: Mutex<BTreeMap<ObjectKey, Waiting>>,
    /// What is known of every object that has a status.
    known: Mutex<BTreeMap<ObjectKey, Known>>,
    /// What was written lately.
    written: Mutex<BTreeMap<ObjectKey, Written>>,
    news: Notify,
    metrics: Arc<Metrics>,
}

/// What an object's status should say.
#[derive(Default)]
struct Known {
    verdict: Option<Verdict>,
    receipt: Saying,
}

/// What an object's status should say of where it is in force.
#[derive(Clone, Debug, Default, PartialEq)]
enum Saying {
    /// It is not known yet: what stands there stands.
    #[default]
    Unknown,
    /// Nothing.
    Nothing,
    /// This, of this generation of the object.
    Is(Condition, Option<i64>),
}

/// Receipts by object: the condition and the generation that it is about; `None` where there is none.
pub(crate) type Said = Vec<(ObjectKey, Option<(Condition, Option<i64>)>)>;

struct Waiting {
    verdict: Verdict,
    receipt: Saying,
    due: Instant,
    backoff: Backoff,
}

impl Waiting {
    fn new(verdict: Verdict, receipt: Saying, due: Instant) -> Self {
        Self { verdict, receipt, due, backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT) }
    }
}

/// A status that was written.
struct Written {
    /// Without times.
    said: Value,
    /// Not again before.
    until: Instant,
    pause: Duration,
}

impl Written {
    /// Whether somebody may still be at it: who was quiet for long begins anew.
    fn counts(&self, now: Instant) -> bool {
        now < self.until + self.pause * 4
    }
}

impl Statuses {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            waiting: Mutex::default(),
            known: Mutex::default(),
            written: Mutex::default(),
            news: Notify::new(),
            metrics,
        }
    }

    /// When a status may be written: now, unless it is the one that was written last, so that two controllers that do not
    /// agree leave the API server in peace.
    fn due(&self, object: &ObjectKey, status: &Value) -> Instant {
        let now = Instant::now();
        let written = self.written.lock();
        let same = written.get(object).filter(|one| one.counts(now) && one.said == timeless(status));
        same.map_or(now, |one| one.until.max(now))
    }

    /// Notes what was written.
    fn noted(&self, object: &ObjectKey, status: &Value) {
        let (now, said) = (Instant::now(), timeless(status));
        let mut written = self.written.lock();
        written.retain(|_, one| one.counts(now));
        let again = written.get(object).filter(|one| one.said == said);
        let pause = again.map_or(FIRST_PAUSE, |one| (one.pause * 2).min(LONGEST_PAUSE));
        if again.is_some_and(|one| one.pause < CONTESTED && pause >= CONTESTED) {
            warn!(%object, "somebody else goes on writing another status over this one: it is written less and less often");
        }
        written.insert(object.clone(), Written { said, until: now + pause, pause });
    }

    /// Takes over what statuses should say.
    pub fn take(&self, verdicts: Vec<Verdict>) {
        let mut known = self.known.lock();
        let mut told = Vec::new();
        for verdict in verdicts {
            if verdict.gone {
                known.remove(&verdict.object);
                told.push((verdict, Saying::Unknown));
                continue;
            }
            let one = known.entry(verdict.object.clone()).or_default();
            one.verdict = Some(verdict.clone());
            told.push((verdict, one.receipt.clone()));
        }
        drop(known);
        self.say(told);
    }

    /// Takes over what statuses should say of where objects are in force. Of an object that nobody has looked at, nothing is
    /// kept.
    pub fn receipts(&self, said: Said) {
        let mut known = self.known.lock();
        let mut told = Vec::new();
        for (object, receipt) in said {
            let Some(one) = known.get_mut(&object) else { continue };
            one.receipt = receipt.map_or(Saying::Nothing, |(condition, generation)| Saying::Is(condition, generation));
            told.extend(one.verdict.clone().map(|verdict| (verdict, one.receipt.clone())));
        }
        drop(known);
        self.say(told);
    }

    fn say(&self, told: Vec<(Verdict, Saying)>) {
        let mut waiting = self.waiting.lock();
        for (verdict, receipt) in told {
            match (status(&verdict, &receipt), waiting.get_mut(&verdict.object)) {
                (Some(status), Some(one)) => {
                    // What failed before waits for its turn, and so does what is written seldom.
                    if one.backoff.tries() == 0 && verdict.steered.is_none() {
                        one.due = self.due(&verdict.object, &status);
                    }
                    (one.verdict, one.receipt) = (verdict, receipt);
                }
                (Some(status), None) => {
                    let mut due = self.due(&verdict.object, &status);
                    if let Some(steered) = &verdict.steered {
                        due = due.max(Instant::now() + steered::pause(steered));
                    }
                    waiting.insert(verdict.object.clone(), Waiting::new(verdict, receipt, due));
                }
                (None, _) => {
                    waiting.remove(&verdict.object);
                }
            }
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// Writes, for ever. What cannot be written now is tried again.
    pub async fn write(&self, writer: &dyn Writer) {
        loop {
            let waiting = match self.next() {
                Ok(waiting) => waiting,
                Err(due) => {
                    tokio::select! {
                        () = self.news.notified() => {}
                        () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                    }
                    continue;
                }
            };
            // Dropped on the way, it waits again for the next leader.
            let mut pending = Pending { statuses: self, waiting: Some(waiting) };
            let Some(one) = &mut pending.waiting else { continue };
            let result = match status(&one.verdict, &one.receipt) {
                Some(status) => {
                    let said = status.clone();
                    let result = writer.write(&one.verdict, status).await;
                    if result.is_ok() {
                        steered::audit(&one.verdict);
                        self.noted(&one.verdict.object, &said);
                    }
                    result
                }
                None => Ok(()),
            };
            match result {
                Ok(()) => pending.waiting = None,
                Err(reason) => {
                    self.metrics.statuses_failed.inc();
                    if one.backoff.tries() == 0 {
                        warn!(object = %one.verdict.object, reason, "a status cannot be written; it will be tried again");
                    }
                    one.due = Instant::now() + one.backoff.next(rand::random());
                }
            }
            drop(pending);
            tokio::time::sleep(PACE).await;
        }
    }

    /// Takes out what has waited longest, or says when something will be due.
    fn next(&self) -> Result<Waiting, Option<Instant>> {
        let mut waiting = self.waiting.lock();
        let first = waiting.iter().min_by_key(|(_, one)| one.due);
        let (key, due) = first.map(|(key, one)| (key.clone(), one.due)).ok_or(None)?;
        match due <= Instant::now() {
            true => waiting.remove(&key).ok_or(None),
            false => Err(Some(due)),
        }
    }
}

/// From this pause on it is told that a status is contested.
const CONTESTED: Duration = Duration::from_secs(3);

/// A status without the times in it, which differ each time.
fn timeless(status: &Value) -> Value {
    match status {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, _)| *key != "lastTransitionTime");
            Value::Object(kept.map(|(key, value)| (key.clone(), timeless(value))).collect())
        }
        Value::Array(items) => items.iter().map(timeless).collect(),
        other => other.clone(),
    }
}

/// A verdict that is being written.
struct Pending<'a> {
    statuses: &'a Statuses,
    waiting: Option<Waiting>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            // Unless something newer waits by now.
            self.statuses.waiting.lock().entry(waiting.verdict.object.clone()).or_insert(waiting);
            self.statuses.news.notify_one();
        }
    }
}

/// What of its status an object should have; `None` where it has it.
fn status(verdict: &Verdict, receipt: &Saying) -> Option<Value> {
    let now = jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now()).to_string();
    if let Some(steered) = &verdict.steered {
        return steered::status(steered);
    }
    if let Some(parents) = &verdict.parents {
        let has_one = |conditions: &[StatusCondition]| conditions.iter().any(|one| one.type_ == IN_FORCE);
        let told = parents.existing.iter().any(|parent| has_one(&parent.conditions));
        let mut said = parents.said.clone();
        match receipt {
            // What stands there is soon known to hold or not.
            Saying::Unknown if told => return None,
            Saying::Is(condition, generation) if *generation == verdict.generation => {
                for one in &mut said {
                    let before = parents.existing.iter().filter(|existing| existing.parent_ref == one.parent);
                    let before = before.flat_map(|existing| &existing.conditions);
                    one.conditions.push(as_it_was(condition, *generation, before));
                }
            }
            _ => {}
        }
        let parents = condition::parents(&parents.existing, &said, verdict.generation, &now)?;
        return Some(json!({"parents": parents}));
    }
    let without = |all: Vec<StatusCondition>, gone: &str| all.into_iter().filter(|one| one.type_ != gone).collect();
    let mut conditions = verdict.existing.clone();
    match (&verdict.condition, verdict.retracted) {
        (Some(condition), _) => {
            conditions = status::merged(&conditions, condition, verdict.generation, &now).unwrap_or(conditions);
        }
        (None, Some(gone)) => conditions = without(conditions, gone),
        (None, None) => {}
    }
    match receipt {
        Saying::Unknown => {}
        Saying::Nothing => conditions = without(conditions, IN_FORCE),
        Saying::Is(condition, generation) => {
            let condition = as_it_was(condition, *generation, verdict.existing.iter());
            conditions = status::merged(&conditions, &condition, *generation, &now).unwrap_or(conditions);
        }
    }
    (conditions != verdict.existing).then(|| json!({"conditions": conditions}))
}

/// A receipt, in the words that stand there where these say the same but for how long it took: that alone is no reason to
/// write.
fn as_it_was<'a>(
    condition: &Condition,
    generation: Option<i64>,
    before: impl Iterator<Item = &'a StatusCondition>,
) -> Condition {
    let same = |one: &&StatusCondition| {
        one.type_ == IN_FORCE
            && one.status == condition.status
            && one.observed_generation == generation
            && essence(&one.message) == essence(&condition.message)
    };
    let mut before = before.filter(same);
    Condition { message: before.next().map_or(&condition.message, |one| &one.message).clone(), ..condition.clone() }
}

/// Where statuses are written to.
pub(crate) trait Writer: Send + Sync {
    /// Writes a part of one object's status. An object that is gone or has changed meanwhile is no failure: whatever
    /// comes next tells.
    fn write<'a>(&'a self, verdict: &'a Verdict, status: Value) -> BoxFuture<'a, Result<(), String>>;
}

/// The API of a one-machine mesh.
pub(crate) struct Socket(Client);

impl Socket {
    pub fn new(path: &Path) -> Self {
        Self(Client::unix(path).deadline(DEADLINE))
    }
}

impl Writer for Socket {
    fn write<'a>(&'a self, verdict: &'a Verdict, status: Value) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let key = &verdict.object;
            let forget = verdict.steered.as_ref().is_some_and(|steered| steered.forget.is_some());
            let (method, what) = if forget { (Method::DELETE, "orders") } else { (Method::PATCH, "status") };
            let path = format!("/{what}/{}/{}/{}", key.kind, key.namespace, key.name);
            let answer = self.0.request(method, &path, status.to_string()).await.map_err(|error| chain(&error))?;
            match answer.status.as_u16() {
                200..=299 => {
                    debug!(object = %key, "status written");
                    Ok(())
                }
                404 | 409 | 410 => Ok(()),
                _ => Err(format!("{}: {}", answer.status, answer.text())),
            }
        })
    }
}

/// The status subresources of the Kubernetes API; the leader writes.
pub(crate) struct Api {
    cluster: Cluster,
    leader: Leader,
}

impl Api {
    pub fn new(cluster: &Cluster, leader: Leader) -> Self {
        Self { cluster: cluster.clone(), leader }
    }
}

impl Writer for Api {
    fn write<'a>(&'a self, verdict: &'a Verdict, mut status: Value) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let key = &verdict.object;
            let resource = match key.kind {
                Kind::AuthorizationPolicy => ApiResource::erase::<AuthorizationPolicy>(&()),
                Kind::PeerAuthentication => ApiResource::erase::<PeerAuthentication>(&()),
                Kind::RequestAuthentication => ApiResource::erase::<RequestAuthentication>(&()),
                Kind::Service => ApiResource::erase::<Service>(&()),
                Kind::GrpcRoute => ApiResource::erase::<GrpcRoute>(&()),
                Kind::VirtualService => ApiResource::erase::<VirtualService>(&()),
                Kind::DestinationRule => ApiResource::erase::<DestinationRule>(&()),
                Kind::Telemetry => ApiResource::erase::<Telemetry>(&()),
                Kind::HttpRoute => ApiResource::erase::<HttpRoute>(&()),
                Kind::TlsRoute => ApiResource::erase::<TlsRoute>(&()),
                Kind::TcpRoute => ApiResource::erase::<TcpRoute>(&()),
                Kind::Bypass => ApiResource::erase::<Bypass>(&()),
                Kind::Quarantine => ApiResource::erase::<Quarantine>(&()),
                _ => return Ok(()),
            };
            let api: kube::Api<DynamicObject> =
                kube::Api::namespaced_with(self.cluster.client(), &key.namespace, &resource);
            if let Some(uid) = verdict.steered.as_ref().and_then(|steered| steered.forget.clone()) {
                let params =
                    DeleteParams::default().preconditions(Preconditions { uid: Some(uid), resource_version: None });
                let delete = timeout(DEADLINE, api.delete(&key.name, &params));
                return match self.leader.write(delete).await {
                    Ok(Ok(Ok(_))) => Ok(()),
                    Ok(Ok(Err(kube::Error::Api(status)))) if matches!(status.code, 404 | 409 | 410) => Ok(()),
                    Ok(Ok(Err(error))) => Err(chain(&error)),
                    Ok(Err(_)) => Err(format!("no answer within {DEADLINE:?}")),
                    Err(not_leading) => Err(not_leading.to_string()),
                };
            }
            // Lists are replaced whole by a merge: with the version that was read, nobody else's condition is lost.
            if matches!(
                key.kind,
                Kind::AuthorizationPolicy
                    | Kind::PeerAuthentication
                    | Kind::RequestAuthentication
                    | Kind::VirtualService
                    | Kind::DestinationRule
                    | Kind::Telemetry
            ) {
                status["observedGeneration"] = verdict.generation.into();
            }
            let patch = json!({"metadata": {"resourceVersion": verdict.version}, "status": status});
            let parameters =
                PatchParams { field_manager: Some(crate::cluster::MANAGER.to_owned()), ..PatchParams::default() };
            let patch = Patch::Merge(patch);
            let write = timeout(DEADLINE, api.patch_status(&key.name, &parameters, &patch));
            match self.leader.write(write).await {
                Ok(Ok(Ok(_))) => {
                    debug!(object = %key, "status written");
                    steered::publish(self.cluster.client(), &resource, verdict).await;
                    Ok(())
                }
                Ok(Ok(Err(kube::Error::Api(status)))) if matches!(status.code, 404 | 409 | 410) => Ok(()),
                // An object that the server would refuse today takes no status either. What is wrong is logged.
                Ok(Ok(Err(kube::Error::Api(status)))) if status.code == 422 => {
                    warn!(object = %key, problem = status.message, "the object does not take a status");
                    Ok(())
                }
                Ok(Ok(Err(error))) => Err(chain(&error)),
                Ok(Err(_)) => Err(format!("no answer within {DEADLINE:?}")),
                Err(not_leading) => Err(not_leading.to_string()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stillmesh_objects::{Change, Update};

    /// Takes every status but that of the first object.
    #[derive(Default)]
    struct Refusing {
        tries: Mutex<Vec<String>>,
    }

    impl Writer for Refusing {
        fn write<'a>(&'a self, verdict: &'a Verdict, _status: Value) -> BoxFuture<'a, Result<(), String>> {
            let name = verdict.object.name.to_string();
            let result = if name == "a" { Err("no".to_owned()) } else { Ok(()) };
            self.tries.lock().push(name);
            Box::pin(std::future::ready(result))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_be_written_does_not_keep_others_waiting() {
        let policy = |name: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: {name}, namespace: shop, generation: 1}}\nspec: {{}}\n"
            )
        };
        let found = stillmesh_k8s::parse::documents("t", &["a", "b", "c"].map(policy).concat());
        let changes = found.objects.into_iter().map(Change::Set).collect();
        let mut builder = crate::build::Builder::new(stillmesh_k8s::translate::Mesh::default());
        let built = builder.apply(&Update { changes, ..Update::default() });
        let statuses = Statuses::new(Arc::new(Metrics::new()));
        statuses.take(built.verdicts);
        let writer = Refusing::default();
        let minutes = Duration::from_secs(600);
        assert!(timeout(minutes, statuses.write(&writer)).await.is_err());
        let tries = writer.tries.into_inner();
        assert_eq!(tries[..3], ["a", "b", "c"]);
        let (again, limit) = (tries.len() - 3, minutes.as_secs() / LONGEST_WAIT.as_secs());
        assert!(tries[3..].iter().all(|name| name == "a"), "what is written is written once");
        assert!((limit..3 * limit).contains(&(again as u64)), "tried {again} times again in ten minutes");
        assert_eq!(statuses.waiting.lock().len(), 1, "it waits for the next leader");
    }

    /// Another controller that writes its own over every status, and is heard of at once.
    struct Contested {
        statuses: Arc<Statuses>,
        verdict: Verdict,
        times: Mutex<Vec<Instant>>,
    }

    impl Writer for Contested {
        fn write<'a>(&'a self, _verdict: &'a Verdict, _status: Value) -> BoxFuture<'a, Result<(), String>> {
            self.times.lock().push(Instant::now());
            Box::pin(async {
                // The watch tells of what the other one has written when this write has been noted.
                let (statuses, verdict) = (Arc::clone(&self.statuses), self.verdict.clone());
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    statuses.take(vec![verdict]);
                });
                Ok(())
            })
        }
    }

    fn verdict(generation: i64) -> Verdict {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: a, namespace: shop, generation: {generation}}}\nspec: {{}}\n"
        );
        let found = stillmesh_k8s::parse::documents("t", &text);
        let changes = found.objects.into_iter().map(Change::Set).collect();
        let mut builder = crate::build::Builder::new(stillmesh_k8s::translate::Mesh::default());
        builder.apply(&Update { changes, ..Update::default() }).verdicts.pop().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn two_controllers_that_do_not_agree_write_less_and_less_often() {
        let statuses = Arc::new(Statuses::new(Arc::new(Metrics::new())));
        let writer = Contested { statuses: Arc::clone(&statuses), verdict: verdict(1), times: Mutex::default() };
        statuses.take(vec![verdict(1)]);
        let begin = Instant::now();
        let local = tokio::task::LocalSet::new();
        let hour = Duration::from_secs(3600);
        assert!(local.run_until(timeout(hour, statuses.write(&writer))).await.is_err());
        let times = writer.times.lock().clone();
        assert!((25..50).contains(&times.len()), "{} writes in an hour", times.len());
        assert!(times[1] - begin < Duration::from_secs(1), "the first repair is quick");
        // Something new to say is said at once.
        statuses.take(vec![verdict(2)]);
        assert!(statuses.next().is_ok());
    }
}
