//! The roots of the mesh in every namespace: ConfigMap `istio-ca-root-cert`, and the revoked certificates as
//! ConfigMap `istio-ca-crl` where there are any (contract 6.4). Written by the leader, repaired when somebody changes
//! or deletes them. Only maps of these names are watched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use stillmesh_cluster::{Cluster, KubernetesSource, Leader, Watch};
use stillmesh_k8s::{Kind, Object};
use stillmesh_objects::{Change, Source, Update};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::serve::Signing;

/// The ConfigMap of the roots.
pub(crate) const ROOT_MAP: &str = "istio-ca-root-cert";
/// Its key.
pub(crate) const ROOT_KEY: &str = "root-cert.pem";
const CRL_MAP: &str = "istio-ca-crl";
const CRL_KEY: &str = "ca-crl.pem";

/// Namespaces that get none (contract 6.4).
const WITHOUT: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];
/// Writes at a time.
const AT_ONCE: usize = 8;
/// How long the API server may take for one.
const DEADLINE: Duration = Duration::from_secs(5);
/// The least time between two writes of one map; doubled while somebody else goes on writing it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Who keeps the maps.
#[derive(Clone)]
pub(crate) struct Roots {
    cluster: Cluster,
    leader: Leader,
    signing: Signing,
    crl: watch::Receiver<Option<Arc<str>>>,
}

/// Namespace and name.
type Place = (String, &'static str);

/// What is there and what was written when.
#[derive(Default)]
struct Known {
    namespaces: BTreeSet<String>,
    maps: BTreeMap<Place, String>,
    /// Writes: when the next one may be, and after how long a pause the one after that.
    pauses: BTreeMap<Place, (Instant, Duration)>,
}

/// What one map needs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    Text(Arc<str>),
    Nothing,
}

impl Roots {
    pub fn new(cluster: &Cluster, leader: Leader, signing: Signing, crl: watch::Receiver<Option<Arc<str>>>) -> Self {
        Self { cluster: cluster.clone(), leader, signing, crl }
    }

    /// Keeps the maps, for ever.
    pub async fn keep(mut self) {
        let watches = vec![
            Watch::all(Kind::Namespace),
            Watch::named_anywhere(Kind::ConfigMap, ROOT_MAP),
            Watch::named_anywhere(Kind::ConfigMap, CRL_MAP),
        ];
        let mut source = KubernetesSource::open(&self.cluster, watches);
        let mut known = Known::default();
        loop {
            let later = self.write_all(&mut known).await;
            tokio::select! {
                update = source.next() => match update {
                    Some(update) => known.take(update),
                    None => return,
                },
                changed = self.signing.changed() => if changed.is_err() { return },
                changed = self.crl.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(later.unwrap_or_else(Instant::now)), if later.is_some() => {}
            }
        }
    }

    /// Writes what differs. Says when to look again for what has to wait.
    async fn write_all(&mut self, known: &mut Known) -> Option<Instant> {
        let roots: Arc<str> = self.signing.borrow_and_update().root_pem().into();
        let crl = self.crl.borrow_and_update().clone();
        let now = Instant::now();
        let (due, mut later) = known.due(&roots, crl.as_ref(), now);
        let mut due = due.into_iter();
        let mut writing = FuturesUnordered::new();
        loop {
            while writing.len() < AT_ONCE
                && let Some((place, need)) = due.next()
            {
                known.paused(&place, now);
                writing.push(self.write(place, need));
            }
            let Some((place, result)) = writing.next().await else { break };
            if let Err(problem) = result {
                warn!(
                    namespace = place.0,
                    map = place.1,
                    problem,
                    "a ConfigMap cannot be written; it will be tried again"
                );
                let again = known.pauses.get(&place).map(|(at, _)| *at);
                later = [later, again].into_iter().flatten().min();
            }
        }
        later
    }

    async fn write(&self, place: Place, need: Need) -> (Place, Result<(), String>) {
        let api: Api<ConfigMap> = Api::namespaced(self.cluster.client(), &place.0);
        let write = async {
            match &need {
                Need::Text(text) => {
                    let key = if place.1 == ROOT_MAP { ROOT_KEY } else { CRL_KEY };
                    let map = json!({
                        "apiVersion": "v1",
                        "kind": "ConfigMap",
                        "metadata": {"name": place.1, "labels": {"istio.io/config": "true"}},
                        "data": {key: &**text},
                    });
                    let parameters = PatchParams::apply(super::MANAGER).force();
                    api.patch(place.1, &parameters, &Patch::Apply(map)).await.map(|_| ())
                }
                Need::Nothing => api.delete(place.1, &DeleteParams::default()).await.map(|_| ()),
            }
        };
        let result = match self.leader.write(timeout(DEADLINE, write)).await {
            Ok(Ok(Ok(()))) => {
                debug!(namespace = place.0, map = place.1, "written");
                Ok(())
            }
            // The namespace, or the map that was to be deleted, is gone.
            Ok(Ok(Err(kube::Error::Api(status)))) if status.code == 404 => Ok(()),
            Ok(Ok(Err(kube::Error::Api(status))))
                if status.code == 403 && status.message.contains("being terminated") =>
            {
                Ok(())
            }
            Ok(Ok(Err(error))) => Err(super::chain(&error)),
            Ok(Err(_)) => Err(format!("no answer within {DEADLINE:?}")),
            Err(not_leading) => Err(not_leading.to_string()),
        };
        (place, result)
    }
}

impl Known {
    fn take(&mut self, update: Update) {
        for change in update.changes {
            let key = change.key();
            let name = match &*key.name {
                ROOT_MAP => ROOT_MAP,
                _ => CRL_MAP,
            };
            let place = (key.namespace.to_string(), name);
            match (key.kind, change) {
                (Kind::Namespace, Change::Set(placed)) if lives(&placed.object) => {
                    self.namespaces.insert(key.name.to_string());
                }
                (Kind::Namespace, _) => {
                    self.namespaces.remove(&*key.name);
                    self.pauses.retain(|place, _| *place.0 != *key.name);
                }
                (_, Change::Set(placed)) => {
                    if let Object::ConfigMap(map) = &placed.object {
                        self.maps.insert(place, content(map, name));
                    }
                }
                (_, Change::Removed(_)) => {
                    self.maps.remove(&place);
                }
            }
        }
    }

    /// What is to be written now, and when there is more.
    fn due(&self, roots: &Arc<str>, crl: Option<&Arc<str>>, now: Instant) -> (Vec<(Place, Need)>, Option<Instant>) {
        let mut due = Vec::new();
        let mut later: Option<Instant> = None;
        for namespace in self.namespaces.iter().filter(|name| !WITHOUT.contains(&name.as_str())) {
            for (map, wanted) in [(ROOT_MAP, Some(roots)), (CRL_MAP, crl)] {
                let place = (namespace.clone(), map);
                let need = match (wanted, self.maps.get(&place)) {
                    (Some(wanted), there) if there.is_none_or(|there| **there != **wanted) => {
                        Need::Text(Arc::clone(wanted))
                    }
                    (None, Some(_)) => Need::Nothing,
                    _ => continue,
                };
                match self.pauses.get(&place) {
                    Some((until, _)) if *until > now => later = Some(later.map_or(*until, |one| one.min(*until))),
                    _ => due.push((place, need)),
                }
            }
        }
        (due, later)
    }

    /// A write is made: the next one waits.
    fn paused(&mut self, place: &Place, now: Instant) {
        // Whoever was quiet for long begins anew.
        let streak = self.pauses.get(place).filter(|(until, pause)| now < *until + *pause * 4);
        let pause = streak.map_or(FIRST_PAUSE, |(_, pause)| (*pause * 2).min(LONGEST_PAUSE));
        self.pauses.insert(place.clone(), (now + pause, pause));
    }
}

fn lives(object: &Object) -> bool {
    match object {
        Object::Namespace(namespace) => {
            let Namespace { metadata, .. } = &**namespace;
            metadata.deletion_timestamp.is_none()
        }
        _ => false,
    }
}

/// What a map says; empty where it is not as it should be.
fn content(map: &ConfigMap, name: &str) -> String {
    let key = if name == ROOT_MAP { ROOT_KEY } else { CRL_KEY };
    let labelled = map.metadata.labels.as_ref().and_then(|labels| labels.get("istio.io/config"));
    let text = map.data.as_ref().and_then(|data| data.get(key));
    text.filter(|_| labelled.is_some_and(|value| value == "true")).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(text: &str) -> Update {
        let found = stillmesh_k8s::parse::documents("t", text);
        assert!(!found.has_errors(), "{:?}", found.findings);
        Update { changes: found.objects.into_iter().map(Change::Set).collect(), ..Update::default() }
    }

    fn namespace(name: &str) -> String {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }

    fn map(namespace: &str, name: &str, text: &str) -> String {
        let key = if name == ROOT_MAP { ROOT_KEY } else { CRL_KEY };
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{istio.io/config: 'true'}}}}\n\
             data: {{{key}: {text}}}\n"
        )
    }

    fn places(due: &[(Place, Need)]) -> Vec<(&str, &str)> {
        due.iter().map(|((namespace, map), _)| (namespace.as_str(), *map)).collect()
    }

    #[test]
    fn what_is_missing_or_changed_is_written_and_nothing_else() {
        let mut known = Known::default();
        let now = Instant::now();
        known.take(update(&[namespace("a"), namespace("b"), namespace("kube-public")].concat()));
        known.take(update(&map("a", ROOT_MAP, "R")));
        let roots: Arc<str> = "R".into();
        let (due, later) = known.due(&roots, None, now);
        assert_eq!((places(&due), later), (vec![("b", ROOT_MAP)], None));
        known.take(update(&map("b", ROOT_MAP, "other")));
        assert_eq!(places(&known.due(&roots, None, now).0), [("b", ROOT_MAP)]);
        known.take(update(&map("b", ROOT_MAP, "R")));
        assert_eq!(known.due(&roots, None, now).0, []);
        let crl: Arc<str> = "C".into();
        assert_eq!(places(&known.due(&roots, Some(&crl), now).0), [("a", CRL_MAP), ("b", CRL_MAP)]);
        known.take(update(&map("a", CRL_MAP, "C")));
        assert_eq!(known.due(&roots, None, now).0, [(("a".to_owned(), CRL_MAP), Need::Nothing)]);
    }

    #[test]
    fn two_who_write_one_map_do_not_race() {
        let mut known = Known::default();
        let mut now = Instant::now();
        known.take(update(&namespace("a")));
        let roots: Arc<str> = "R".into();
        let mut writes = 0;
        let end = now + Duration::from_secs(600);
        while now < end {
            let (due, later) = known.due(&roots, None, now);
            for (place, _) in due {
                known.paused(&place, now);
                writes += 1;
            }
            now = later.unwrap_or(now);
        }
        assert!((5..20).contains(&writes), "{writes} writes in ten minutes");
    }
}
