//! Deployments: which pods to make and which to end next, and on which node. Pure.

use std::hash::Hasher;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A pod of a Deployment, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// Its name.
    pub name: String,
    /// Hash of the template that it was made from.
    pub hash: String,
    /// Takes traffic.
    pub ready: bool,
    /// When it was made, as a growing number.
    pub made: u64,
}

/// What a Deployment asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Pods.
    pub replicas: u32,
    /// Pods that may be there beyond that while replacing.
    pub surge: u32,
    /// Pods that may be missing from it while replacing.
    pub unavailable: u32,
    /// End all old pods before making new ones.
    pub recreate: bool,
    /// Hash of the template.
    pub hash: String,
}

/// The next step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Pods to make from the current template.
    pub make: u32,
    /// Pods to end, by name.
    pub end: Vec<String>,
}

/// Reads a Deployment.
pub fn desired(deployment: &Deployment) -> Desired {
    let spec = &deployment.spec;
    let replicas = spec.replicas.map_or(1, |replicas| u32::try_from(replicas).unwrap_or(0));
    let strategy = spec.strategy.as_ref();
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = share(rolling.and_then(|rolling| rolling.max_surge.as_ref()), replicas, true);
    let unavailable = share(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), replicas, false);
    Desired {
        replicas,
        // Both zero would never get anywhere.
        surge: if surge == 0 && unavailable == 0 { 1 } else { surge },
        unavailable,
        recreate: strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate"),
        hash: template_hash(&spec.template),
    }
}

/// A number or share of the replicas; a quarter when absent. Surge is rounded up, unavailability down.
fn share(value: Option<&IntOrString>, replicas: u32, up: bool) -> u32 {
    let percent = |percent: u32| {
        let scaled = u64::from(replicas) * u64::from(percent);
        u32::try_from(if up { scaled.div_ceil(100) } else { scaled / 100 }).unwrap_or(u32::MAX)
    };
    match value {
        None => percent(25),
        Some(IntOrString::Int(number)) => u32::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => match text.strip_suffix('%').map(str::parse) {
            Some(Ok(number)) => percent(number),
            _ => text.parse().unwrap_or(1),
        },
    }
}

/// Ten letters that change with the template.
pub fn template_hash(template: &PodTemplateSpec) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(&serde_json::to_vec(template).unwrap_or_default());
    letters(hasher.finish(), 10)
}

/// Letters and digits that make no words, as Kubernetes uses them.
pub fn letters(mut number: u64, count: usize) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut text = String::with_capacity(count);
    for _ in 0..count {
        let index = usize::try_from(number % 27).unwrap_or(0);
        text.push(char::from(LETTERS.get(index).copied().unwrap_or(b'b')));
        number /= 27;
    }
    text
}

/// What to do next. `existing` are the pods that are not ending already. Called again after each change.
pub fn step(desired: &Desired, existing: &[Existing]) -> Step {
    let (mut current, mut old): (Vec<_>, Vec<_>) = existing.iter().partition(|pod| pod.hash == desired.hash);
    let count = |pods: &[&Existing]| u32::try_from(pods.len()).unwrap_or(u32::MAX);
    let mut step = Step::default();
    // Which to end first: what is not ready, then the youngest.
    let order = |pods: &mut Vec<&Existing>| pods.sort_by_key(|pod| (pod.ready, std::cmp::Reverse(pod.made)));
    order(&mut current);
    order(&mut old);
    let excess = count(&current).saturating_sub(desired.replicas);
    step.end.extend(current.iter().take(usize::try_from(excess).unwrap_or(0)).map(|pod| pod.name.clone()));
    if desired.recreate && !old.is_empty() {
        step.end.extend(old.iter().map(|pod| pod.name.clone()));
        return step;
    }
    let missing = desired.replicas.saturating_sub(count(&current));
    let room = desired.replicas.saturating_add(desired.surge).saturating_sub(count(&current) + count(&old));
    step.make = missing.min(room);
    let ready = u32::try_from(existing.iter().filter(|pod| pod.ready).count()).unwrap_or(0);
    let mut spare = ready.saturating_sub(desired.replicas.saturating_sub(desired.unavailable));
    for pod in &old {
        if pod.ready {
            if spare == 0 {
                continue;
            }
            spare -= 1;
        }
        step.end.push(pod.name.clone());
    }
    step
}

/// How busy a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Load {
    /// Pods of the same Deployment.
    pub same: usize,
    /// All pods.
    pub all: usize,
}

/// The node for a new pod: the one with the fewest of its kind, then the fewest of all, then the first.
pub fn place(loads: &[Load]) -> usize {
    loads.iter().enumerate().min_by_key(|(index, load)| (**load, *index)).map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn want(replicas: u32, hash: &str) -> Desired {
        Desired { replicas, surge: 1, unavailable: 0, recreate: false, hash: hash.to_owned() }
    }

    fn pods(list: &[(&str, bool)]) -> Vec<Existing> {
        let one = |(made, (hash, ready)): (u64, &(&str, bool))| Existing {
            name: format!("{hash}{made}"),
            hash: (*hash).to_owned(),
            ready: *ready,
            made,
        };
        (0..).zip(list).map(one).collect()
    }

    #[test]
    fn pods_are_made_up_to_the_replicas_and_ended_beyond_them() {
        assert_eq!(step(&want(3, "a"), &[]).make, 3);
        assert_eq!(step(&want(3, "a"), &pods(&[("a", true); 3])), Step::default());
        let down = step(&want(1, "a"), &pods(&[("a", true), ("a", false), ("a", true)]));
        assert_eq!(down, Step { make: 0, end: vec!["a1".to_owned(), "a2".to_owned()] });
        assert_eq!(step(&want(0, "a"), &pods(&[("a", true)])).end.len(), 1);
    }

    #[test]
    fn a_rollout_never_has_fewer_ready_pods_than_asked_for() {
        let desired = want(3, "b");
        let mut world = pods(&[("a", true); 3]);
        for turn in 0..20 {
            let next = step(&desired, &world);
            world.retain(|pod| !next.end.contains(&pod.name));
            let made = (0..next.make).map(|number| Existing {
                name: format!("b{turn}-{number}"),
                hash: "b".into(),
                ready: false,
                made: 100 + turn,
            });
            world.extend(made);
            assert!(world.iter().filter(|pod| pod.ready).count() >= 3, "{world:?}");
            assert!(world.len() <= 4, "{world:?}");
            if let Some(starting) = world.iter_mut().find(|pod| !pod.ready) {
                starting.ready = true;
            }
        }
        assert_eq!(step(&desired, &world), Step::default());
        assert!(world.iter().all(|pod| pod.hash == "b") && world.len() == 3);
    }

    #[test]
    fn recreate_ends_the_old_before_it_makes_the_new() {
        let desired = Desired { recreate: true, ..want(2, "b") };
        assert_eq!(
            step(&desired, &pods(&[("a", true); 2])),
            Step { make: 0, end: vec!["a0".into(), "a1".into()] }.sorted()
        );
        assert_eq!(step(&desired, &[]).make, 2);
    }

    impl Step {
        fn sorted(mut self) -> Self {
            self.end.sort_by(|one, other| other.cmp(one));
            self
        }
    }

    #[test]
    fn shares_of_replicas_round_as_kubernetes_does() {
        let read = |spec: serde_json::Value| {
            let template = json!({"spec": {"containers": []}});
            let mut object = json!({"spec": {"selector": {}, "template": template}});
            object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let desired = desired(&serde_json::from_value(object).unwrap());
            (desired.replicas, desired.surge, desired.unavailable)
        };
        assert_eq!(read(json!({})), (1, 1, 0));
        assert_eq!(read(json!({"replicas": 10})), (10, 3, 2));
        let rolling = |surge: serde_json::Value, unavailable: serde_json::Value| json!({"replicas": 4, "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}});
        assert_eq!(read(rolling(json!(0), json!(0))), (4, 1, 0));
        assert_eq!(read(rolling(json!("50%"), json!("30%"))), (4, 2, 1));
    }

    #[test]
    fn replicas_spread_over_the_nodes() {
        let mut loads = [Load { same: 0, all: 5 }, Load { same: 0, all: 0 }, Load { same: 0, all: 0 }];
        let mut placed = Vec::new();
        for _ in 0..6 {
            let node = place(&loads);
            loads[node].same += 1;
            loads[node].all += 1;
            placed.push(node);
        }
        assert_eq!(placed, [1, 2, 0, 1, 2, 0]);
    }
}
