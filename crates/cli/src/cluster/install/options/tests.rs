use super::*;

fn adapted(namespace: &str, settings: &[&str]) -> Bundle {
    let mut bundle = Bundle::own().unwrap();
    let settings: Vec<Setting> = settings.iter().map(|text| setting(text).unwrap()).collect();
    adapt(&mut bundle, namespace, &settings).unwrap();
    bundle
}

fn find<'a>(bundle: &'a Bundle, kind: &str, name: &str) -> &'a Value {
    bundle.objects.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name).unwrap()
}

fn env(object: &Value, key: &str) -> Option<String> {
    env_value(&object["spec"]["template"]["spec"]["containers"][0], key)
}

#[test]
fn what_is_unknown_is_sent_to_helm_with_the_value_named() {
    let error = setting("controller.resources.limits.memory=2Gi").unwrap_err();
    assert!(
        error.contains("helm install") && error.contains("--set controller.resources.limits.memory=2Gi"),
        "{error}"
    );
    assert!(setting("controller.replicas").unwrap_err().contains("key=value"));
}

#[test]
fn a_wrong_value_is_refused_with_what_is_accepted() {
    for (wrong, accepted) in [
        ("controller.replicas=many", "a number"),
        ("compat.istio=yes", "true or false"),
        ("cni.binDir=opt/cni", "absolute path"),
        ("cni.binDir=/opt/../etc", "absolute path"),
        ("image.pullPolicy=Sometimes", "Always or IfNotPresent or Never"),
        ("rootNamespace=A_b", "lower case"),
        ("trustDomain=", "a text"),
    ] {
        let error = setting(wrong).unwrap_err();
        assert!(error.contains(accepted), "{error}");
    }
}

#[test]
fn the_image_is_set_for_every_part() {
    for (settings, image) in [
        (vec!["image=localhost/stillmesh:dev"], "localhost/stillmesh:dev"),
        (vec!["image.repository=host:5000/x", "image.tag=y"], "host:5000/x:y"),
        (vec!["image.repository=host:5000/x"], concat!("host:5000/x:", env!("CARGO_PKG_VERSION"))),
    ] {
        let bundle = adapted(RENDERED_NAMESPACE, &settings);
        for (kind, name) in [("Deployment", CONTROLLER), ("DaemonSet", "stillmesh-cni"), ("DaemonSet", "ztunnel")] {
            let container = &find(&bundle, kind, name)["spec"]["template"]["spec"]["containers"][0];
            assert_eq!(container["image"], image, "{kind} {name}");
        }
        let controller = find(&bundle, "Deployment", CONTROLLER);
        assert_eq!(env(controller, "WAYPOINT_IMAGE").as_deref(), Some(image), "waypoints have the same");
    }
    let both: Vec<Setting> = ["image=a:b", "image.tag=c"].map(|text| setting(text).unwrap()).into();
    assert!(adapt(&mut Bundle::own().unwrap(), "m", &both).is_err());
}

#[test]
fn another_namespace_leaves_no_trace_of_the_rendered_one() {
    let bundle = adapted("elsewhere", &[]);
    for object in &bundle.objects {
        let text = object.to_string();
        assert!(!text.contains(RENDERED_NAMESPACE), "{}: {text}", super::super::bundle::title(object));
    }
    find(&bundle, "Namespace", "elsewhere");
    let tunnel = find(&bundle, "DaemonSet", "ztunnel");
    assert_eq!(env(tunnel, "XDS_ADDRESS").as_deref(), Some("https://stillmesh-controller.elsewhere.svc:15012"));
}

#[test]
fn a_revision_has_names_of_its_own_and_the_tunnels_ask_it() {
    let bundle = adapted(RENDERED_NAMESPACE, &["revision=next"]);
    let controller = find(&bundle, "Deployment", "stillmesh-controller-next");
    assert_eq!(env(controller, "REVISION").as_deref(), Some("next"));
    assert_eq!(controller["spec"]["selector"]["matchLabels"]["istio.io/rev"], "next");
    assert_eq!(controller["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"], CONTROLLER);
    assert_eq!(controller["spec"]["template"]["spec"]["serviceAccountName"], "stillmesh-controller-next");
    let role = find(&bundle, "Role", "stillmesh-controller-next")["rules"].to_string();
    assert!(role.contains(r#"["stillmesh-leader","stillmesh-leader-next"]"#), "{role}");
    let binding = find(&bundle, "ClusterRoleBinding", "stillmesh-controller-next");
    assert_eq!(binding["roleRef"]["name"], "stillmesh-controller-next");
    assert_eq!(binding["subjects"][0]["name"], "stillmesh-controller-next");
    let webhook = find(&bundle, "ValidatingWebhookConfiguration", "stillmesh-validator-next");
    assert_eq!(webhook["webhooks"][0]["clientConfig"]["service"]["name"], "stillmesh-controller-next");
    let tunnel = find(&bundle, "DaemonSet", "ztunnel");
    assert_eq!(
        env(tunnel, "XDS_ADDRESS").as_deref(),
        Some("https://stillmesh-controller-next.stillmesh-system.svc:15012")
    );
}

#[test]
fn parts_can_be_left_out() {
    let bundle = adapted(RENDERED_NAMESPACE, &["cni.enabled=false", "webhook.enabled=false", "crds.enabled=false"]);
    assert!(!bundle.groups().iter().any(|group| matches!(group, Group::Agent | Group::Webhook | Group::Definitions)));
    assert!(!bundle.objects.iter().any(|one| label(one, "app.kubernetes.io/name") == Some("stillmesh-cni")));
}

#[test]
fn istios_names_are_added_beside_ours() {
    let bundle = adapted(RENDERED_NAMESPACE, &["compat.istio=true"]);
    let service = find(&bundle, "Service", "istiod");
    assert_eq!(service["spec"]["selector"]["app.kubernetes.io/name"], CONTROLLER);
    find(&bundle, "Service", CONTROLLER);
    let controller = find(&bundle, "Deployment", CONTROLLER);
    assert_eq!(label(controller, "app"), Some("istiod"));
    assert_eq!(env(controller, TRUSTED).as_deref(), Some("stillmesh-system/ztunnel,istio-system/ztunnel"));
    let root = adapted("roots", &["compat.istio=true", "rootNamespace=roots"]);
    assert_eq!(env(find(&root, "Deployment", CONTROLLER), TRUSTED).as_deref(), Some("roots/ztunnel"));
}

#[test]
fn directories_of_the_nodes_are_where_the_agent_looks_for_them() {
    let bundle = adapted(RENDERED_NAMESPACE, &["cni.binDir=/var/lib/rancher/k3s/data/cni"]);
    let volumes = &find(&bundle, "DaemonSet", "stillmesh-cni")["spec"]["template"]["spec"]["volumes"];
    let paths: Vec<&str> =
        volumes.as_array().unwrap().iter().filter_map(|one| one["hostPath"]["path"].as_str()).collect();
    assert!(paths.contains(&"/var/lib/rancher/k3s/data/cni") && paths.contains(&"/etc/cni/net.d"), "{paths:?}");
    // Links in the directory of namespaces mean paths of the node: it is mounted where it stands.
    let bundle = adapted(RENDERED_NAMESPACE, &["cni.netnsDir=/run/elsewhere"]);
    let pod = &find(&bundle, "DaemonSet", "stillmesh-cni")["spec"]["template"]["spec"];
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["name"] == "netns").unwrap();
    assert_eq!(mount["mountPath"], "/run/elsewhere");
}

#[test]
fn what_was_set_is_remembered_but_for_the_image_of_another_version() {
    let settings: Vec<Setting> = ["image=reg:5000/x:1", "controller.replicas=2", "controller.replicas=3"]
        .map(|text| setting(text).unwrap())
        .into();
    let mut bundle = Bundle::own().unwrap();
    remember(&mut bundle, &settings);
    let noted = crate::cluster::value::annotation(find(&bundle, "DaemonSet", "ztunnel"), SETTINGS).unwrap();
    assert_eq!(noted, "controller.replicas=3 image=reg:5000/x:1");
    let before = recall(noted);
    assert_eq!(words(&keep(&before, &[], true)), "controller.replicas=3 image=reg:5000/x:1");
    assert_eq!(words(&keep(&before, &[], false)), "controller.replicas=3 image.repository=reg:5000/x");
    let now = [setting("image.tag=2").unwrap(), setting("controller.replicas=1").unwrap()];
    assert_eq!(words(&keep(&before, &now, true)), "");
}

#[test]
fn who_manages_the_objects_is_said_at_every_one() {
    assert!(adapted("m", &[]).objects.iter().all(|object| label(object, MANAGED_BY) == Some("stillmesh")));
}

#[test]
fn what_is_for_the_prometheus_operator_is_there_when_asked_for_with_its_labels() {
    let of_operator = |bundle: &Bundle| {
        let kinds = ["PodMonitor", "PrometheusRule"];
        bundle.objects.iter().filter(|one| kinds.contains(&text(&one["kind"]))).count()
    };
    assert_eq!(of_operator(&adapted("m", &[])), 0);
    let labels = ["telemetry.labels.release=prom", "telemetry.labels.example\\.org/team=ops"];
    assert_eq!(of_operator(&adapted("m", &labels)), 0);
    let bundle = adapted("m", &[&["telemetry.podMonitor=true"], &labels[..]].concat());
    assert_eq!(of_operator(&bundle), 2);
    let monitor = find(&bundle, "PodMonitor", "stillmesh-waypoints");
    assert_eq!((label(monitor, "release"), label(monitor, "example.org/team")), (Some("prom"), Some("ops")));
    assert_eq!(monitor["metadata"]["namespace"], "m");
    let rule = adapted("m", &["telemetry.prometheusRule=true"]);
    assert_eq!(of_operator(&rule), 1);
    assert!(find(&rule, "PrometheusRule", "stillmesh").to_string().contains("StillmeshNodeTunnelDown"));
    for wrong in ["telemetry.labels.=x", "telemetry.labels.a.b=x", "telemetry.labels.a=x y", "telemetry.labels.-a=x"] {
        assert!(setting(wrong).is_err(), "{wrong}");
    }
    for own in ["app\\.kubernetes\\.io/part-of", "app\\.kubernetes\\.io/name", "helm\\.sh/chart"] {
        let error = setting(&format!("telemetry.labels.{own}=x")).unwrap_err();
        assert!(error.contains(&own.replace('\\', "")) && error.ends_with("use another key"), "{error}");
    }
    // What was set is read again as it is.
    let mut bundle = bundle;
    remember(&mut bundle, &labels.map(|text| setting(text).unwrap()));
    let noted = crate::cluster::value::annotation(find(&bundle, "DaemonSet", "ztunnel"), SETTINGS).unwrap();
    assert_eq!(recall(noted).len(), 2, "{noted}");
}
