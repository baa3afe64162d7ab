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
    Progress { addresses, ready, problem: None }
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
    gateway.spec.infrastructure =
        serde_json::from_value(json!({"parametersRef": {"group": "", "kind": "ConfigMap", "name": "x"}})).unwrap();
    let status = gateway_status(&gateway, &progress(true, 1), &Mesh::default(), "t").unwrap();
    assert!(status.conditions[0].message.contains("parametersRef is not supported"));
}

#[test]
fn a_class_is_accepted_once() {
    let mut class = GatewayClass::default();
    class.status = class_status(&class, "t1");
    assert_eq!(told(&class.status.as_ref().unwrap().conditions), [("Accepted", "True", "Accepted")]);
    assert_eq!(class_status(&class, "t2"), None);
}
