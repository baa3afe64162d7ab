//! What is measured: the scenarios, and which quantities each gives.

use super::load::{Latency, Measured};

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scenario {
    /// How options, budgets and reports call it.
    pub(super) name: &'static str,
    /// For people.
    pub(super) what: &'static str,
    /// What is done.
    pub(super) kind: Kind,
    /// What is there meanwhile.
    pub(super) beside: Beside,
}

/// What is there beside the systems while a scenario is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// Nothing.
    Nothing,
    /// Many pods.
    Crowd,
    /// Many workloads in the configuration.
    Workloads,
    /// Many workloads, and many policies for the destination.
    Policies,
}

/// What a scenario does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Traffic of a shape over so many connections, every round.
    Load { shape: &'static str, connections: u32, gives: Gives },
    /// Memory of proxies while so many connections are idle, and after, once.
    Idle { connections: u32 },
    /// What making the surroundings says, once.
    Once,
    /// Requests at a rate while policies are pushed, every round.
    Push,
    /// The first connections of a new pod, to many others, so many at a time, every round.
    Cold { at_a_time: u32 },
    /// A large configuration, once.
    Scale,
}

/// Which quantities a load gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gives {
    /// Gbit/s, and CPU per GB.
    Bytes,
    /// Exchanges per second, their latency, and CPU of each.
    Rate,
    /// The latency at a rate that is given, and CPU of each.
    Latency,
    /// As before, what it was alone, and bytes beside it.
    Beside,
    /// The latency at a rate that is given, and what it was alone.
    Pushed,
}

/// Requests per second where they are sent when due.
pub(super) const RATE: u32 = 1000;

const fn load(name: &'static str, what: &'static str, shape: &'static str, connections: u32, gives: Gives) -> Scenario {
    other(name, what, Kind::Load { shape, connections, gives })
}

const fn other(name: &'static str, what: &'static str, kind: Kind) -> Scenario {
    Scenario { name, what, kind, beside: Beside::Nothing }
}

impl Scenario {
    const fn beside(self, beside: Beside) -> Self {
        Self { beside, ..self }
    }
}

/// All of them, in the order in which they are measured: what is to find proxies fresh first.
pub(super) static ALL: [Scenario; 23] = [
    other("fresh", "memory before any traffic", Kind::Once),
    load("bulk-1", "bulk, 1 stream", "bulk", 1, Gives::Bytes),
    load("bulk-8", "bulk, 8 streams", "bulk", 8, Gives::Bytes),
    load("bulk-64", "bulk, 64 streams", "bulk", 64, Gives::Bytes),
    load("echo-1", "requests, 1 connection", "closed", 1, Gives::Rate),
    load("closed-64", "requests, closed loop, 64 connections", "closed", 64, Gives::Rate),
    load("open-1", "1000 requests/s, 1 connection", "open", 1, Gives::Latency),
    load("open-16", "1000 requests/s, 16 connections", "open", 16, Gives::Latency),
    load("open-64", "1000 requests/s, 64 connections", "open", 64, Gives::Latency),
    load("mixed", "1000 requests/s, 16 connections, beside a bulk stream", "mixed", 16, Gives::Beside),
    load("connect-1", "new connections, 1 at a time", "connect", 1, Gives::Rate),
    load("connect-16", "new connections, 16 at a time", "connect", 16, Gives::Rate),
    other("idle-1000", "1000 idle connections", Kind::Idle { connections: 1000 }),
    other("idle-9000", "9000 idle connections", Kind::Idle { connections: 9000 }),
    other("push", "policies pushed, 1000 requests/s", Kind::Push),
    other("crowd", "many pods on each node", Kind::Once).beside(Beside::Crowd),
    load("crowd-open-16", "1000 requests/s, 16 connections, beside many pods", "open", 16, Gives::Latency)
        .beside(Beside::Crowd),
    other("cold-1", "new tunnels, 1 at a time", Kind::Cold { at_a_time: 1 }).beside(Beside::Crowd),
    other("cold-16", "new tunnels, 16 at a time", Kind::Cold { at_a_time: 16 }).beside(Beside::Crowd),
    other("scale", "many workloads in the configuration", Kind::Scale).beside(Beside::Workloads),
    other("policies", "many workloads and policies", Kind::Once).beside(Beside::Policies),
    load("policies-connect-16", "new connections, 16 at a time, many policies", "connect", 16, Gives::Rate)
        .beside(Beside::Policies),
    other("policies-push", "policies pushed beside many, 1000 requests/s", Kind::Push).beside(Beside::Policies),
];

/// A scenario by its name.
pub(super) fn named(name: &str) -> Result<&'static Scenario, String> {
    let names = || ALL.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
    ALL.iter().find(|scenario| scenario.name == name).ok_or_else(|| format!("there are: {}", names()))
}

/// A quantity: how budgets call it, what it is for people, its unit.
pub(super) struct Quantity {
    /// How budgets and reports call it.
    pub(super) name: &'static str,
    /// For people.
    pub(super) what: &'static str,
    /// Its unit.
    pub(super) unit: &'static str,
    /// Tables have it; others are in the JSON only.
    pub(super) in_table: bool,
}

const fn quantity(name: &'static str, what: &'static str, unit: &'static str) -> Quantity {
    Quantity { name, what, unit, in_table: true }
}

const fn detail(name: &'static str, what: &'static str, unit: &'static str) -> Quantity {
    Quantity { name, what, unit, in_table: false }
}

/// All of them, in the order of reports.
pub(super) static QUANTITIES: [Quantity; 24] = [
    quantity("gbit-per-s", "", "Gbit/s"),
    quantity("cpu-s-per-gb", "proxies' CPU", "s per GB"),
    quantity("per-s", "", "per s"),
    quantity("p50-us", "p50", "µs"),
    detail("p90-us", "p90", "µs"),
    quantity("p99-us", "p99", "µs"),
    quantity("p999-us", "p99.9", "µs"),
    detail("max-us", "longest", "µs"),
    quantity("p99-over-alone", "p99 ÷ p99 alone", ""),
    quantity("bulk-gbit-per-s", "the stream beside", "Gbit/s"),
    detail("late-p99-us", "sent late, p99", "µs"),
    quantity("refused", "new connections refused wrongly", ""),
    quantity("in-force-ms", "policy written to new connections refused", "ms"),
    quantity("lifted-ms", "policy deleted to new connections answered", "ms"),
    quantity("known-s", "policies written to all known", "s"),
    quantity("cpu-us-each", "proxies' CPU", "µs each"),
    quantity("calls-each", "proxies' system calls", "each"),
    quantity("calls-per-mb", "proxies' system calls", "per MB"),
    quantity("rss-mib", "resident memory of a proxy", "MiB"),
    quantity("bytes-per-connection", "memory of each, per proxy", "bytes"),
    quantity("bytes-per-pod", "memory of each pod, per proxy", "bytes"),
    quantity("rss-after-mib", "resident memory after they are closed", "MiB"),
    quantity("rss-after-over-fresh", "the same ÷ before any traffic", ""),
    quantity("restart-s", "killed to ready again, back-off included", "s"),
];

/// A quantity by its name.
pub(super) fn quantity_named(name: &str) -> Option<&'static Quantity> {
    QUANTITIES.iter().find(|quantity| quantity.name == name)
}

/// What one measurement says: quantities by name. `cpu` is that of the proxies, seconds; `None` where there are none.
pub(super) fn values(gives: Gives, measured: &Measured, cpu: Option<f64>) -> Vec<(&'static str, f64)> {
    let each = |name, total: f64| cpu.map(|cpu| (name, cpu / total.max(f64::MIN_POSITIVE)));
    let seconds = measured.seconds.max(f64::MIN_POSITIVE);
    let exchanges = measured.exchanges as f64;
    let gbit = measured.bytes as f64 * 8e-9 / seconds;
    let percentiles = |latency: &Latency| {
        vec![
            ("p50-us", latency.p50),
            ("p90-us", latency.p90),
            ("p99-us", latency.p99),
            ("p999-us", latency.p999),
            ("max-us", latency.max),
        ]
    };
    let late = measured.late_p99_us.map(|late| ("late-p99-us", late));
    let own = || percentiles(&measured.latency);
    let over = || measured.alone.map(|alone| ("p99-over-alone", measured.latency.p99 / alone.p99.max(1.0)));
    match gives {
        Gives::Bytes => {
            [("gbit-per-s", gbit)].into_iter().chain(each("cpu-s-per-gb", measured.bytes as f64 / 1e9)).collect()
        }
        Gives::Rate => {
            let rate = [("per-s", exchanges / seconds)];
            rate.into_iter().chain(own()).chain(each("cpu-us-each", exchanges / 1e6)).collect()
        }
        Gives::Latency => own().into_iter().chain(late).chain(each("cpu-us-each", exchanges / 1e6)).collect(),
        Gives::Beside => own().into_iter().chain(over()).chain(late).chain([("bulk-gbit-per-s", gbit)]).collect(),
        Gives::Pushed => own().into_iter().chain(over()).chain(late).collect(),
    }
}

/// System calls of the proxies per request, connection or MB, where they can be counted against something.
pub(super) fn calls(gives: Gives, measured: &Measured, calls: u64) -> Option<(&'static str, f64)> {
    let calls = calls as f64;
    match gives {
        Gives::Bytes => Some(("calls-per-mb", calls * 1e6 / (measured.bytes as f64).max(1.0))),
        Gives::Rate => Some(("calls-each", calls / (measured.exchanges as f64).max(1.0))),
        Gives::Latency | Gives::Beside | Gives::Pushed => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scenario_is_answered_with_those_there_are() {
        assert_eq!(named("bulk-8").map(|one| one.name), Ok("bulk-8"));
        assert!(named("bulk").unwrap_err().contains("bulk-64, echo-1"));
    }

    #[test]
    fn every_value_is_a_known_quantity() {
        let latency = Latency { p50: 1.0, p90: 2.0, p99: 30.0, p999: 4.0, max: 5.0 };
        let alone = Some(Latency { p99: 20.0, ..latency });
        let measured = Measured {
            seconds: 2.0,
            bytes: 2_000_000_000,
            exchanges: 4000,
            latency,
            alone,
            late_p99_us: Some(1.0),
            refused: 0,
        };
        let find = |gives, name: &str| {
            let all = values(gives, &measured, Some(0.5));
            assert!(all.iter().all(|(name, _)| quantity_named(name).is_some()));
            all.iter().find(|(one, _)| *one == name).map(|(_, value)| *value)
        };
        assert_eq!(find(Gives::Bytes, "gbit-per-s"), Some(8.0));
        assert_eq!(find(Gives::Bytes, "cpu-s-per-gb"), Some(0.25));
        assert_eq!(find(Gives::Rate, "per-s"), Some(2000.0));
        assert_eq!(find(Gives::Rate, "cpu-us-each"), Some(125.0));
        assert_eq!(find(Gives::Latency, "p99-us"), Some(30.0));
        assert_eq!(find(Gives::Beside, "p99-over-alone"), Some(1.5));
        assert!(!values(Gives::Rate, &measured, None).iter().any(|(name, _)| name.starts_with("cpu")));
    }
}
