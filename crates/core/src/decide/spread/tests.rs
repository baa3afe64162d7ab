use std::collections::BTreeMap;

use super::*;
use crate::fixtures::{World, uid};
use crate::model::RoutingScope;
use crate::model::destination::{HashKey, OutlierDetection, TrafficPolicy};

/// What is known of endpoints, by name: requests under way, whether left out, seconds since first seen.
#[derive(Debug, Default)]
struct Known(BTreeMap<WorkloadUid, (u64, bool, u64)>);

impl Known {
    fn of(all: &[(&str, u64, bool, u64)]) -> Self {
        Self(all.iter().map(|(name, active, out, age)| (uid(name), (*active, *out, *age))).collect())
    }
}

impl Live for Known {
    fn active(&self, endpoint: &WorkloadUid) -> u64 {
        self.0.get(endpoint).map_or(0, |known| known.0)
    }

    fn is_ejected(&self, endpoint: &WorkloadUid) -> bool {
        self.0.get(endpoint).is_some_and(|known| known.1)
    }

    fn age(&self, endpoint: &WorkloadUid) -> Duration {
        Duration::from_secs(self.0.get(endpoint).map_or(1 << 30, |known| known.2))
    }
}

fn at(place: &'static str) -> impl FnOnce(&mut Workload) {
    move |workload| {
        let mut parts = place.split('/').map(crate::model::Str::from);
        let mut next = || parts.next().unwrap_or("".into());
        workload.locality = Locality { region: next(), zone: next(), subzone: next() };
    }
}

/// The waypoint `gw` in `r1/z1` and endpoints of `web` at these places.
fn world(endpoints: &[(&'static str, &'static str)]) -> World {
    let world = World::new().workload_with("gw", at("r1/z1"));
    let world = endpoints.iter().fold(world, |world, (name, place)| world.workload_with(name, at(place)));
    let names: Vec<&str> = endpoints.iter().map(|(name, _)| *name).collect();
    world.service("web", &[(80, 8080)], &names)
}

fn by(balancing: Balancing) -> Treatment {
    let policy = TrafficPolicy { balancing: Some(balancing), ..TrafficPolicy::default() };
    Treatment { policy: Arc::new(policy), members: None }
}

fn method(method: Method) -> Treatment {
    by(Balancing { method, ..Balancing::default() })
}

fn watching(treatment: Treatment, outliers: OutlierDetection) -> Treatment {
    let policy = TrafficPolicy { outliers: Some(outliers), ..(*treatment.policy).clone() };
    Treatment { policy: Arc::new(policy), ..treatment }
}

fn local(locality: LocalityPolicy) -> Treatment {
    by(Balancing { method: Method::Random, locality: Some(locality), ..Balancing::default() })
}

/// How often each of 1000 tries goes where. Every third of the hashes is the same.
fn spread_of(world: &World, treatment: &Treatment, live: &Known, tried: &[&str]) -> BTreeMap<String, u32> {
    let (snapshot, source) = (world.snapshot(), world.get("gw"));
    let tried: Vec<WorkloadUid> = tried.iter().map(|name| uid(name)).collect();
    let service = world.get_service("web");
    let mut picked = BTreeMap::new();
    for turn in 0..1000u64 {
        let entropy = mixed(turn, Stream::Endpoint);
        let ask = Ask { snapshot: &snapshot, source: &source, entropy, tried: &tried };
        let chances = Chances { live, turn, hash: Some(hash_of(&turn.to_be_bytes())) };
        let name = match spread(&ask, &service, 80, treatment, &chances) {
            Ok((workload, 8080)) => workload.name.to_string(),
            Ok((_, other)) => panic!("port {other}"),
            Err(reason) => reason.code().to_owned(),
        };
        *picked.entry(name).or_insert(0) += 1;
    }
    picked
}

fn near(count: Option<&u32>, wanted: u32) -> bool {
    count.copied().unwrap_or_default().abs_diff(wanted) <= 60
}

const THREE: [(&str, &str); 3] = [("a", "r1/z1"), ("b", "r1/z1"), ("c", "r1/z1")];

#[test]
fn nothing_written_prefers_who_has_less_to_do() {
    let busy = Known::of(&[("a", 9, false, 100)]);
    let spread = spread_of(&world(&THREE), &Treatment::default(), &busy, &[]);
    assert_eq!(spread.get("a"), None, "always the busier one of two: {spread:?}");
    let idle = spread_of(&world(&THREE), &Treatment::default(), &Known::default(), &[]);
    assert!(idle.values().all(|count| near(Some(count), 333)), "{idle:?}");
}

#[test]
fn turns_are_taken_in_order_and_by_capacity() {
    let even = spread_of(&world(&THREE), &method(Method::RoundRobin), &Known::default(), &[]);
    assert!(even.values().all(|count| (333..=334).contains(count)), "{even:?}");
    let world = World::new().workload("gw").workload("one").workload_with("three", |three| three.capacity = 3);
    let world = world.service("web", &[(80, 8080)], &["one", "three"]);
    let uneven = spread_of(&world, &method(Method::RoundRobin), &Known::default(), &[]);
    assert!(uneven["three"].abs_diff(750) <= 2, "{uneven:?}");
}

#[test]
fn a_key_stays_with_its_endpoint_and_only_those_of_one_that_goes_move() {
    let hashed = method(Method::ConsistentHash(HashKey::SourceAddress));
    let owner = |world: &World, key: &str, tried: &[&str]| {
        let (snapshot, source, service) = (world.snapshot(), world.get("gw"), world.get_service("web"));
        let tried: Vec<WorkloadUid> = tried.iter().map(|name| uid(name)).collect();
        let owners: std::collections::BTreeSet<String> = (0..20u64)
            .map(|turn| {
                let ask =
                    Ask { snapshot: &snapshot, source: &source, entropy: mixed(turn, Stream::Level), tried: &tried };
                let chances = Chances { live: &Known::default(), turn, hash: Some(hash_of(key.as_bytes())) };
                spread(&ask, &service, 80, &hashed, &chances).unwrap().0.name.to_string()
            })
            .collect();
        assert_eq!(owners.len(), 1, "{key}: {owners:?}");
        owners.into_iter().next().unwrap()
    };
    let (three, two) = (world(&THREE), world(&THREE[..2]));
    let keys: Vec<String> = (0..300).map(|number| format!("user-{number}")).collect();
    let mut counts = BTreeMap::new();
    for key in &keys {
        let (before, after) = (owner(&three, key, &[]), owner(&two, key, &[]));
        assert!(before == "c" || before == after, "{key} moved from {before} to {after}");
        *counts.entry(before.clone()).or_insert(0u32) += 1;
        assert_eq!(owner(&three, key, &[&before]), before, "a retry too");
    }
    assert!(counts.len() == 3 && counts.values().all(|count| (60..140).contains(count)), "{counts:?}");
}

#[test]
fn a_new_endpoint_begins_with_little_and_comes_to_its_share() {
    let warm_up = WarmUp { duration: Duration::from_secs(100), least_percent: 10, aggression: 1000 };
    let warming = |method| by(Balancing { method, warm_up: Some(warm_up), locality: None });
    let share = |method: Method, age| {
        let known = Known::of(&[("c", 0, false, age)]);
        spread_of(&world(&THREE), &warming(method), &known, &[]).get("c").copied().unwrap_or_default()
    };
    for (age, wanted) in [(0, 48), (50, 200), (100, 333)] {
        let got = share(Method::RoundRobin, age);
        assert!(got.abs_diff(wanted) <= 10, "after {age} s: {got}");
    }
    assert!(share(Method::LeastRequest, 0) < 120);
    assert!(share(Method::Random, 0) > 270, "as Istio: of no effect");
    let fast = WarmUp { aggression: 2000, ..warm_up };
    assert!(warmed(&fast, Duration::from_secs(25)) > warmed(&warm_up, Duration::from_secs(25)));
}

#[test]
fn a_subset_is_its_members() {
    let members = Arc::new([uid("b")].into());
    let only = Treatment { members: Some(members), ..Treatment::default() };
    assert_eq!(spread_of(&world(&THREE), &only, &Known::default(), &[]), [("b".to_owned(), 1000)].into());
    let none = Treatment { members: Some(Arc::default()), ..Treatment::default() };
    let spread = spread_of(&world(&THREE), &none, &Known::default(), &[]);
    assert_eq!(spread, [("NO_HEALTHY_ENDPOINT".to_owned(), 1000)].into());
}

#[test]
fn who_is_left_out_gets_nothing_until_too_few_are_left() {
    let world = world(&THREE);
    let watch = |least_healthy_percent| {
        let outliers = OutlierDetection { least_healthy_percent, ..OutlierDetection::default() };
        watching(method(Method::Random), outliers)
    };
    let two_out = Known::of(&[("a", 0, true, 9), ("b", 0, true, 9)]);
    assert_eq!(spread_of(&world, &watch(0), &two_out, &[]), [("c".to_owned(), 1000)].into());
    assert_eq!(spread_of(&world, &watch(50), &two_out, &[]).len(), 3, "a third is less than half");
    assert_eq!(
        spread_of(&world, &watch(0), &two_out, &["c"]),
        [("c".to_owned(), 1000)].into(),
        "rather twice the same"
    );
    let all_out = Known::of(&[("a", 0, true, 9), ("b", 0, true, 9), ("c", 0, true, 9)]);
    assert_eq!(spread_of(&world, &watch(0), &all_out, &[]), [("ENDPOINTS_EJECTED".to_owned(), 1000)].into());
    assert_eq!(spread_of(&world, &method(Method::Random), &all_out, &[]).len(), 3, "nobody watches");
}

#[test]
fn near_endpoints_come_first_and_the_next_take_what_they_cannot() {
    let world =
        world(&[("near-1", "r1/z1"), ("near-2", "r1/z1"), ("zone", "r1/z2"), ("stand-in", "r3/z1"), ("far", "r2/z1")]);
    let pairs = vec![("r1".into(), "r3".into())];
    let treatment = watching(local(LocalityPolicy::Failover(pairs)), OutlierDetection::default());
    let names = |out: &[&str]| {
        let known: Vec<(&str, u64, bool, u64)> = out.iter().map(|name| (*name, 0, true, 9)).collect();
        spread_of(&world, &treatment, &Known::of(&known), &[])
    };
    assert!(names(&[]).keys().eq(["near-1", "near-2"]));
    let half = names(&["near-1"]);
    assert!(near(half.get("near-2"), 700) && near(half.get("zone"), 300), "half of them, times 1.4: {half:?}");
    assert!(names(&["near-1", "near-2"]).keys().eq(["zone"]));
    assert!(names(&["near-1", "near-2", "zone"]).keys().eq(["stand-in"]));
    assert!(names(&["near-1", "near-2", "zone", "stand-in"]).keys().eq(["far"]));
    let written_nothing = watching(method(Method::Random), OutlierDetection::default());
    assert!(spread_of(&world, &written_nothing, &Known::default(), &[]).keys().eq(["near-1", "near-2"]));
    let unwatched = local(LocalityPolicy::Failover(Vec::new()));
    assert_eq!(spread_of(&world, &unwatched, &Known::default(), &[]).len(), 5, "as Istio: of no effect alone");
    let ignored = watching(local(LocalityPolicy::Ignored), OutlierDetection::default());
    assert_eq!(spread_of(&world, &ignored, &Known::default(), &[]).len(), 5);
}

#[test]
fn what_is_in_common_counts_from_the_first_on() {
    let world = world(&[("same", "r1/z1"), ("zone", "r2/z1"), ("region", "r1/z2")]);
    let treatment = local(LocalityPolicy::Priority(vec![RoutingScope::Region, RoutingScope::Zone]));
    let names = |tried: &[&str]| -> Vec<String> {
        spread_of(&world, &treatment, &Known::default(), tried).into_keys().collect()
    };
    assert_eq!(names(&[]), ["same"]);
    assert_eq!(names(&["same"]), ["region"], "the zone alone is none in common");
    assert_eq!(names(&["same", "region"]), ["zone"]);
}

#[test]
fn shares_by_place_are_kept_and_places_without_endpoints_take_none() {
    let place = |text: &str| {
        let mut parts = text.split('/').map(|part| (part != "*").then(|| part.into()));
        let mut next = || parts.next().flatten();
        Place { region: next(), zone: next(), subzone: next() }
    };
    let rule = |from: &str, to: &[(&str, u32)]| Distribution {
        from: place(from),
        to: to.iter().map(|(text, weight)| (place(text), *weight)).collect(),
    };
    let rules = vec![rule("r9/*", &[("r1/z1", 1)]), rule("r1/*", &[("r1/z1/*", 80), ("r1/z2/*", 20), ("r5/*", 100)])];
    let world = world(&[("a", "r1/z1"), ("b", "r1/z2"), ("c", "r2/z1")]);
    let treatment = local(LocalityPolicy::Distribute(rules));
    let spread = spread_of(&world, &treatment, &Known::default(), &[]);
    assert!(near(spread.get("a"), 800) && near(spread.get("b"), 200) && spread.len() == 2, "{spread:?}");
    let elsewhere = local(LocalityPolicy::Distribute(vec![rule("r9/*", &[("r1/z1", 1)])]));
    assert_eq!(spread_of(&world, &elsewhere, &Known::default(), &[]).len(), 3, "it is for others");
}

#[test]
fn weights_never_vanish() {
    let warm_up = WarmUp { duration: Duration::from_secs(1), least_percent: 0, aggression: 1 };
    assert_eq!(warmed(&warm_up, Duration::ZERO), 1);
}
