use serde_json::json;

use super::*;

fn gateway() -> Gateway {
    serde_json::from_value(json!({
        "metadata": {"name": "w", "namespace": "shop", "generation": 3},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
    }))
    .unwrap()
}

fn told(status: &[StatusCondition]) -> Vec<(&str, &str, &str)> {
    status.iter().map(|one| (one.type_.as_str(), one.status.as_str(), one.reason.as_str())).collect()
}

fn progress(address: bool, ready: u32) -> Progress {
    let addresses = if address { vec!["10.96.0.7".parse().unwrap()] } else { Vec::new() };
    Progress { addresses, ready, problem: None, parameters: None }
}

#[test]
fn a_gateway_is_programmed_once_it_has_an_address_and_a_pod() {
    let mut gateway = gateway();
    let mesh = Mesh::default();
    for (progress, programmed) in [
        (progress(false, 0), ("Programmed", "False", "AddressNotAssigned")),
        (progress(true, 0), ("Programmed", "False", "Pending")),
        (progress(true, 2), ("Programmed", "True", "Programmed")),
        (Progress { problem: Some("x".into()), ..progress(true, 2) }, ("Programmed", "False", "Invalid")),
    ] {
        let status = gateway_status(&gateway, &progress, &mesh, "t").unwrap();
        assert_eq!(told(&status.conditions), [("Accepted", "True", "Accepted"), programmed]);
        let addresses: Vec<&str> = status.addresses.iter().map(|one| one.value.as_str()).collect();
        let expected: &[&str] =
            if progress.addresses.is_empty() { &[] } else { &["w.shop.svc.cluster.local", "10.96.0.7"] };
        assert_eq!(addresses, expected);
        gateway.status = Some(status);
        assert_eq!(gateway_status(&gateway, &progress, &mesh, "later"), None, "nothing has changed");
    }
}

#[test]
fn times_move_only_with_what_they_are_about() {
    let mut gateway = gateway();
    let mesh = Mesh::default();
    gateway.status = gateway_status(&gateway, &progress(true, 0), &mesh, "t1");
    let status = gateway_status(&gateway, &progress(true, 1), &mesh, "t2").unwrap();
    let times: Vec<_> = status.conditions.iter().map(|one| one.last_transition_time.as_deref().unwrap()).collect();
    assert_eq!(times, ["t1", "t2"]);
    let of_listener = |status: &GatewayStatus| status.listeners[0].conditions[0].last_transition_time.clone();
    assert_eq!(of_listener(&status).as_deref(), Some("t1"));
    gateway.metadata.generation = Some(4);
    let status = gateway_status(&gateway, &progress(true, 0), &mesh, "t3").unwrap();
    assert!(status.conditions.iter().all(|one| one.observed_generation == Some(4)));
    assert_eq!(status.conditions[0].last_transition_time.as_deref(), Some("t1"));
}

#[test]
fn what_does_not_fit_a_waypoint_is_said() {
    let mut gateway = gateway();
    gateway.spec.listeners[0].protocol = "HTTP".into();
    let status = gateway_status(&gateway, &progress(true, 1), &Mesh::default(), "t").unwrap();
    assert_eq!(
        told(&status.conditions),
        [("Accepted", "False", "ListenersNotValid"), ("Programmed", "False", "Invalid")]
    );
    assert_eq!(told(&status.listeners[0].conditions)[0], ("Accepted", "False", "UnsupportedProtocol"));
    gateway.spec.listeners[0].protocol = "HBONE".into();
    gateway.spec.addresses = vec![json!({"value": "10.0.0.1"})];
    let status = gateway_status(&gateway, &progress(true, 1), &Mesh::default(), "t").unwrap();
    assert_eq!(told(&status.conditions)[0], ("Accepted", "False", "UnsupportedAddress"));
}

#[test]
fn a_class_is_accepted_once() {
    let mut class = GatewayClass::default();
    class.status = class_status(&class, "t1");
    let features: Vec<&str> =
        class.status.as_ref().unwrap().supported_features.iter().map(|one| one.name.as_str()).collect();
    assert!(features.contains(&"Mesh") && features.is_sorted(), "{features:?}");
    assert_eq!(told(&class.status.as_ref().unwrap().conditions), [("Accepted", "True", "Accepted")]);
    assert_eq!(class_status(&class, "t2"), None);
}

#[test]
fn what_is_said_to_parents_leaves_what_others_say_and_goes_with_the_parent() {
    let service = |name: &str| ParentRef {
        group: Some(String::new()),
        kind: Some("Service".into()),
        name: name.into(),
        ..ParentRef::default()
    };
    let entry = |parent: ParentRef, controller: &str| RouteParentStatus {
        parent_ref: parent,
        controller_name: controller.into(),
        conditions: vec![StatusCondition { type_: "Odd".into(), status: "True".into(), ..StatusCondition::default() }],
    };
    let a_gateway = ParentRef { name: "ingress".into(), ..ParentRef::default() };
    let before = [entry(service("a"), "x.example/y"), entry(a_gateway, ROUTES), entry(service("gone"), ROUTES)];
    let accepted = Condition::accepted("Accepted", "x".into());
    let to = |parent: ParentRef, conditions: Vec<Condition>| Said { parent, controller: ROUTES, conditions };
    let said = |condition: &Condition| vec![to(service("a"), vec![condition.clone()]), to(service("a"), Vec::new())];
    let first = parents(&before, &said(&accepted), Some(1), "t1").unwrap();
    assert_eq!(first[..2], before[..2]);
    assert_eq!((first.len(), &first[2].parent_ref, first[2].controller_name.as_str()), (3, &service("a"), ROUTES));
    let told = |status: &[RouteParentStatus]| {
        let one = status[2].conditions[0].clone();
        (one.status, one.last_transition_time.unwrap(), one.observed_generation.unwrap(), status[2].conditions.len())
    };
    assert_eq!(told(&first), ("True".into(), "t1".into(), 1, 1));
    assert_eq!(parents(&first, &said(&accepted), Some(1), "t2"), None);
    let mut turned = first.clone();
    turned.reverse();
    assert_eq!(parents(&turned, &said(&accepted), Some(1), "t2"), None, "order means nothing");
    let newer = parents(&first, &said(&accepted), Some(2), "t2").unwrap();
    assert_eq!(told(&newer), ("True".into(), "t1".into(), 2, 1));
    let refused = Condition::not_accepted("NoMatchingParent", "y".into());
    assert_eq!(told(&parents(&newer, &said(&refused), Some(2), "t3").unwrap()), ("False".into(), "t3".into(), 2, 1));
    assert_eq!(parents(&first, &[], Some(2), "t3").unwrap(), before[..2]);
    assert_eq!(parents(&before[..2], &[], Some(2), "t3"), None);
}

#[test]
fn what_is_said_to_waypoints_is_said_as_who_runs_them_and_others_gateways_are_left_alone() {
    let gateway = |name: &str| ParentRef { name: name.into(), ..ParentRef::default() };
    let entry = |parent: ParentRef, controller: &str| RouteParentStatus {
        parent_ref: parent,
        controller_name: controller.into(),
        conditions: Vec::new(),
    };
    let controller = WAYPOINTS[0].controller;
    let before = [entry(gateway("w"), ROUTES), entry(gateway("gone"), controller), entry(gateway("w"), "x.example/y")];
    let refused = Condition::not_accepted("NotAllowedByListeners", "x".into());
    let said = [Said { parent: gateway("w"), controller, conditions: vec![refused] }];
    let after = parents(&before, &said, Some(1), "t1").unwrap();
    assert_eq!(after[..2], [before[0].clone(), before[2].clone()]);
    assert_eq!((after.len(), after[2].controller_name.as_str(), &after[2].parent_ref), (3, controller, &gateway("w")));
    assert_eq!(told(&after[2].conditions), [("Accepted", "False", "NotAllowedByListeners")]);
    assert_eq!(parents(&after, &said, Some(1), "t2"), None);
}
