use stillmesh_core::model::Action;
use stillmesh_core::snapshot::Change;

use super::*;
use crate::delta::fixtures::{policy, policy_removed, service, uid, workload, workload_removed};
use crate::proto::google::rpc::Status;

/// A catalog with one session on it.
struct World {
    catalog: Catalog,
    session: Session,
    now: Instant,
}

impl World {
    fn new(changes: &[Change]) -> Self {
        let mut catalog = Catalog::default();
        catalog.apply(changes);
        let now = Instant::now();
        Self { catalog, session: Session::new("n1", now), now }
    }

    /// Both types, all names, everything acknowledged.
    fn settled(changes: &[Change]) -> Self {
        let mut world = Self::new(changes);
        world.ask(ResourceType::Authorization, |_| {});
        world.ask(ResourceType::Address, |_| {});
        while let Some(response) = world.next() {
            world.ack(&response);
        }
        world
    }

    fn ask(&mut self, kind: ResourceType, change: impl FnOnce(&mut DeltaDiscoveryRequest)) -> Event {
        let mut request = DeltaDiscoveryRequest { type_url: kind.url().into(), ..DeltaDiscoveryRequest::default() };
        change(&mut request);
        self.session.request(&self.catalog, request).unwrap()
    }

    fn subscribe(&mut self, names: &[&str]) -> Event {
        let names = names.iter().map(ToString::to_string).collect();
        self.ask(ResourceType::Address, |request| request.resource_names_subscribe = names)
    }

    fn on_demand(changes: &[Change]) -> Self {
        let mut world = Self::new(changes);
        world.ask(ResourceType::Authorization, |_| {});
        let policies = world.next().unwrap();
        world.ack(&policies);
        world.ask(ResourceType::Address, |request| {
            request.resource_names_subscribe = vec!["*".into()];
            request.resource_names_unsubscribe = vec!["*".into()];
        });
        world
    }

    fn publish(&mut self, changes: &[Change]) -> bool {
        let touched = self.catalog.apply(changes);
        let generation = self.catalog.generation();
        touched.iter().fold(false, |any, touched| self.session.touch(touched, generation) | any)
    }

    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        self.session.next(&self.catalog, self.now)
    }

    fn ack(&mut self, response: &DeltaDiscoveryResponse) -> Event {
        let kind = ResourceType::from_url(&response.type_url).unwrap();
        let nonce = response.nonce.clone();
        self.ask(kind, |request| request.response_nonce = nonce)
    }
}

/// What a response says: its type, the names set, the names removed.
fn said(response: Option<DeltaDiscoveryResponse>) -> Option<(ResourceType, Vec<String>, Vec<String>)> {
    let response = response?;
    let kind = ResourceType::from_url(&response.type_url).unwrap();
    Some((kind, response.resources.into_iter().map(|one| one.name).collect(), response.removed_resources))
}

fn sets(kind: ResourceType, names: &[&str]) -> Option<(ResourceType, Vec<String>, Vec<String>)> {
    Some((kind, names.iter().map(ToString::to_string).collect(), Vec::new()))
}

fn removes(kind: ResourceType, names: &[&str]) -> Option<(ResourceType, Vec<String>, Vec<String>)> {
    Some((kind, Vec::new(), names.iter().map(ToString::to_string).collect()))
}

use ResourceType::{Address, Authorization};

#[test]
fn a_wildcard_gets_everything_once_with_versions_that_are_hashes_of_the_bytes() {
    let mut world = World::new(&[workload("a", 1, "n1", &[], &[]), service("s", 1)]);
    world.ask(Authorization, |_| {});
    world.ask(Address, |_| {});
    assert_eq!(said(world.next()), sets(Authorization, &[]), "empty, but it is owed");
    let all = world.next().unwrap();
    for resource in &all.resources {
        let any = resource.resource.as_ref().unwrap();
        assert_eq!(any.type_url, Address.url());
        assert_eq!(resource.version, format!("{:x}", twox_hash::XxHash64::oneshot(0, &any.value)));
        assert!(resource.aliases.is_empty());
    }
    assert_eq!(said(Some(all)), sets(Address, &[&uid("a"), "shop/s.shop.svc.cluster.local"]));
    assert_eq!(world.next(), None);
}

#[test]
fn how_large_the_next_response_is_is_known_before_it_is_made() {
    let mut world = World::new(&[workload("a", 1, "n1", &[], &[]), service("s", 1), policy("p", Action::Deny)]);
    let next = |world: &World| world.session.next_names(&world.catalog, world.now);
    world.ask(Address, |_| {});
    assert_eq!(next(&world), 0, "policies go first and are not asked for yet");
    world.ask(Authorization, |_| {});
    assert_eq!(next(&world), 1);
    let policies = world.next().unwrap();
    assert!(world.session.waits());
    assert_eq!(next(&world), 2);
    let addresses = world.next().unwrap();
    assert_eq!(next(&world), 0);
    world.ack(&policies);
    assert!(world.session.waits());
    world.ack(&addresses);
    assert!(!world.session.waits());
}

#[test]
fn only_what_changed_is_pushed() {
    let mut world = World::settled(&[workload("a", 1, "n1", &[], &[]), workload("b", 2, "n1", &[], &[])]);
    assert!(!world.publish(&[workload("a", 1, "n1", &[], &[])]), "equal");
    assert_eq!(world.next(), None);
    assert!(world.publish(&[workload("a", 9, "n1", &[], &[]), workload_removed("b"), workload_removed("never")]));
    let (kind, set, removed) = said(world.next()).unwrap();
    assert_eq!((kind, set, removed), (Address, vec![uid("a")], vec![uid("b")]));
}

#[test]
fn one_response_per_type_is_outstanding_and_changes_coalesce_meanwhile() {
    let mut world = World::settled(&[]);
    world.publish(&[workload("a", 1, "n1", &[], &[])]);
    let first = world.next().unwrap();
    world.publish(&[workload("a", 2, "n1", &[], &[])]);
    world.publish(&[workload("b", 3, "n1", &[], &[])]);
    world.publish(&[workload("a", 4, "n1", &[], &[]), workload_removed("b"), workload("c", 5, "n1", &[], &[])]);
    assert_eq!(world.next(), None, "the first is not acknowledged");
    assert_eq!(world.ack(&first), Event::Acked(Address, Some(1)));
    let second = world.next().unwrap();
    assert_eq!(said(Some(second.clone())).unwrap(), (Address, vec![uid("a"), uid("c")], vec![uid("b")]));
    assert_eq!(world.ack(&second), Event::Acked(Address, Some(4)));
    assert_eq!(world.next(), None);
}

#[test]
fn a_stale_nonce_answers_nothing() {
    let mut world = World::settled(&[]);
    world.publish(&[workload("a", 1, "n1", &[], &[])]);
    let response = world.next().unwrap();
    assert_eq!(world.ask(Address, |request| request.response_nonce = "0".into()), Event::Expired(Address));
    assert_eq!(world.next(), None);
    assert_eq!(world.ack(&response), Event::Acked(Address, Some(1)));
    assert_eq!(world.ack(&response), Event::Expired(Address), "twice");
}

#[test]
fn a_nack_is_read_by_resource_and_nothing_is_sent_again_until_it_changes() {
    let mut world = World::settled(&[]);
    world.publish(&[workload("a", 1, "n1", &[], &[])]);
    let nonce = world.next().unwrap().nonce;
    let message = format!("{}: uid: empty; really; shop/x: no", uid("a"));
    let event = world.ask(Address, |request| {
        request.response_nonce = nonce;
        request.error_detail = Some(Status { code: 3, message, details: Vec::new() });
    });
    let rejected = |name: String, reason: &str| Rejected { name, reason: reason.into() };
    let expected = vec![rejected(uid("a"), "uid: empty; really"), rejected("shop/x".into(), "no")];
    assert_eq!(event, Event::Nacked(Address, Some(1), expected));
    assert_eq!(world.next(), None);
    world.publish(&[workload("a", 2, "n1", &[], &[])]);
    assert_eq!(said(world.next()), sets(Address, &[&uid("a")]));
}

#[test]
fn after_a_reconnect_equal_versions_are_skipped_and_what_vanished_is_removed() {
    let mut world = World::new(&[workload("same", 1, "n1", &[], &[]), workload("other", 2, "n1", &[], &[])]);
    let same = world.catalog.entries(Address)[&*uid("same")].version.to_string();
    world.ask(Authorization, |request| request.initial_resource_versions = [("shop/p".into(), "1".into())].into());
    world.ask(Address, |request| {
        request.initial_resource_versions =
            [(uid("same"), same), (uid("other"), "old".into()), (uid("gone"), "old".into())].into();
    });
    // The removal of the policy waits for the addresses.
    assert_eq!(said(world.next()), sets(Authorization, &[]));
    let addresses = world.next().unwrap();
    assert_eq!(said(Some(addresses)).unwrap(), (Address, vec![uid("other")], vec![uid("gone")]));
}

#[test]
fn policies_go_before_the_workloads_that_come_with_them() {
    let mut world = World::settled(&[workload("a", 1, "n1", &[], &[])]);
    world.publish(&[workload("a", 1, "n1", &["p"], &[]), policy("p", Action::Deny)]);
    assert_eq!(said(world.next()), sets(Authorization, &["shop/p"]));
    assert_eq!(said(world.next()), sets(Address, &[&uid("a")]));
}

#[test]
fn workloads_wait_for_policies_that_wait_for_an_acknowledgement() {
    let mut world = World::settled(&[workload("a", 1, "n1", &[], &[])]);
    world.publish(&[policy("p", Action::Deny)]);
    let first = world.next().unwrap();
    world.publish(&[policy("q", Action::Deny), workload("a", 1, "n1", &["q"], &[])]);
    assert_eq!(world.next(), None, "q cannot go yet, so neither can a");
    world.ack(&first);
    assert_eq!(said(world.next()), sets(Authorization, &["shop/q"]));
    assert_eq!(said(world.next()), sets(Address, &[&uid("a")]));
}

#[test]
fn removals_of_policies_go_after_the_workloads_that_named_them() {
    let mut world = World::settled(&[workload("a", 1, "n1", &["p"], &[]), policy("p", Action::Deny)]);
    world.publish(&[policy_removed("p"), workload("a", 1, "n1", &[], &[])]);
    assert_eq!(said(world.next()), sets(Address, &[&uid("a")]));
    let removal = world.next().unwrap();
    assert_eq!(said(Some(removal.clone())), removes(Authorization, &["shop/p"]));
    assert_eq!(world.ack(&removal), Event::Acked(Authorization, Some(2)));
}

#[test]
fn a_response_that_puts_a_removal_off_is_not_a_complete_generation() {
    let mut world = World::settled(&[workload("a", 1, "n1", &["p"], &[]), policy("p", Action::Deny)]);
    world.publish(&[policy_removed("p"), policy("q", Action::Deny), workload("a", 1, "n1", &["q"], &[])]);
    let set = world.next().unwrap();
    assert_eq!(said(Some(set.clone())), sets(Authorization, &["shop/q"]));
    assert_eq!(said(world.next()), sets(Address, &[&uid("a")]));
    assert_eq!(world.next(), None, "the removal waits for the acknowledgement of q");
    assert_eq!(world.ack(&set), Event::Acked(Authorization, None));
    assert_eq!(said(world.next()), removes(Authorization, &["shop/p"]));
}

#[test]
fn the_first_addresses_wait_a_moment_for_the_policies_to_be_asked_for() {
    let mut world = World::new(&[workload("a", 1, "n1", &["p"], &[]), policy("p", Action::Deny)]);
    world.ask(Address, |_| {});
    assert_eq!(world.next(), None);
    assert_eq!(world.session.deadline(), Some(world.now + GATHER));
    world.ask(Authorization, |_| {});
    assert_eq!(said(world.next()), sets(Authorization, &["shop/p"]));
    assert_eq!(said(world.next()), sets(Address, &[&uid("a")]));

    let mut alone = World::new(&[workload("a", 1, "n1", &[], &[])]);
    alone.ask(Address, |_| {});
    alone.now += GATHER;
    assert_eq!(said(alone.next()), sets(Address, &[&uid("a")]));
}

#[test]
fn a_node_that_does_not_acknowledge_is_given_up() {
    let mut world = World::settled(&[]);
    assert_eq!(world.session.deadline(), None);
    world.publish(&[workload("a", 1, "n1", &[], &[])]);
    world.next().unwrap();
    let deadline = world.now + ACK_DEADLINE;
    assert_eq!(world.session.deadline(), Some(deadline));
    assert_eq!(world.session.check(deadline - Duration::from_millis(1)), Ok(()));
    assert_eq!(world.session.check(deadline), Err(SessionError::Silent));
}

#[test]
fn subscribing_and_unsubscribing_everything_means_nothing_but_the_own_pods() {
    let mut world = World::on_demand(&[workload("here", 1, "n1", &[], &[]), workload("there", 2, "n2", &[], &[])]);
    assert_eq!(said(world.next()), sets(Address, &[&uid("here")]));

    let mut elsewhere = World::on_demand(&[workload("there", 2, "n2", &[], &[])]);
    assert_eq!(elsewhere.next(), None);
    assert!(!elsewhere.publish(&[workload("there", 3, "n2", &[], &[])]));
    assert!(elsewhere.publish(&[workload("here", 4, "n1", &[], &[])]));
    assert_eq!(said(elsewhere.next()), sets(Address, &[&uid("here")]));
}

#[test]
fn asked_by_address_a_resource_comes_with_its_aliases_and_stays_subscribed() {
    let mut world = World::on_demand(&[workload("a", 7, "n2", &[], &[])]);
    world.subscribe(&["/10.244.0.7"]);
    let answer = world.next().unwrap();
    assert_eq!(answer.resources[0].name, uid("a"));
    assert_eq!(answer.resources[0].aliases, ["/10.244.0.7"]);
    world.ack(&answer);
    assert!(world.publish(&[workload_removed("a")]));
    let removal = world.next().unwrap();
    assert_eq!(said(Some(removal.clone())), removes(Address, &[&uid("a")]));
    world.ack(&removal);
    assert!(world.publish(&[workload("again", 7, "n2", &[], &[])]));
    assert_eq!(said(world.next()), sets(Address, &[&uid("again")]));
}

#[test]
fn asked_for_a_service_its_endpoints_come_too_now_and_later() {
    let changes = [service("s", 1), workload("a", 2, "n2", &[], &["s"]), workload("b", 3, "n2", &[], &[])];
    let mut world = World::on_demand(&changes);
    world.subscribe(&["/10.96.0.1"]);
    let answer = world.next().unwrap();
    assert_eq!(said(Some(answer.clone())), sets(Address, &[&uid("a"), "shop/s.shop.svc.cluster.local"]));
    world.ack(&answer);
    assert!(world.publish(&[workload("b", 3, "n2", &[], &["s"])]));
    let joined = world.next().unwrap();
    assert_eq!(said(Some(joined.clone())), sets(Address, &[&uid("b")]));
    world.ack(&joined);
    assert!(world.publish(&[workload("b", 3, "n2", &[], &[])]), "it left: the node must know");
}

#[test]
fn a_name_that_nothing_has_is_answered_as_removed_and_pushed_when_it_appears() {
    let mut world = World::on_demand(&[]);
    world.subscribe(&["/10.244.0.9"]);
    let answer = world.next().unwrap();
    assert_eq!(said(Some(answer.clone())), removes(Address, &["/10.244.0.9"]));
    world.ack(&answer);
    assert!(world.publish(&[workload("a", 9, "n2", &[], &[])]));
    assert_eq!(said(world.next()), sets(Address, &[&uid("a")]));
}

#[test]
fn an_unsubscribed_name_is_not_pushed_and_asking_again_is_answered_again() {
    let mut world = World::on_demand(&[workload("a", 9, "n2", &[], &[])]);
    world.subscribe(&[&uid("a")]);
    let first = world.next().unwrap();
    world.ack(&first);
    world.subscribe(&[&uid("a")]);
    let again = world.next().unwrap();
    assert_eq!(said(Some(again.clone())), sets(Address, &[&uid("a")]));
    world.ack(&again);
    world.ask(Address, |request| request.resource_names_unsubscribe = vec![uid("a")]);
    assert!(!world.publish(&[workload("a", 10, "n2", &[], &[])]));
}

#[test]
fn an_on_demand_node_that_reconnects_gets_what_changed_of_what_it_holds() {
    let mut world = World::new(&[workload("same", 1, "n2", &[], &[]), workload("other", 2, "n2", &[], &[])]);
    let same = world.catalog.entries(Address)[&*uid("same")].version.to_string();
    world.ask(Authorization, |_| {});
    let policies = world.next().unwrap();
    world.ack(&policies);
    world.ask(Address, |request| {
        request.resource_names_subscribe = vec!["*".into()];
        request.resource_names_unsubscribe = vec!["*".into()];
        request.initial_resource_versions =
            [(uid("same"), same), (uid("other"), "old".into()), (uid("gone"), "old".into())].into();
    });
    let answer = said(world.next()).unwrap();
    assert_eq!(answer, (Address, vec![uid("other")], vec![uid("gone")]));
}

#[test]
fn leaving_the_wildcard_leaves_only_the_names_asked_for() {
    let mut world = World::settled(&[workload("a", 1, "n2", &[], &[]), workload("b", 2, "n2", &[], &[])]);
    world.subscribe(&[&uid("a")]);
    let answer = world.next().unwrap();
    world.publish(&[workload("b", 3, "n2", &[], &[])]);
    world.ask(Address, |request| request.resource_names_unsubscribe = vec!["*".into()]);
    world.ack(&answer);
    assert_eq!(world.next(), None, "b is nobody's any more");
    assert!(!world.publish(&[workload("b", 4, "n2", &[], &[])]));
    assert!(world.publish(&[workload("a", 5, "n2", &[], &[])]));
}

#[test]
fn types_that_are_not_served_are_ignored_and_too_many_names_end_the_session() {
    let mut world = World::settled(&[]);
    let other = DeltaDiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..Default::default() };
    assert_eq!(world.session.request(&world.catalog, other), Ok(Event::None));
    assert_eq!(world.next(), None);
    let many = DeltaDiscoveryRequest {
        type_url: Address.url().into(),
        resource_names_subscribe: (0..=MAX_NAMES).map(|name| name.to_string()).collect(),
        ..Default::default()
    };
    assert_eq!(world.session.request(&world.catalog, many), Err(SessionError::TooManyNames));
}

#[test]
fn what_is_in_force_is_what_was_acknowledged_of_every_type() {
    let mut world = World::settled(&[]);
    assert_eq!(world.session.standing().behind, None);
    assert_eq!(world.session.standing().asked, [ResourceType::Authorization, ResourceType::Address]);
    world.session.take_confirmed();
    world.publish(&[policy("p", Action::Deny), workload("a", 1, "n1", &["p"], &[])]);
    world.publish(&[workload("b", 2, "n1", &[], &[])]);
    assert_eq!(world.session.standing().behind, Some(1));
    let (policies, addresses) = (world.next().unwrap(), world.next().unwrap());
    world.publish(&[workload("c", 3, "n1", &[], &[])]);
    assert_eq!(world.session.standing().behind, Some(1), "sent is not in force");
    world.ack(&policies);
    assert_eq!((world.session.standing().behind, world.session.take_confirmed()), (Some(1), None));
    world.ack(&addresses);
    assert_eq!((world.session.standing().behind, world.session.take_confirmed()), (Some(3), Some(1..3)));
    let rest = world.next().unwrap();
    world.ack(&rest);
    assert_eq!((world.session.standing().behind, world.session.take_confirmed()), (None, Some(3..4)));
    world.publish(&[workload("c", 3, "n1", &[], &[])]);
    assert_eq!(world.session.standing().behind, None, "nothing has changed");
}

#[test]
fn a_removal_that_is_put_off_is_not_in_force_yet() {
    let mut world = World::settled(&[policy("p", Action::Deny), workload("a", 1, "n1", &["p"], &[])]);
    world.publish(&[policy_removed("p"), policy("q", Action::Deny), workload("a", 1, "n1", &["q"], &[])]);
    let (policies, addresses) = (world.next().unwrap(), world.next().unwrap());
    world.ack(&policies);
    world.ack(&addresses);
    assert_eq!(world.session.standing().behind, Some(2));
    let removal = world.next().unwrap();
    world.ack(&removal);
    assert_eq!(world.session.standing().behind, None);
}

#[test]
fn what_a_node_refuses_is_refused_until_another_version_comes() {
    let mut world = World::settled(&[]);
    let nack = |world: &mut World, response: &DeltaDiscoveryResponse, message: &str| {
        let nonce = response.nonce.clone();
        let kind = ResourceType::from_url(&response.type_url).unwrap();
        world.ask(kind, |request| {
            request.response_nonce = nonce;
            request.error_detail = Some(Status { code: 3, message: message.into(), details: Vec::new() });
        })
    };
    world.publish(&[policy("p", Action::Deny), policy("q", Action::Deny)]);
    let policies = world.next().unwrap();
    nack(&mut world, &policies, "shop/p: odd");
    let refused = world.session.standing();
    assert_eq!(refused.behind, None, "the rest of it is in force");
    assert_eq!(refused.refused, BTreeMap::from([((ResourceType::Authorization, "shop/p".into()), "odd".into())]));
    world.publish(&[policy("q", Action::Allow)]);
    let other = world.next().unwrap();
    world.ack(&other);
    assert_eq!(world.session.standing().refused.len(), 1, "p is as it was");
    world.publish(&[policy("p", Action::Allow)]);
    assert_eq!((world.session.standing().refused.len(), world.session.standing().behind), (0, Some(3)));
    let mended = world.next().unwrap();
    // A newer one is on its way: what is said is about the older.
    world.publish(&[policy("p", Action::Deny)]);
    nack(&mut world, &mended, "shop/p: odd");
    assert_eq!((world.session.standing().refused.len(), world.session.standing().behind), (0, Some(4)));
    let last = world.next().unwrap();
    nack(&mut world, &last, "nobody knows what");
    assert_eq!(world.session.standing().behind, Some(4), "no name: all of it is in doubt");
}
