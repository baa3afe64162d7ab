use std::collections::HashSet;

use super::*;

/// What a step does when it succeeds; `tunnel` says whether one takes the pod.
fn done(step: Step, before: &Progress, tunnel: bool) -> Progress {
    let mut after = *before;
    match step {
        Step::Inspect => after.inspected = true,
        Step::Believe => after.believed = true,
        Step::RaiseGuard => after.guard = Guard::Up,
        Step::CountOlder => after.counted = true,
        Step::InstallRules => after.rules = Rules::Capturing,
        Step::Offer => after.tunnel = Tunnel::Offered,
        Step::AwaitTunnel if tunnel => after.tunnel = Tunnel::Accepted,
        Step::AwaitTunnel => after.waited = true,
        Step::LowerGuard => after.guard = Guard::Down,
        Step::Tell(told) => after.told = told,
        Step::StopRedirects => {
            after.rules = Rules::Leaving;
            (after.counted, after.settled, after.drained) = (false, false, false);
        }
        Step::Settle => after.settled = true,
        Step::TakeBack => after.tunnel = Tunnel::Unoffered,
        Step::AwaitDrain => after.drained = true,
        Step::RemoveRules => after.rules = Rules::Absent,
        Step::Forget => after.believed = false,
    }
    after
}

fn path(wanted: Wanted, from: Progress, tunnel: bool) -> (Vec<Step>, Progress) {
    let (mut steps, mut progress) = (Vec::new(), from);
    while let Some(step) = next(wanted, &progress) {
        assert!(steps.len() < 20, "{wanted:?} from {from:?} does not end: {steps:?}");
        steps.push(step);
        if step == Step::AwaitTunnel && !tunnel && progress.waited {
            break;
        }
        progress = done(step, &progress, tunnel);
    }
    (steps, progress)
}

fn all_states() -> Vec<Progress> {
    let flags = [false, true];
    let mut all = vec![Progress::UNKNOWN];
    let vary = |all: Vec<Progress>, set: &dyn Fn(Progress) -> Vec<Progress>| all.into_iter().flat_map(set).collect();
    let mut each = |set: &dyn Fn(Progress) -> Vec<Progress>| all = vary(std::mem::take(&mut all), set);
    each(&|at| flags.map(|inspected| Progress { inspected, ..at }).into());
    each(&|at| flags.map(|believed| Progress { believed, ..at }).into());
    each(&|at| [Guard::Up, Guard::Down].map(|guard| Progress { guard, ..at }).into());
    each(&|at| {
        let rules = [Rules::Absent, Rules::Stale, Rules::Capturing, Rules::Leaving];
        rules.map(|rules| Progress { rules, ..at }).into()
    });
    each(&|at| flags.map(|counted| Progress { counted, ..at }).into());
    each(&|at| [Tunnel::Unoffered, Tunnel::Offered, Tunnel::Accepted].map(|tunnel| Progress { tunnel, ..at }).into());
    each(&|at| flags.map(|waited| Progress { waited, ..at }).into());
    each(&|at| {
        let told = [Told::Unknown, Told::Nothing, Told::Pending, Told::Enabled];
        told.map(|told| Progress { told, ..at }).into()
    });
    each(&|at| flags.map(|settled| Progress { settled, ..at }).into());
    each(&|at| flags.map(|drained| Progress { drained, ..at }).into());
    all
}

#[test]
fn a_pod_enters_behind_the_guard() {
    let (steps, end) = path(Wanted::Captured, Progress::UNKNOWN, true);
    assert_eq!(
        steps,
        [
            Step::Inspect,
            Step::Believe,
            Step::RaiseGuard,
            Step::CountOlder,
            Step::InstallRules,
            Step::Offer,
            Step::AwaitTunnel,
            Step::LowerGuard,
            Step::Tell(Told::Enabled),
        ]
    );
    assert_eq!((end.guard, end.rules, end.tunnel), (Guard::Down, Rules::Capturing, Tunnel::Accepted));
}

#[test]
fn without_a_tunnel_the_guard_stays_and_the_pod_is_pending() {
    let (steps, end) = path(Wanted::Captured, Progress::UNKNOWN, false);
    assert_eq!(steps[6..], [Step::AwaitTunnel, Step::Tell(Told::Pending), Step::AwaitTunnel]);
    assert_eq!((end.guard, end.rules), (Guard::Up, Rules::Capturing));
    let (steps, end) = path(Wanted::Captured, end, true);
    assert_eq!(steps, [Step::AwaitTunnel, Step::LowerGuard, Step::Tell(Told::Enabled)]);
    assert_eq!(end.guard, Guard::Down);
}

#[test]
fn a_pod_leaves_after_its_peers_heard_of_it() {
    let (_, captured) = path(Wanted::Captured, Progress::UNKNOWN, true);
    let (steps, end) = path(Wanted::Free, captured, true);
    assert_eq!(
        steps,
        [
            Step::Tell(Told::Nothing),
            Step::StopRedirects,
            Step::Settle,
            Step::TakeBack,
            Step::AwaitDrain,
            Step::RemoveRules,
            Step::Forget,
        ]
    );
    assert_eq!((end.guard, end.rules, end.tunnel), (Guard::Down, Rules::Absent, Tunnel::Unoffered));
}

#[test]
fn a_pod_that_was_pending_leaves_without_waiting() {
    let (_, pending) = path(Wanted::Captured, Progress::UNKNOWN, false);
    let (steps, _) = path(Wanted::Free, pending, false);
    assert_eq!(steps, [Step::Tell(Told::Nothing), Step::TakeBack, Step::RemoveRules, Step::LowerGuard, Step::Forget]);
}

#[test]
fn a_pod_that_comes_back_while_it_leaves_goes_behind_the_guard_again() {
    let (_, captured) = path(Wanted::Captured, Progress::UNKNOWN, true);
    let told = done(Step::Tell(Told::Nothing), &captured, true);
    let leaving = done(Step::StopRedirects, &told, true);
    let (steps, _) = path(Wanted::Captured, leaving, true);
    assert_eq!(
        steps,
        [Step::RaiseGuard, Step::CountOlder, Step::InstallRules, Step::LowerGuard, Step::Tell(Told::Enabled)]
    );
}

#[test]
fn a_new_agent_does_not_stop_a_captured_pod() {
    let found = Progress {
        inspected: true,
        believed: true,
        counted: true,
        rules: Rules::Capturing,
        guard: Guard::Down,
        ..Progress::UNKNOWN
    };
    for tunnel in [true, false] {
        let (steps, _) = path(Wanted::Captured, found, tunnel);
        assert_eq!(steps[..2], [Step::Offer, Step::Tell(Told::Enabled)]);
        assert!(!steps.contains(&Step::RaiseGuard) && !steps.contains(&Step::InstallRules), "{steps:?}");
    }
}

#[test]
fn the_namespace_of_a_pod_that_is_gone_is_not_touched() {
    for state in all_states() {
        let (steps, end) = path(Wanted::Gone, state, true);
        let touching = |step: &Step| !matches!(step, Step::TakeBack | Step::Forget);
        assert!(!steps.iter().any(touching), "{state:?}: {steps:?}");
        assert_eq!((end.tunnel, end.believed), (Tunnel::Unoffered, false));
    }
}

/// From every state, whatever happened before, each wish is reached.
#[test]
fn every_wish_is_reached_from_every_state() {
    for state in all_states() {
        let (_, end) = path(Wanted::Captured, state, true);
        let captured = (end.believed, end.guard, end.rules, end.told);
        assert_eq!(captured, (true, Guard::Down, Rules::Capturing, Told::Enabled), "{state:?}");
        assert!(end.tunnel == Tunnel::Accepted && end.counted, "{state:?}");
        let (_, end) = path(Wanted::Free, state, true);
        let free = (end.believed, end.guard, end.rules, end.told, end.tunnel);
        let expected = (false, Guard::Down, Rules::Absent, Told::Nothing, Tunnel::Unoffered);
        assert_eq!(free, expected, "{state:?}");
    }
}

/// The promise: a pod that is to be captured can open a connection in the clear only if it could before.
#[test]
fn on_its_way_in_a_pod_is_never_open() {
    let mut seen = HashSet::new();
    for state in all_states() {
        for tunnel in [true, false] {
            let mut at = state;
            while let Some(step) = next(Wanted::Captured, &at) {
                let after = done(step, &at, tunnel);
                let in_force = |at: &Progress| matches!(at.rules, Rules::Capturing | Rules::Stale);
                if step == Step::LowerGuard {
                    assert!(at.rules == Rules::Capturing && at.tunnel == Tunnel::Accepted, "{at:?}");
                }
                if step == Step::InstallRules && !in_force(&at) {
                    assert!(at.guard == Guard::Up && at.counted, "{at:?}");
                }
                assert!(!matches!(step, Step::StopRedirects | Step::RemoveRules | Step::TakeBack | Step::Forget));
                if !seen.insert((at, tunnel)) || after == at {
                    break;
                }
                at = after;
            }
        }
    }
}
