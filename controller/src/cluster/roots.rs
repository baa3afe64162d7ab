//! The roots of the mesh in every namespace: ConfigMap `istio-ca-root-cert`, and the revoked certificates as
//! ConfigMap `istio-ca-crl` where there are any (contract 6.4). Written by the leader, repaired when somebody changes
//! or deletes them. Only maps of these names are watched.
//!
//! A map that another control plane keeps is left to it while one runs in this cluster, and told: two who write one map help
//! nobody, and its pods need that root. What one that is gone left is taken over.

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
use stillmesh_identity::{TrustBundle, crl};
use stillmesh_k8s::{Finding, Kind, Object, Position, Severity};
use stillmesh_objects::{Change, Source, Update};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::rival::{self, ASK_AGAIN};
use crate::monitoring::Shown;
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
    told: Told,
}

/// Namespace and name.
type Place = (String, &'static str);

/// What is there and what was written when.
#[derive(Default)]
struct Known {
    namespaces: BTreeSet<String>,
    maps: BTreeMap<Place, There>,
    /// Another control plane runs in this cluster, as far as is known.
    rival: bool,
    /// Writes: when the next one may be, and after how long a pause the one after that.
    pauses: BTreeMap<Place, (Instant, Duration)>,
}

/// What a map says; empty where it is not as it should be.
struct There {
    text: String,
    /// Who keeps it, where that is neither this control plane nor a user.
    keeper: Option<String>,
}

/// What one map needs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    Text(Arc<str>),
    Nothing,
}

impl Roots {
    pub fn new(
        cluster: &Cluster,
        leader: Leader,
        signing: Signing,
        crl: watch::Receiver<Option<Arc<str>>>,
        shown: Arc<Shown>,
    ) -> Self {
        Self { cluster: cluster.clone(), leader, signing, crl, told: Told(shown) }
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
        if known.differing(&roots, crl.as_ref()).any(|(_, _, keeper)| keeper.is_some()) {
            known.rival = rival::runs(&self.cluster).await;
        }
        let now = Instant::now();
        let foreign = known.foreign(&roots, crl.as_ref());
        self.told.tell(&foreign);
        let (due, mut later) = known.due(&roots, crl.as_ref(), now);
        if !foreign.is_empty() {
            later = Some(later.map_or(now + ASK_AGAIN, |later| later.min(now + ASK_AGAIN)));
        }
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
                    let key = key_of(place.1);
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
                        let there = There { text: content(map, name), keeper: keeper(map, name) };
                        self.maps.insert(place, there);
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
        for (place, need, keeper) in self.differing(roots, crl) {
            match self.pauses.get(&place) {
                _ if keeper.is_some() && self.rival => {}
                Some((until, _)) if *until > now => later = Some(later.map_or(*until, |one| one.min(*until))),
                _ => due.push((place, need)),
            }
        }
        (due, later)
    }

    /// The maps that somebody else keeps, by who and which.
    fn foreign(&self, roots: &Arc<str>, crl: Option<&Arc<str>>) -> Foreign {
        let mut foreign = Foreign::new();
        for ((namespace, map), _, keeper) in self.differing(roots, crl) {
            if let Some(keeper) = keeper.filter(|_| self.rival) {
                foreign.entry((keeper.to_owned(), map)).or_default().push(namespace);
            }
        }
        foreign
    }

    /// The maps that are not as they should be, with their keepers.
    fn differing(&self, roots: &Arc<str>, crl: Option<&Arc<str>>) -> impl Iterator<Item = (Place, Need, Option<&str>)> {
        let namespaces = self.namespaces.iter().filter(|name| !WITHOUT.contains(&name.as_str()));
        let wanted = [(ROOT_MAP, Some(Arc::clone(roots))), (CRL_MAP, crl.cloned())];
        namespaces.flat_map(move |namespace| wanted.clone().map(|(map, wanted)| (namespace, map, wanted))).filter_map(
            |(namespace, map, wanted)| {
                let place = (namespace.clone(), map);
                let there = self.maps.get(&place);
                let need = match wanted {
                    Some(wanted) if there.is_none_or(|there| *there.text != *wanted) => Need::Text(wanted),
                    None if there.is_some() => Need::Nothing,
                    _ => return None,
                };
                Some((place, need, there.and_then(|there| there.keeper.as_deref())))
            },
        )
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

fn key_of(name: &str) -> &'static str {
    if name == ROOT_MAP { ROOT_KEY } else { CRL_KEY }
}

/// What a map says; empty where it is not as it should be.
fn content(map: &ConfigMap, name: &str) -> String {
    let key = key_of(name);
    let labelled = map.metadata.labels.as_ref().and_then(|labels| labels.get("istio.io/config"));
    let text = map.data.as_ref().and_then(|data| data.get(key));
    text.filter(|_| labelled.is_some_and(|value| value == "true")).cloned().unwrap_or_default()
}

/// Who keeps a map that says something usable: neither we, nor a user with `kubectl`.
fn keeper(map: &ConfigMap, name: &str) -> Option<String> {
    let key = key_of(name);
    let text = map.data.as_ref()?.get(key)?;
    let usable =
        if name == ROOT_MAP { TrustBundle::from_pem(text).is_ok() } else { crl::check(text.as_bytes()).is_ok() };
    let field = format!("/f:data/f:{key}");
    let entries = map.metadata.managed_fields.iter().flatten();
    let of_key = entries.filter(|entry| entry.fields_v1.as_ref().is_some_and(|all| all.0.pointer(&field).is_some()));
    let mut managers: Vec<&str> = of_key.filter_map(|entry| entry.manager.as_deref()).collect();
    if !usable || managers.contains(&super::MANAGER) {
        return None;
    }
    managers.retain(|manager| !manager.starts_with("kubectl"));
    managers.first().map(|manager| (*manager).to_owned())
}

/// Keeper and map, with the namespaces.
type Foreign = BTreeMap<(String, &'static str), Vec<String>>;

/// What is told of foreign maps. Untold when this replica does not lead any more: another one tells.
#[derive(Clone)]
struct Told(Arc<Shown>);

impl Told {
    fn tell(&self, foreign: &Foreign) {
        let findings: Vec<Finding> =
            foreign.iter().map(|((keeper, map), places)| finding(keeper, map, places)).collect();
        let before = self.0.foreign_maps.swap(Arc::new(findings.clone()));
        for finding in findings.iter().filter(|finding| !before.iter().any(|one| one.path == finding.path)) {
            warn!(error.code = finding.code, "{finding}");
        }
        let maps = foreign.values().map(Vec::len).sum::<usize>();
        self.0.metrics.foreign_maps.set(i64::try_from(maps).unwrap_or(i64::MAX));
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tell(&Foreign::new());
    }
}

fn finding(keeper: &str, map: &str, namespaces: &[String]) -> Finding {
    let first: Vec<&str> = namespaces.iter().take(3).map(String::as_str).collect();
    let more = if namespaces.len() > first.len() { ", ..." } else { "" };
    let (count, first) = (namespaces.len(), first.join(", "));
    Finding {
        at: Position::file(""),
        severity: Severity::Warning,
        code: "MAN018",
        object: format!("ConfigMap {map}"),
        path: format!("kept by {keeper}"),
        message: format!(
            "another control plane's certificates are left as they are in {count} namespaces: {first}{more}"
        ),
        hint: "its istiod runs in this cluster: end it, and the maps are taken over; until then keep its namespaces out of this mesh"
            .to_owned(),
    }
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
        let key = key_of(name);
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

    /// A map of a root of somebody's, last written by these.
    fn managed(text: &str, managers: &[&str]) -> Update {
        let mut update = update(&map("a", ROOT_MAP, "R"));
        let Some(Change::Set(placed)) = update.changes.first_mut() else { panic!("no map") };
        let Object::ConfigMap(map) = &mut placed.object else { panic!("no map") };
        let map = Arc::make_mut(map);
        map.data = Some([(ROOT_KEY.to_owned(), text.to_owned())].into());
        let entry =
            |manager: &&str| json!({"manager": manager, "fieldsV1": {"f:data": {".": {}, "f:root-cert.pem": {}}}});
        let label = json!({"manager": "labeller", "fieldsV1": {"f:metadata": {"f:labels": {}}}});
        let entries: Vec<_> = managers.iter().map(entry).chain([label]).collect();
        map.metadata.managed_fields = serde_json::from_value(json!(entries)).unwrap();
        update
    }

    #[test]
    fn a_map_that_another_control_plane_keeps_is_left_to_it_and_told() {
        let root = |name: &str| {
            let domain = stillmesh_core::model::TrustDomain::new(name).unwrap();
            let issuer = stillmesh_identity::Issuer::create(&domain, std::time::SystemTime::now()).unwrap();
            issuer.root_pem().to_owned()
        };
        let (ours, theirs) = (root("ours"), root("theirs"));
        let roots: Arc<str> = ours.as_str().into();
        let mut known = Known { rival: true, ..Known::default() };
        known.take(update(&namespace("a")));
        let mut written = |text: &str, managers: &[&str]| {
            known.take(managed(text, managers));
            let due = known.due(&roots, None, Instant::now()).0;
            let foreign = known.foreign(&roots, None);
            assert_eq!(due.is_empty() && text != ours, !foreign.is_empty());
            !due.is_empty()
        };
        for keeper in ["pilot-discovery", "somebody"] {
            assert!(!written(&theirs, &[keeper]), "{keeper}");
            assert!(written("garbage", &[keeper]) && written("", &[keeper]), "it is of no use to anybody");
            assert!(!written(&ours, &[keeper]));
        }
        assert!(!written(&theirs, &["kubectl-edit", "pilot-discovery"]));
        // A user's doing, an earlier root of ours, and what nobody knows of.
        for managers in [&["kubectl-edit"][..], &["kubectl-patch", "kubectl"], &[super::super::MANAGER], &[]] {
            assert!(written(&theirs, managers), "{managers:?}");
        }
        let keeper = ("pilot-discovery".to_owned(), ROOT_MAP);
        known.take(managed(&theirs, &["pilot-discovery"]));
        assert_eq!(known.foreign(&roots, None), Foreign::from([(keeper, vec!["a".to_owned()])]));
        known.rival = false;
        assert_eq!(places(&known.due(&roots, None, Instant::now()).0), [("a", ROOT_MAP)], "what it left is taken over");
        assert_eq!(known.foreign(&roots, None), Foreign::new());
        known.rival = true;
        known.take(Update {
            changes: vec![Change::Removed(stillmesh_k8s::ObjectKey::new(Kind::ConfigMap, "a", ROOT_MAP))],
            ..Update::default()
        });
        assert_eq!(places(&known.due(&roots, None, Instant::now()).0), [("a", ROOT_MAP)], "deleted, it is ours");
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
