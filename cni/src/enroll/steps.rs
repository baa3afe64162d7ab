//! What to do next with one pod, from what is wanted and what is known to be done. Pure.
//!
//! Level-triggered: [`next`] looks at the present only, so a step may fail, be repeated, or become unnecessary when
//! the wish changes half-way.
//!
//! Invariant, tested over all states: while capture is wanted and the rules are not in force, no step takes the guard
//! down, and no rule is written before the guard stands.

/// What is wanted of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Its traffic passes the tunnel.
    Captured,
    /// It lives on without the tunnel.
    Free,
    /// It does not live any more: its namespace is not touched.
    Gone,
}

/// State of the guard in the pod's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// No new TCP connection in or out.
    Up,
    /// Not there.
    Down,
}

/// State of the rules in the pod's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rules {
    /// None.
    Absent,
    /// Of ours, but not what they should be: they capture, with other facts. Replaced in one transaction.
    Stale,
    /// New connections are redirected.
    Capturing,
    /// New connections are not redirected; those in the tunnel are still translated.
    Leaving,
}

/// State of the pod at the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// No tunnel knows of it by us.
    Unoffered,
    /// Offered; no tunnel has taken it yet, or it was refused.
    Offered,
    /// A tunnel has taken it.
    Accepted,
}

/// What the pod's annotation says, as far as we have asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// Not known: may be anything.
    Unknown,
    /// No annotation.
    Nothing,
    /// Blocked, waiting for a tunnel.
    Pending,
    /// Captured.
    Enabled,
}

/// What has been done with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Whether the namespace was looked at; until then guard and rules are not known.
    pub inspected: bool,
    /// Whether the disk says that this pod is (to be) in the mesh.
    pub believed: bool,
    /// The guard.
    pub guard: Guard,
    /// The rules.
    pub rules: Rules,
    /// Whether connections older than capture were counted.
    pub counted: bool,
    /// The tunnel.
    pub tunnel: Tunnel,
    /// Whether a tunnel had a moment to take it.
    pub waited: bool,
    /// The annotation.
    pub told: Told,
    /// Leaving: whether peers had time to hear of it.
    pub settled: bool,
    /// Leaving: whether the tunnel has no connection of this pod any more, or its time is over.
    pub drained: bool,
}

impl Progress {
    /// Nothing known.
    pub const UNKNOWN: Self = Self {
        inspected: false,
        believed: false,
        guard: Guard::Down,
        rules: Rules::Absent,
        counted: false,
        tunnel: Tunnel::Unoffered,
        waited: false,
        told: Told::Unknown,
        settled: false,
        drained: false,
    };
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Look at what is in place in the namespace.
    Inspect,
    /// Write to disk that the pod is to be in the mesh.
    Believe,
    /// Put the guard up.
    RaiseGuard,
    /// Count the connections that are open now and stay uncaptured.
    CountOlder,
    /// Put the rules in force.
    InstallRules,
    /// Name the pod to the tunnel.
    Offer,
    /// Wait until a tunnel takes the pod, offering it again at intervals.
    AwaitTunnel,
    /// Take the guard down.
    LowerGuard,
    /// Write the annotation.
    Tell(Told),
    /// Stop redirecting new connections.
    StopRedirects,
    /// Wait until peers have heard that the pod leaves.
    Settle,
    /// Take the pod from every tunnel.
    TakeBack,
    /// Wait for the tunnel's connections of this pod to end, within their time.
    AwaitDrain,
    /// Take out every rule and route.
    RemoveRules,
    /// Delete what the disk says of the pod.
    Forget,
}

/// The next step; `None` when everything is as wanted.
pub fn next(wanted: Wanted, progress: &Progress) -> Option<Step> {
    match wanted {
        Wanted::Captured => capture(progress),
        Wanted::Free => free(progress),
        Wanted::Gone => gone(progress),
    }
}

fn capture(progress: &Progress) -> Option<Step> {
    let in_force = matches!(progress.rules, Rules::Capturing | Rules::Stale);
    if !progress.inspected {
        return Some(Step::Inspect);
    }
    if !progress.believed {
        return Some(Step::Believe);
    }
    if !in_force && progress.guard == Guard::Down {
        return Some(Step::RaiseGuard);
    }
    if !progress.counted {
        return Some(Step::CountOlder);
    }
    if progress.rules != Rules::Capturing {
        return Some(Step::InstallRules);
    }
    match (progress.tunnel, progress.guard, progress.told) {
        (Tunnel::Unoffered, _, _) => Some(Step::Offer),
        // Taken before, by a tunnel that may be restarting: that is no reason to stop the pod.
        (Tunnel::Offered, Guard::Down, Told::Enabled) => Some(Step::AwaitTunnel),
        (Tunnel::Offered, Guard::Down, _) => Some(Step::Tell(Told::Enabled)),
        (Tunnel::Offered, Guard::Up, told) if progress.waited && told != Told::Pending => {
            Some(Step::Tell(Told::Pending))
        }
        (Tunnel::Offered, Guard::Up, _) => Some(Step::AwaitTunnel),
        (Tunnel::Accepted, Guard::Up, _) => Some(Step::LowerGuard),
        (Tunnel::Accepted, Guard::Down, Told::Enabled) => None,
        (Tunnel::Accepted, Guard::Down, _) => Some(Step::Tell(Told::Enabled)),
    }
}

fn free(progress: &Progress) -> Option<Step> {
    if !progress.inspected {
        return Some(Step::Inspect);
    }
    if progress.told != Told::Nothing {
        return Some(Step::Tell(Told::Nothing));
    }
    // A pod that waits behind the guard has nothing in the tunnel that could end well.
    let blocked = progress.guard == Guard::Up;
    if matches!(progress.rules, Rules::Capturing | Rules::Stale) && !blocked {
        return Some(Step::StopRedirects);
    }
    if progress.tunnel != Tunnel::Unoffered {
        return Some(if blocked || progress.settled { Step::TakeBack } else { Step::Settle });
    }
    if progress.rules != Rules::Absent {
        return Some(if blocked || progress.drained { Step::RemoveRules } else { Step::AwaitDrain });
    }
    if blocked {
        return Some(Step::LowerGuard);
    }
    progress.believed.then_some(Step::Forget)
}

fn gone(progress: &Progress) -> Option<Step> {
    if progress.tunnel != Tunnel::Unoffered {
        return Some(Step::TakeBack);
    }
    progress.believed.then_some(Step::Forget)
}

#[cfg(test)]
mod tests;
