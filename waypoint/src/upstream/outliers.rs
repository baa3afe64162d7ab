//! When an endpoint is left out for a while: by how its last requests went (Istio, `outlierDetection`; Envoy's detectors). Pure.

use std::time::Duration;

use stillmesh_core::decide::retry::Outcome;
use stillmesh_core::model::destination::OutlierDetection;
use tokio::time::Instant;

/// The longest time for which one is left out, unless the first one is longer (Envoy, `max_ejection_time`).
const LONGEST: Duration = Duration::from_secs(300);

/// How one endpoint does.
#[derive(Debug, Default)]
pub struct Health {
    server_errors: u32,
    gateway_errors: u32,
    local_errors: u32,
    /// Left out until then; in the past: it was.
    ejected: Option<Instant>,
    /// How often in a row, counted down with every interval that it is back.
    times: u32,
}

/// Why an endpoint is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Answers of 5xx in a row.
    Server,
    /// Answers of 502, 503 or 504 in a row.
    Gateway,
    /// No answers, in a row.
    Local,
}

impl Health {
    /// Whether it is left out now.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected.is_some_and(|until| now < until)
    }

    /// Takes how a try went. What says that it ought to be left out; the caller knows whether it may be.
    pub fn note(&mut self, rule: &OutlierDetection, outcome: Outcome) -> Option<Why> {
        let (status, is_local) = match outcome {
            Outcome::Answered { grpc: Some(code), .. } => (http_status(code), false),
            Outcome::Answered { status, grpc: None } => (status, false),
            Outcome::TimedOut => (504, true),
            Outcome::NotConnected | Outcome::Refused | Outcome::Reset => (503, true),
            // That a kept connection ends says nothing.
            Outcome::Closing | Outcome::Stale => return None,
        };
        let count = |counter: &mut u32, is_one: bool| {
            *counter = if is_one { counter.saturating_add(1) } else { 0 };
        };
        if let (true, Some(most)) = (is_local, rule.consecutive_local) {
            count(&mut self.local_errors, true);
            return (most > 0 && self.local_errors >= most).then_some(Why::Local);
        }
        count(&mut self.local_errors, is_local);
        count(&mut self.server_errors, (500..600).contains(&status));
        count(&mut self.gateway_errors, (502..=504).contains(&status));
        let reached = |most: u32, count: u32| most > 0 && count >= most;
        if reached(rule.consecutive_gateway, self.gateway_errors) {
            return Some(Why::Gateway);
        }
        reached(rule.consecutive_5xx, self.server_errors).then_some(Why::Server)
    }

    /// Leaves it out from now on; says for how long. The more often lately, the longer.
    pub fn eject(&mut self, rule: &OutlierDetection, now: Instant) -> Duration {
        let back = self.ejected.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let intervals = back.as_nanos() / rule.interval.as_nanos().max(1);
        self.times = self.times.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX)).saturating_add(1);
        let time = rule.base_ejection.saturating_mul(self.times).min(LONGEST.max(rule.base_ejection));
        self.ejected = Some(now + time);
        (self.server_errors, self.gateway_errors, self.local_errors) = (0, 0, 0);
        time
    }
}

/// Whether one more of `all` may be left out, beside those who are.
pub fn may_eject(rule: &OutlierDetection, ejected: usize, all: usize) -> bool {
    let most = rule.most_percent as usize;
    most > 0 && (ejected == 0 || (ejected + 1).saturating_mul(100) <= most.saturating_mul(all))
}

/// What a gRPC status would be in HTTP (gRPC, `code.proto`).
fn http_status(grpc: u16) -> u16 {
    match grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> Outcome {
        Outcome::Answered { status, grpc: None }
    }

    fn last(rule: &OutlierDetection, outcomes: &[Outcome]) -> Option<Why> {
        let mut health = Health::default();
        outcomes.iter().map(|outcome| health.note(rule, *outcome)).last().flatten()
    }

    #[test]
    fn errors_in_a_row_count_and_one_success_forgives() {
        let rule = OutlierDetection { consecutive_5xx: 3, ..OutlierDetection::default() };
        let [bad, good] = [answered(500), answered(200)];
        assert_eq!(last(&rule, &[bad, bad]), None);
        assert_eq!(last(&rule, &[bad, bad, bad]), Some(Why::Server));
        assert_eq!(last(&rule, &[bad, bad, good, bad, bad]), None);
        assert_eq!(last(&rule, &[bad, Outcome::Closing, Outcome::Stale, bad, bad]), Some(Why::Server));
        assert_eq!(last(&rule, &[bad, Outcome::NotConnected, Outcome::TimedOut]), Some(Why::Server));
        let unavailable = Outcome::Answered { status: 200, grpc: Some(14) };
        assert_eq!(last(&rule, &[unavailable; 3]), Some(Why::Server));
        let off = OutlierDetection { consecutive_5xx: 0, ..rule };
        assert_eq!(last(&off, &[bad; 9]), None);
    }

    #[test]
    fn gateway_errors_and_those_without_an_answer_have_counts_of_their_own() {
        let rule = OutlierDetection { consecutive_gateway: 2, ..OutlierDetection::default() };
        assert_eq!(last(&rule, &[answered(503), answered(500), answered(502)]), None, "500 is none");
        assert_eq!(last(&rule, &[answered(500), answered(503), answered(502)]), Some(Why::Gateway));
        let split = OutlierDetection { consecutive_5xx: 2, consecutive_local: Some(3), ..OutlierDetection::default() };
        let lost = Outcome::Reset;
        assert_eq!(last(&split, &[lost, lost]), None, "these are no 5xx then");
        assert_eq!(last(&split, &[lost, lost, lost]), Some(Why::Local));
        assert_eq!(last(&split, &[lost, lost, answered(200), lost]), None);
        assert_eq!(last(&split, &[answered(500), lost, answered(500)]), Some(Why::Server));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_grows_with_each_and_shrinks_with_each_interval_that_it_is_back() {
        let rule = OutlierDetection { base_ejection: Duration::from_secs(30), ..OutlierDetection::default() };
        let (mut health, mut now) = (Health::default(), Instant::now());
        for wanted in [30, 60, 90] {
            let time = health.eject(&rule, now);
            assert_eq!(time.as_secs(), wanted);
            assert!(health.is_ejected(now) && !health.is_ejected(now + time));
            now += time;
        }
        now += rule.interval * 2;
        assert_eq!(health.eject(&rule, now).as_secs(), 60, "two intervals are forgiven");
        for _ in 0..20 {
            health.eject(&rule, now);
        }
        assert_eq!(health.eject(&rule, now), LONGEST);
    }

    #[test]
    fn at_most_a_part_is_left_out_and_one_in_any_case() {
        let of = |most_percent, ejected, all| {
            may_eject(&OutlierDetection { most_percent, ..OutlierDetection::default() }, ejected, all)
        };
        assert!(of(10, 0, 3), "one of three");
        assert!(!of(10, 1, 10) && of(10, 1, 20));
        assert!(of(50, 1, 4) && !of(50, 2, 4));
        assert!(of(100, 3, 4));
        assert!(!of(0, 0, 4));
    }
}
