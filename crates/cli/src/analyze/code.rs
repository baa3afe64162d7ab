//! The codes of findings. Istio's keep their number, name and level; ours are `SM01..`. A code never changes its meaning.

use clap::ValueEnum;
use serde::Serialize;

use crate::output::aligned;

/// How bad it is; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Level {
    /// Something does not work, or is not enforced, as it is written
    Error,
    /// Probably not what was meant
    Warning,
    /// Good to know
    Info,
}

/// A code.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Code {
    pub(crate) level: Level,
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    /// In a sentence.
    pub(crate) meaning: &'static str,
}

macro_rules! codes {
    ($($constant:ident $id:literal $name:literal $level:ident $meaning:literal;)+) => {
        $(pub(crate) const $constant: &Code =
            &Code { level: Level::$level, id: $id, name: $name, meaning: $meaning };)+
        /// All of them.
        pub(crate) const ALL: &[&Code] = &[$($constant),+];
    };
}

codes! {
    NOT_FOUND "IST0101" "ReferencedResourceNotFound" Error "something that an object names is not there";
    INVALID "IST0106" "SchemaValidationError" Error "it cannot be read, or what it says cannot be carried out";
    SAME_HOSTS "IST0109" "ConflictingMeshGatewayVirtualServiceHosts" Error "several VirtualServices are about the same Service";
    UNNAMED_PORT "IST0118" "PortNameIsNotUnderNamingConvention" Info "a waypoint must find out by the first bytes what is spoken at a port";
    NO_WORKLOADS "IST0127" "NoMatchingWorkloadsFound" Warning "a selector picks no pod";
    UNREACHABLE "IST0130" "VirtualServiceUnreachableRule" Warning "a rule that an earlier one leaves nothing for";
    SELECTOR "IST0166" "IneffectiveSelector" Warning "a selector where a waypoint needs targetRefs";
    INEFFECTIVE "IST0167" "IneffectivePolicy" Warning "nobody carries it out";
    NEGATIVE "IST0171" "NegativeConditionStatus" Warning "a condition of its status is False";
    EMPTY_SUBSET "IST0173" "DestinationRuleSubsetNotSelectPods" Error "a subset that no pod is in";
    UNKNOWN_HOST "IST0174" "UnknownDestinationRuleHost" Warning "a DestinationRule whose host is no Service here";
    DENIES_ALL "SM0101" "PolicyOfRequestsDeniesAll" Error "an ALLOW policy that asks for HTTP, enforced by node tunnels: no rule of it is left, and everything is refused";
    STRICTER "SM0102" "PolicyOfRequestsStricter" Warning "a policy that asks for HTTP, enforced by node tunnels, refuses more than it says";
    PARTLY "SM0103" "PartWithoutEffect" Warning "a part of the object has no effect here";
    NOT_GRANTED "SM0104" "ReferenceGrantMissing" Error "a backend in another namespace that does not let the route refer to it";
    NO_WAYPOINT "SM0105" "WaypointNotUsable" Error "a label asks for a waypoint that is not there or does not take it: traffic goes without";
    NOT_READY "SM0106" "WaypointNotReady" Warning "a waypoint is bound and not ready: connections are refused until it is";
    NOT_HTTP "SM0107" "RouteOnPortWithoutHttp" Warning "a route of requests on a port that says it speaks something else";
    NOT_CAPTURED "SM0108" "PolicyBypassed" Warning "policies refuse clear text to a pod whose inbound traffic is not captured: nobody enforces them";
    NO_PRINCIPAL "SM0109" "PrincipalNobodyHas" Warning "a rule names a client that nobody can be";
    NO_TOKENS "SM0110" "TokenWithoutRequestAuthentication" Error "a rule asks for a token where nobody verifies any: it never matches";
    UNSUPPORTED "SM0111" "KindWithoutEffect" Warning "a mesh object of a kind that this mesh does not read";
    OUTSIDE "SM0112" "PolicyOutsideMesh" Warning "a policy about pods none of which is in the mesh: nobody enforces it";
    BLOCKED "SM0113" "NetworkPolicyBlocksTunnel" Error "a NetworkPolicy lets clients reach the application's port and not port 15008, where the mesh arrives";
    LOCKED_OUT "SM0114" "WaypointLockedOut" Error "policies refuse what the service's own waypoint brings";
}

/// A table of them.
pub(crate) fn listed() -> String {
    let row =
        |code: &&Code| [code.id, code.name, &format!("{:?}", code.level), code.meaning].map(str::to_owned).to_vec();
    let head = ["CODE", "NAME", "LEVEL", "MEANING"].map(str::to_owned).to_vec();
    aligned(&std::iter::once(head).chain(ALL.iter().map(row)).collect::<Vec<_>>())
}
