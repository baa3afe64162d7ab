//! The terms between the agent and a pod's task: what is wanted, how far it is, what all pods share, what can fail.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use stillmesh_api::zds::PodInfo;
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_k8s::ObjectKey;
use stillmesh_runtime::sys::netns::Netns;
use tokio::time::Instant;

use crate::belief::Beliefs;
use crate::enroll::steps::Wanted;
use crate::enroll::window::Window;
use crate::handover::Handover;
use crate::metrics::Metrics;
use crate::rules::apply::ApplyError;
use crate::rules::plan::Facts;
use crate::world::Bypassed;
use crate::writeback::Writer;

/// What the agent wants of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// Captured, free or gone.
    pub wanted: Wanted,
    /// Who it is.
    pub info: PodInfo,
    /// Its network namespace; absent where it cannot be found.
    pub netns: Option<Netns>,
    /// What its rules depend on. Whether there is IPv6 is found out in the namespace.
    pub facts: Facts,
    /// What its annotation says, as far as the source of objects has told.
    pub said: Option<String>,
    /// The Bypass for which it is free.
    pub bypassed: Option<Bypassed>,
    /// The Quarantine for which connections older than capture end.
    pub quarantined: Option<ObjectKey>,
    /// Since it was about to start it has been wanted captured: none of its containers runs before it is.
    pub starting: bool,
}

/// How far a pod is, for who waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Inode of the namespace in which the pod is captured: rules in force, taken by a tunnel, guard down.
    pub captured: Option<u64>,
    /// Why it is not yet.
    pub waiting_for: Option<Arc<str>>,
    /// What failed before or at the rules, in the namespace with this inode; tried again all the same.
    pub failed: Option<(u64, Arc<str>)>,
}

/// What all pods of an agent share.
#[derive(Clone)]
pub struct Shared {
    /// The way to the tunnels.
    pub handover: Handover,
    /// What is believed, on disk.
    pub beliefs: Beliefs,
    /// Annotations.
    pub writer: Writer,
    /// Counters.
    pub metrics: Metrics,
    /// Timing.
    pub times: Times,
    /// How long pods of the mesh were uncaptured when the agent started.
    pub window: Window,
    /// Once set, the agent is being taken out: connections in the tunnel have until then.
    pub leaving: Arc<OnceLock<Instant>>,
}

/// How long and how often. All wall time.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long peers have to hear that a pod leaves before the tunnel lets it go. Default 2 s.
    pub settle: Duration,
    /// How long connections in the tunnel may take to end when a pod leaves. Default 60 s.
    pub drain: Duration,
    /// How often rules of a captured pod are compared with the plan. Default 30 s.
    pub verify: Duration,
    /// How often an offer that no tunnel has answered is repeated. Default 5 s.
    pub offer: Duration,
    /// How long peers have to hear of a Bypass before its pods send clear text, from when the agent heard that it takes them out. Default
    /// 200 ms.
    pub head_start: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(2),
            drain: Duration::from_secs(60),
            verify: Duration::from_secs(30),
            offer: Duration::from_secs(5),
            head_start: Duration::from_millis(200),
        }
    }
}

/// A step that failed. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The namespace cannot be entered, or the work there broke off.
    #[error("the pod's network namespace cannot be worked in")]
    Namespace(#[source] io::Error),
    /// The kernel took too long.
    #[error("the kernel did not answer within {0:?}")]
    Slow(Duration),
    /// Rules cannot be read or changed.
    #[error(transparent)]
    Rules(#[from] ApplyError),
    /// Sockets cannot be listed.
    #[error("the pod's TCP sockets cannot be listed")]
    Sockets(#[source] stillmesh_netlink::Error),
    /// The state directory cannot be written.
    #[error("what is believed of the pod cannot be written")]
    Belief(#[source] io::Error),
}

impl Diagnose for StepError {
    fn code(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "CNI020",
            Self::Slow(_) => "CNI021",
            Self::Rules(error) => error.code(),
            Self::Sockets(_) => "CNI022",
            Self::Belief(_) => "CNI023",
        }
    }
    fn fault(&self) -> Fault {
        Fault::Internal
    }
    fn remedy(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "check that the agent has CAP_SYS_ADMIN and that the pod still runs",
            Self::Slow(_) => "check the load of this node",
            Self::Rules(error) => error.remedy(),
            Self::Sockets(_) => "check that the kernel has inet_diag",
            Self::Belief(_) => "check that STATE_DIR can be written and has space",
        }
    }
}
