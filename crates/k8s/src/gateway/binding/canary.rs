//! A second waypoint that takes a part of what a service's waypoint takes (contract 1.2): a new version tried with real
//! traffic. Whatever is wrong with it, everything goes through the first one.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stillmesh_core::model::Gateway as Destination;

use super::{Binding, Named, Target, USE_WAYPOINT, Waypoint, Why};
use crate::labels::{self, Labels};
use crate::object::DEFAULT_NAMESPACE;
use crate::status::Condition;
use crate::translate::Mesh;

/// Label that names it, on a Service, or on a namespace beside the waypoint's.
pub const USE_CANARY: &str = "istio.io/use-waypoint-canary";
/// Label with its namespace, where that is another one.
pub const USE_CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
/// Annotation beside them: how many of a hundred connections it takes.
pub const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";

/// What becomes of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Canary {
    /// None is asked for, or nothing to share: then the waypoint's own state is what there is to say.
    None,
    /// It takes its share.
    Bound {
        /// The Gateway.
        waypoint: Named,
        /// As nodes are told.
        destination: Destination,
        /// Of a hundred.
        weight: u32,
    },
    /// It takes nothing.
    Unbound {
        /// The Gateway.
        waypoint: Named,
        /// Why not.
        why: CanaryWhy,
    },
}

/// Why a canary takes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanaryWhy {
    /// The annotation says this, or nothing.
    Weight(String),
    /// It is the waypoint itself.
    Same,
    /// It has no address yet.
    NotReady,
    /// As with any waypoint.
    Why(Why),
}

/// The canary that an object's metadata asks for, with its weight; `namespace` is its own, or itself.
fn read(object: &ObjectMeta, namespace: &str) -> Option<(Named, Result<u32, String>)> {
    let own = labels::of(&object.labels);
    let waypoint = asked(own, namespace)?;
    let text = labels::of(&object.annotations).get(CANARY_WEIGHT).map_or("", |text| text.trim());
    let weight = text.parse().ok().filter(|weight| *weight <= 100 && text.bytes().all(|byte| byte.is_ascii_digit()));
    Some((waypoint, weight.ok_or_else(|| text.to_owned())))
}

/// The canary that an object's labels name.
pub fn asked(own: &Labels, namespace: &str) -> Option<Named> {
    let name = own.get(USE_CANARY).filter(|name| !name.is_empty() && *name != "none")?;
    let other = own.get(USE_CANARY_NAMESPACE).filter(|other| !other.is_empty());
    Some(Named { namespace: other.map_or(namespace, String::as_str).into(), name: name.as_str().into() })
}

/// Decides for a service that is bound as `primary` says; `find` finds Gateways. The Service's own label counts; that of its
/// namespace only where the Service names no waypoint itself.
pub fn canary<'a>(
    object: &ObjectMeta,
    namespace: Option<&Namespace>,
    primary: &Binding,
    find: impl FnOnce(&Named) -> Option<&'a Waypoint>,
    mesh: &Mesh,
) -> Canary {
    let Binding::Bound { waypoint: first, .. } = primary else { return Canary::None };
    let name = object.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let own = labels::of(&object.labels);
    let of_namespace = || {
        let alone = !own.contains_key(USE_CANARY) && own.get(USE_WAYPOINT).is_none_or(String::is_empty);
        read(&namespace.filter(|_| alone)?.metadata, name)
    };
    let Some((waypoint, weight)) = read(object, name).or_else(of_namespace) else { return Canary::None };
    let none = labels::of(&None);
    let its_labels = namespace.map_or(none, |namespace| labels::of(&namespace.metadata.labels));
    let why = match (weight, find(&waypoint)) {
        _ if waypoint == *first => CanaryWhy::Same,
        (Err(text), _) => CanaryWhy::Weight(text),
        (_, None) => CanaryWhy::Why(Why::Missing),
        (_, Some(found)) if !found.traffic.is_for(Target::Service) => CanaryWhy::Why(Why::WrongTraffic(found.traffic)),
        (_, Some(found)) if !found.allows(name, its_labels) => CanaryWhy::Why(Why::NotAllowed),
        (Ok(weight), Some(found)) => match found.destination(mesh) {
            Some(_) if !found.ready => CanaryWhy::NotReady,
            Some(destination) => return Canary::Bound { waypoint, destination, weight },
            None => CanaryWhy::Why(Why::NoAddress),
        },
    };
    Canary::Unbound { waypoint, why }
}

impl Canary {
    /// The waypoints of a service with their weights, as nodes are told; none where everything goes through the first one.
    pub fn weighted(&self, primary: &Destination) -> Vec<(Destination, u32)> {
        match self {
            Self::Bound { destination, weight, .. } if *weight > 0 => {
                vec![(primary.clone(), 100_u32.saturating_sub(*weight)), (destination.clone(), *weight)]
            }
            _ => Vec::new(),
        }
    }

    /// The Gateway, where it takes a share.
    pub fn bound(&self) -> Option<&Named> {
        match self {
            Self::Bound { waypoint, weight, .. } if *weight > 0 => Some(waypoint),
            _ => None,
        }
    }

    /// What is wrong with it, in a sentence.
    pub fn problem(&self) -> Option<String> {
        let Self::Unbound { waypoint, why } = self else { return None };
        let why = match why {
            CanaryWhy::Weight(text) if text.is_empty() => format!("annotation {CANARY_WEIGHT} is missing: 0 to 100"),
            CanaryWhy::Weight(text) => format!("{CANARY_WEIGHT} {text:?} is not a number from 0 to 100"),
            CanaryWhy::Same => "it is the waypoint itself".to_owned(),
            CanaryWhy::NotReady => "it is not ready".to_owned(),
            CanaryWhy::Why(Why::Missing) => "there is no such Gateway".to_owned(),
            CanaryWhy::Why(Why::NotAllowed) => "its allowedRoutes does not let this namespace attach".to_owned(),
            CanaryWhy::Why(Why::WrongTraffic(traffic)) => format!("it is for {traffic} traffic only"),
            CanaryWhy::Why(Why::FallsBack | Why::NoAddress) => "it has no address".to_owned(),
        };
        Some(format!("canary waypoint {waypoint} takes no traffic, all goes through the other one: {why}"))
    }

    /// What a service's status says: of the waypoint, and where that is well of the canary.
    pub fn condition(&self, primary: &Binding) -> Option<Condition> {
        let said = primary.condition()?;
        if said.status != "True" {
            return Some(said);
        }
        let message = match (self, self.problem()) {
            (Self::Bound { waypoint, weight, .. }, _) => {
                format!("{}, and to canary waypoint {waypoint} for {weight} % of connections", said.message)
            }
            (_, Some(problem)) => format!("{}; {problem}", said.message),
            _ => return Some(said),
        };
        let reason = match self {
            Self::Unbound { why: CanaryWhy::Weight(_), .. } => "CanaryInvalidWeight",
            Self::Unbound { why: CanaryWhy::Same, .. } => "CanarySameAsPrimary",
            Self::Unbound { why: CanaryWhy::NotReady, .. } => super::NOT_READY,
            Self::Unbound { why: CanaryWhy::Why(why), .. } => why.reason(),
            _ => return Some(Condition { message, ..said }),
        };
        Some(Condition { status: "False", reason, message, ..said })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{READY, metadata, namespace, waypoint};
    use super::*;

    const W: &str = "istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: infra";
    const C: &str = "istio.io/use-waypoint-canary: c, istio.io/use-waypoint-canary-namespace: infra";

    /// What a Service in `shop` is told, and what nodes are.
    fn outcome(own: &str, of_namespace: &str, found: Option<&Waypoint>) -> (&'static str, Option<u32>, String) {
        let primary = waypoint("", "{from: All}", READY);
        let object = metadata(&format!("{{name: page, namespace: shop, {own}}}"));
        let mut namespace = namespace("{}");
        namespace.metadata = metadata(&format!("{{name: shop, {of_namespace}}}"));
        let mesh = Mesh::default();
        let binding = super::super::bind(Target::Service, &object, Some(&namespace), |_| Some(&primary), &mesh);
        let canary = canary(&object, Some(&namespace), &binding, |_| found, &mesh);
        let said = canary.condition(&binding);
        let weights = binding.destination().map(|first| canary.weighted(&first)).unwrap_or_default();
        assert!(weights.is_empty() || weights.iter().map(|(_, weight)| weight).sum::<u32>() == 100);
        let (reason, message) = said.map_or(("-", String::new()), |said| (said.reason, said.message));
        (reason, weights.get(1).map(|(_, weight)| *weight), message)
    }

    #[test]
    fn a_canary_takes_its_share_or_nothing_and_its_status_says_why() {
        let ready = waypoint("", "{from: All}", READY);
        let told = |weight: &str| format!("labels: {{{W}, {C}}}, annotations: {{{CANARY_WEIGHT}: '{weight}'}}");
        for (weight, found, reason, share) in [
            ("10", Some(&ready), "WaypointAccepted", Some(10)),
            ("100", Some(&ready), "WaypointAccepted", Some(100)),
            ("0", Some(&ready), "WaypointAccepted", None),
            ("", Some(&ready), "CanaryInvalidWeight", None),
            ("101", Some(&ready), "CanaryInvalidWeight", None),
            ("-1", Some(&ready), "CanaryInvalidWeight", None),
            ("+1", Some(&ready), "CanaryInvalidWeight", None),
            ("1.5", Some(&ready), "CanaryInvalidWeight", None),
            ("10", None, "WaypointIsNotReady", None),
            ("10", Some(&waypoint("", "{from: All}", "[]")), "WaypointIsNotReady", None),
            ("10", Some(&waypoint("", "{from: Same}", READY)), "AttachmentDenied", None),
            (
                "10",
                Some(&waypoint("labels: {istio.io/waypoint-for: workload}", "{from: All}", READY)),
                "UnsupportedTrafficType",
                None,
            ),
        ] {
            let (said, told, message) = outcome(&told(weight), "", found);
            assert_eq!((said, told), (reason, share), "{weight} {message}");
            assert!(message.starts_with("Successfully attached to waypoint infra/w"), "{message}");
        }
        let same = format!("labels: {{{W}, {}}}", C.replace(": c,", ": w,"));
        assert_eq!(outcome(&same, "", Some(&ready)).0, "CanarySameAsPrimary");
        let (reason, _, message) = outcome(&format!("labels: {{{W}}}"), "", Some(&ready));
        assert_eq!((reason, message.contains("canary")), ("WaypointAccepted", false));
    }

    #[test]
    fn a_services_own_labels_count_before_those_of_its_namespace() {
        let ready = waypoint("", "{from: All}", READY);
        let with =
            |labels: &str, weight: &str| format!("labels: {{{labels}}}, annotations: {{{CANARY_WEIGHT}: '{weight}'}}");
        let both = format!("{W}, {C}");
        for (own, of_namespace, share) in [
            (String::new(), with(&both, "7"), Some(7)),
            (with(C, "9"), with(W, ""), Some(9)),
            (with(C, "9"), with(&both, "7"), Some(9)),
            // It has a waypoint of its own, so its namespace's canary is not meant.
            (with(W, ""), with(&both, "7"), None),
            (with(&format!("{USE_CANARY}: none"), ""), with(&both, "7"), None),
            // Nothing to share.
            (with(C, "9"), String::new(), None),
            (with(&format!("{USE_WAYPOINT}: none, {C}"), "9"), with(&both, "7"), None),
        ] {
            assert_eq!(outcome(&own, &of_namespace, Some(&ready)).1, share, "{own} {of_namespace}");
        }
    }
}
