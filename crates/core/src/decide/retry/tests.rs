use super::*;

const ANSWERED: fn(u16) -> Outcome = |status| Outcome::Answered { status, grpc: None };
const GRPC: fn(u16) -> Outcome = |status| Outcome::Answered { status: 200, grpc: Some(status) };

fn ask(rule: Option<&Retry>, outcome: Outcome) -> Ask<'_> {
    Ask { rule, outcome, is_idempotent: true, has_other: true, repicked: 0, retried: 0, entropy: 0 }
}

fn rule(attempts: u32, on: &[RetryOn]) -> Retry {
    Retry { attempts, per_try: None, backoff: None, on: on.to_vec() }
}

const AT_ONCE: Again = Again::AtOnce;
const SOON: Again = Again::After(Duration::ZERO);

#[test]
fn without_a_rule_the_default_holds() {
    let table = [
        (Outcome::NotConnected, AT_ONCE),
        (Outcome::Closing, AT_ONCE),
        (Outcome::Stale, AT_ONCE),
        (Outcome::Refused, SOON),
        (Outcome::Reset, Again::No),
        (Outcome::TimedOut, Again::No),
        (ANSWERED(503), SOON),
        (ANSWERED(500), Again::No),
        (ANSWERED(502), Again::No),
        (ANSWERED(200), Again::No),
        (GRPC(14), SOON),
        (GRPC(1), SOON),
        (GRPC(4), Again::No),
        (GRPC(0), Again::No),
    ];
    for (outcome, expected) in table {
        assert_eq!(again(&ask(None, outcome)), expected, "{outcome:?}");
    }
}

#[test]
fn what_may_have_been_done_once_is_not_done_twice_unasked() {
    let unsafe_ = |rule, outcome| again(&Ask { is_idempotent: false, ..ask(rule, outcome) });
    assert_eq!(unsafe_(None, ANSWERED(503)), Again::No);
    assert_eq!(unsafe_(None, Outcome::Stale), Again::No);
    assert_eq!(unsafe_(None, Outcome::Refused), SOON, "it was not looked at");
    assert_eq!(unsafe_(None, Outcome::Closing), AT_ONCE);
    assert_eq!(unsafe_(None, GRPC(14)), SOON, "all of gRPC is POST; the application has said no");
    let asked = rule(1, &[RetryOn::Status(503), RetryOn::Reset]);
    for outcome in [ANSWERED(503), Outcome::Reset, Outcome::Stale] {
        assert_eq!(unsafe_(Some(&asked), outcome), SOON, "{outcome:?}: the rule asks for it");
    }
}

#[test]
fn each_condition_means_what_its_name_says() {
    use Outcome::{NotConnected, Refused, Reset, TimedOut};
    let all = [
        NotConnected,
        Refused,
        Reset,
        TimedOut,
        ANSWERED(200),
        ANSWERED(404),
        ANSWERED(409),
        ANSWERED(500),
        ANSWERED(502),
        ANSWERED(503),
        ANSWERED(504),
        ANSWERED(599),
        GRPC(8),
        GRPC(13),
    ];
    let table: [(RetryOn, &[Outcome]); 9] = [
        (RetryOn::ConnectFailure, &[NotConnected]),
        (RetryOn::RefusedStream, &[Refused]),
        (RetryOn::Reset, &[NotConnected, Refused, Reset, TimedOut]),
        (RetryOn::PerTryTimeout, &[TimedOut]),
        (RetryOn::GatewayError, &[NotConnected, Refused, Reset, TimedOut, ANSWERED(502), ANSWERED(503), ANSWERED(504)]),
        (
            RetryOn::ServerError,
            &[
                NotConnected,
                Refused,
                Reset,
                TimedOut,
                ANSWERED(500),
                ANSWERED(502),
                ANSWERED(503),
                ANSWERED(504),
                ANSWERED(599),
            ],
        ),
        (RetryOn::Conflict, &[ANSWERED(409)]),
        (RetryOn::Status(404), &[ANSWERED(404)]),
        (RetryOn::Grpc(8), &[GRPC(8)]),
    ];
    for (on, expected) in table {
        let rule = rule(1, &[on]);
        let retried: Vec<Outcome> = all
            .into_iter()
            .filter(|outcome| again(&Ask { repicked: MOST_REPICKS, ..ask(Some(&rule), *outcome) }) == SOON)
            .collect();
        assert_eq!(retried, expected, "{on:?}");
    }
}

#[test]
fn a_rule_bounds_its_retries_and_says_when_they_are_used_up() {
    let rule = rule(2, &[RetryOn::Status(500)]);
    let at = |retried| again(&Ask { retried, ..ask(Some(&rule), ANSWERED(500)) });
    assert_eq!([at(0), at(1), at(2), at(3)], [SOON, SOON, Again::Exhausted, Again::Exhausted]);
    let none = Retry { attempts: 0, ..rule };
    assert_eq!(again(&ask(Some(&none), ANSWERED(500))), Again::No, "nobody asked for a retry");
}

#[test]
fn what_no_endpoint_has_seen_goes_elsewhere_whatever_the_rule_says_and_not_for_ever() {
    let none = rule(0, &[]);
    for outcome in [Outcome::NotConnected, Outcome::Closing, Outcome::Stale] {
        let at = |repicked| again(&Ask { repicked, ..ask(Some(&none), outcome) });
        assert_eq!([at(0), at(1), at(2)], [AT_ONCE, AT_ONCE, Again::No], "{outcome:?}");
    }
    let alone = Ask { has_other: false, ..ask(None, Outcome::NotConnected) };
    assert_eq!(again(&alone), SOON, "the only endpoint is asked again a little later");
    assert_eq!(again(&Ask { rule: Some(&none), ..alone }), Again::No);
}

#[test]
fn waits_grow_with_jitter_and_stay_bounded() {
    let spans: Vec<(u64, u64)> = (1..=6)
        .map(|number| {
            let at = |entropy| u64::try_from(wait(None, number, entropy).as_millis()).unwrap();
            (at(0), at(u64::MAX))
        })
        .collect();
    assert_eq!(spans, [(0, 24), (0, 74), (0, 174), (0, 249), (0, 249), (0, 249)]);
    let asked = Some(Duration::from_secs(1));
    let spans: Vec<(u64, u64)> =
        (1..=6).map(|number| (wait(asked, number, 0).as_secs(), wait(asked, number, u64::MAX).as_secs())).collect();
    assert_eq!(spans, [(1, 1), (2, 2), (4, 5), (8, 11), (10, 14), (10, 14)]);
    assert!(wait(Some(Duration::MAX), u32::MAX, u64::MAX) >= Duration::from_secs(u64::MAX / 2), "no overflow");
}
