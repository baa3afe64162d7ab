//! Which GatewayClasses are ours (contract 7.1).

use super::GatewayClass;
use super::binding::{MANAGED, MANAGERS};
use super::generate::CLASS_NAME;
use crate::labels::Labels;

/// A class that is made where it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its name.
    pub name: &'static str,
    /// Who runs its Gateways.
    pub controller: &'static str,
    /// What it says about itself; at most 64 bytes are allowed.
    pub description: &'static str,
}

/// The classes of waypoints: the one that Istio's users write, and one that is never anybody else's.
pub const WAYPOINTS: [Own; 2] = [
    Own {
        name: "istio-waypoint",
        controller: "istio.io/mesh-controller",
        description: "Waypoints: L7 routing and policies, run by Stillmesh",
    },
    Own {
        name: "stillmesh-waypoint",
        controller: "stillmesh.io/waypoint-controller",
        description: "Waypoints: L7 routing and policies",
    },
];

/// What waypoints can do, as the Gateway API calls it (contract 8.1), in order of name: said in their classes' statuses,
/// and tried by its conformance tests. Only what is carried out is here.
pub const FEATURES: [&str; 18] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "ReferenceGrant",
];

/// Whether the Gateways of a class are waypoints that we run.
pub fn is_waypoint(name: &str, class: Option<&GatewayClass>) -> bool {
    waypoint_controller(name, class).is_some()
}

/// As whom the Gateways of a class are run, if they are waypoints that we run. A class that is not there (yet) is who its
/// name says; one that is there is whose controller it names.
pub fn waypoint_controller(name: &str, class: Option<&GatewayClass>) -> Option<&'static str> {
    let is_it = |own: &&Own| match class {
        Some(class) => own.controller == class.spec.controller_name,
        None => own.name == name,
    };
    WAYPOINTS.iter().find(is_it).map(|own| own.controller)
}

/// Whether what has these labels was made for a waypoint: its Deployment, Service or pods, ours or Istio's (contract 1.2). What
/// other Gateways run on is labelled alike, but by another controller. Where no controller is named, the class says it.
pub fn is_of_waypoint(labels: &Labels) -> bool {
    is_made_for_waypoint(|label| labels.get(label).map(String::as_str))
}

/// The same of an object whose labels are found so.
pub fn is_made_for_waypoint<'a>(find: impl Fn(&str) -> Option<&'a str>) -> bool {
    match find(MANAGED) {
        Some(manager) => MANAGERS.first().is_some_and(|of_waypoints| *of_waypoints == manager),
        None => find(CLASS_NAME).is_some_and(|class| is_waypoint(class, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::GatewayClassSpec;
    use super::super::generate::GATEWAY_NAME;
    use super::*;

    fn of(controller: &str) -> GatewayClass {
        GatewayClass::new("any", GatewayClassSpec { controller_name: controller.into(), ..GatewayClassSpec::default() })
    }

    #[test]
    fn what_is_said_is_as_the_gateway_apis_definitions_allow() {
        assert!(WAYPOINTS.iter().all(|own| own.description.len() <= 64));
        assert!(FEATURES.len() <= 64 && FEATURES.is_sorted());
    }

    #[test]
    fn what_the_conformance_suite_is_asked_for_is_what_classes_say() {
        for feature in include_str!("../../../../tests/conformance/features").lines() {
            assert!(FEATURES.contains(&feature), "{feature}");
        }
    }

    #[test]
    fn a_waypoints_own_is_told_from_another_gateways() {
        let is_one = |labels: &[(&str, &str)]| {
            let all = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            is_of_waypoint(&all.collect())
        };
        assert!(is_one(&[(MANAGED, "istio.io-mesh-controller"), (CLASS_NAME, "mine")]));
        assert!(is_one(&[(CLASS_NAME, "istio-waypoint")]) && is_one(&[(CLASS_NAME, "stillmesh-waypoint")]));
        assert!(!is_one(&[(MANAGED, "istio.io-gateway-controller"), (CLASS_NAME, "istio")]));
        assert!(!is_one(&[(MANAGED, "istio.io-eastwest-controller"), (CLASS_NAME, "istio-east-west")]));
        assert!(!is_one(&[(CLASS_NAME, "istio")]) && !is_one(&[(GATEWAY_NAME, "edge")]) && !is_one(&[]));
    }

    #[test]
    fn a_class_is_whose_controller_it_names() {
        assert!(is_waypoint("istio-waypoint", None) && is_waypoint("stillmesh-waypoint", None));
        assert!(!is_waypoint("istio", None) && !is_waypoint("mine", None));
        assert!(is_waypoint("mine", Some(&of("istio.io/mesh-controller"))));
        assert!(is_waypoint("mine", Some(&of("stillmesh.io/waypoint-controller"))));
        assert!(!is_waypoint("istio-waypoint", Some(&of("istio.io/agentgateway-waypoint-controller"))));
    }
}
