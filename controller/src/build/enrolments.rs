//! Enrolments: which pods are in the mesh by labels, namespace by namespace, and how far the capture of each has come, as the
//! agents say it on the pods. Shared between the builder, which writes, and pages.
//!
//! Kept is one entry for each pod that is to be captured and one for each agent's; a changed pod costs itself.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use parking_lot::Mutex;
use stillmesh_core::model::Str;
use stillmesh_k8s::capture::Capture;
use stillmesh_k8s::labels;
use stillmesh_k8s::select::{selected, terminal};
use stillmesh_k8s::translate::pod_is_ready;

use super::world::{Name, node_of};
use super::{Builder, Dirty};

/// Agents' pods by label and value, and the account that they run under: ours, and Istio's.
const AGENTS: [(&str, &str, &str); 2] =
    [("app.kubernetes.io/name", "stillmesh-cni", "stillmesh-cni"), ("k8s-app", "istio-cni-node", "istio-cni")];

/// Who is in the mesh by labels.
#[derive(Debug, Default)]
pub struct Enrolments {
    state: Mutex<State>,
}

/// What is known of enrolments.
#[derive(Debug, Default)]
pub struct State {
    /// Namespaces that are labelled, or have such pods.
    pub namespaces: BTreeMap<Str, Members>,
    agents: Agents,
}

/// A namespace that is in the mesh, or of which some pods are.
#[derive(Debug, Default)]
pub struct Members {
    is_labelled: bool,
    /// Its pods that are to be captured.
    pub pods: BTreeMap<Str, Member>,
}

/// A pod that is to be captured.
#[derive(Debug)]
pub struct Member {
    /// Which of all pods of its name.
    uid: Str,
    /// Its node.
    pub node: Str,
    /// How far that has come.
    pub capture: Capture,
    /// How the Bypass stands that has taken it out, where one has.
    pub bypass: OutBy,
    /// How long it ran before it was captured; `None` where it did not, or nobody here saw it begin.
    pub took: Option<Duration>,
    /// Since when it is known to run and is not captured.
    since: Option<Instant>,
}

/// How a Bypass stands that has taken a pod out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutBy {
    /// It keeps the pod out.
    Holds,
    /// It is over: the pod comes back.
    Over,
    /// This Quarantine, by `namespace/name`, comes before it: the pod comes back, and is out again when that is over.
    Overridden(Str),
}

/// Agents' pods by node, and whether they are ready.
#[derive(Debug, Default)]
struct Agents(HashMap<Str, HashMap<Name, bool>>);

/// Whether a node has an agent that captures its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// It has none: nobody keeps what is said of its pods.
    None,
    /// It does not serve.
    Unready,
    /// It does.
    Ready,
}

impl Enrolments {
    /// Looks at everything. Whoever looks keeps the builder waiting.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock())
    }
}

impl State {
    /// How it stands with a node's agent.
    pub fn agent(&self, node: &str) -> Agent {
        match self.agents.0.get(node) {
            None => Agent::None,
            Some(pods) if pods.values().any(|is_ready| *is_ready) => Agent::Ready,
            Some(_) => Agent::Unready,
        }
    }

    fn change(&mut self, namespace: &Str, change: impl FnOnce(&mut Members)) {
        let members = self.namespaces.entry(namespace.clone()).or_default();
        change(members);
        if !members.is_labelled && members.pods.is_empty() {
            self.namespaces.remove(namespace);
        }
    }
}

impl Agents {
    /// A pod is this now: an agent's, ready or not, on this node, or none.
    fn replace(&mut self, name: &Name, old: Option<&str>, new: Option<(&str, bool)>) {
        if let Some(old) = old
            && let Some(pods) = self.0.get_mut(old)
        {
            pods.remove(name);
            if pods.is_empty() {
                self.0.remove(old);
            }
        }
        if let Some((node, is_ready)) = new {
            self.0.entry(node.into()).or_default().insert(name.clone(), is_ready);
        }
    }
}

impl Builder {
    /// Takes in a namespace as it is now; `None` where it is gone.
    pub(super) fn enrol_namespace(&self, name: &Str, namespace: Option<&Namespace>) {
        let rules = self.steering.enrolment();
        let is_labelled = namespace.is_some_and(|namespace| {
            !rules.excluded_namespaces.contains(&**name)
                && selected(&labels::Labels::new(), labels::of(&namespace.metadata.labels), rules)
        });
        self.enrolments.state.lock().change(name, |members| members.is_labelled = is_labelled);
    }

    /// Takes in a pod that may be an agent's.
    pub(super) fn enrol_agent(&self, name: &Name, old: Option<&Pod>, new: Option<&Pod>) {
        let system = &self.steering.enrolment().system_namespace;
        let is_agent = |pod: &&Pod| *name.0 == **system && is_agent(pod);
        let old = old.filter(is_agent).and_then(node_of);
        let new = new.filter(is_agent).filter(|pod| !terminal(pod));
        let new = new.and_then(|pod| Some((node_of(pod)?, pod.status.as_ref().is_some_and(pod_is_ready))));
        if old.is_some() || new.is_some() {
            self.enrolments.state.lock().agents.replace(name, old, new);
        }
    }

    /// Takes in pods that have changed, or what decides about them has. Durations count from `now`; without it, what is
    /// new was there before.
    pub(super) fn enrol(&self, dirty: &Dirty, now: Option<Instant>) {
        for name in &dirty.pods {
            let pod = self.world.pods.get(name);
            let member = pod.and_then(|pod| self.member(pod));
            self.enrolments.state.lock().change(&name.0, |members| {
                let old = members.pods.remove(&name.1);
                if let Some(member) = member {
                    members.pods.insert(name.1.clone(), member.after(old, now));
                }
            });
        }
    }

    fn member(&self, pod: &Pod) -> Option<Member> {
        let node = node_of(pod)?;
        let counts = pod.metadata.deletion_timestamp.is_none() && self.is_in_mesh(pod);
        counts.then(|| Member {
            node: node.into(),
            capture: Capture::of(pod),
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            bypass: self.out_by(pod),
            took: None,
            since: None,
        })
    }
}

impl Member {
    /// As it is now, after what was known of it.
    fn after(self, old: Option<Self>, now: Option<Instant>) -> Self {
        let old = old.filter(|old| old.uid == self.uid);
        let is_new = old.is_none();
        let (before, took, since) = old.map_or((None, None, None), |old| (Some(old.capture), old.took, old.since));
        let (took, since) = match self.capture {
            // A pod that is captured as it starts never ran without: only the word of it comes later.
            Capture::Done { at_start: true, .. } => (took, None),
            Capture::Done { .. } => (took.or_else(|| Some(now?.saturating_duration_since(since?))), None),
            Capture::Starting | Capture::Bypassed(_) => (took, None),
            // One that was captured, or was out, is not being enrolled.
            _ if is_new || before == Some(Capture::Starting) => (took, now),
            _ => (took, since),
        };
        Self { took, since, ..self }
    }
}

/// Whether a pod of the mesh's own namespace is an agent's. Anybody may give a pod its labels, and elsewhere also its account a
/// name.
fn is_agent(pod: &Pod) -> bool {
    let labels = labels::of(&pod.metadata.labels);
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    AGENTS.iter().any(|(key, value, own)| account == Some(own) && labels.get(*key).is_some_and(|one| one == value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURED: Capture = Capture::Done { older: 0, at_start: false };
    const AT_START: Capture = Capture::Done { older: 0, at_start: true };

    fn member(capture: Capture) -> Member {
        Member { uid: "1".into(), node: "n1".into(), capture, bypass: OutBy::Holds, took: None, since: None }
    }

    /// How long a pod says it took that has gone through this, a second for each step.
    fn took(begin: Option<Instant>, steps: &[Capture]) -> Option<u64> {
        let mut known: Option<Member> = None;
        for (at, step) in steps.iter().enumerate() {
            let first = at == 0;
            let now =
                if first { begin } else { Some(begin.unwrap_or_else(Instant::now) + Duration::from_secs(at as u64)) };
            known = Some(member(step.clone()).after(known, now));
        }
        known?.took.map(|took| took.as_secs())
    }

    #[test]
    fn only_what_was_seen_from_its_beginning_to_its_end_says_how_long_it_took() {
        let begin = Some(Instant::now());
        let (missing, starting) = (Capture::Missing, Capture::Starting);
        let (pending, bypassed) = (Capture::Pending("pending".into()), Capture::Bypassed("shop/b".into()));
        let ran = [missing.clone(), pending, CAPTURED];
        assert_eq!(took(begin, &ran), Some(2));
        assert_eq!(took(None, &ran), None, "it was there before anybody looked");
        assert_eq!(took(begin, &[CAPTURED]), None);
        assert_eq!(took(begin, &[starting.clone(), CAPTURED]), None, "it never ran without");
        assert_eq!(took(begin, &[starting.clone(), missing.clone(), CAPTURED]), Some(1));
        assert_eq!(
            took(begin, &[starting, missing.clone(), AT_START]),
            None,
            "its address came before the agent's word"
        );
        assert_eq!(took(begin, &[missing.clone(), bypassed, CAPTURED]), None, "a Bypass is none of it");
        assert_eq!(took(begin, &[missing.clone(), CAPTURED, missing, CAPTURED]), Some(1), "it was enrolled once");
    }

    #[test]
    fn nothing_is_kept_of_what_is_gone() {
        let mut state = State::default();
        let namespace = Str::from("shop");
        state.change(&namespace, |members| members.is_labelled = true);
        state.change(&namespace, |members| drop(members.pods.insert("a".into(), member(CAPTURED))));
        state.change(&namespace, |members| members.is_labelled = false);
        assert_eq!(state.namespaces.len(), 1);
        state.change(&namespace, |members| drop(members.pods.remove("a")));
        assert!(state.namespaces.is_empty());
        let name = (Str::from("m"), Str::from("agent-1"));
        state.agents.replace(&name, None, Some(("n1", false)));
        assert_eq!((state.agent("n1"), state.agent("n2")), (Agent::Unready, Agent::None));
        state.agents.replace(&name, Some("n1"), Some(("n1", true)));
        assert_eq!(state.agent("n1"), Agent::Ready);
        state.agents.replace(&name, Some("n1"), None);
        assert!(state.agents.0.is_empty());
    }
}
