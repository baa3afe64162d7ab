//! What `deploy/` installs is what the programs are: the objects are the API's own, every variable is one that its program
//! reads, ports and selectors meet, and nobody has a right or a capability that is not listed here.
//!
//! `deploy/check` holds `deploy/stillmesh.yaml` to the chart; these tests hold the programs to `deploy/stillmesh.yaml`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use objects::{Manifest, list, strings};
use serde_json::Value;

#[test]
fn every_field_is_one_of_the_kubernetes_api() {
    let problems: Vec<String> = Manifest::read().objects.iter().flat_map(objects::unknown_fields).collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn every_variable_is_one_that_its_program_reads() {
    let manifest = Manifest::read();
    let telemetry = ["LOG_FORMAT", "RUST_LOG"];
    let read: BTreeMap<&str, BTreeSet<&str>> = [
        ("controller", stillmesh_controller::config::KEYS.iter().map(|row| row.0).chain(telemetry).collect()),
        ("agent", stillmesh_cni::config::KEYS.iter().map(|row| row.0).chain(telemetry).collect()),
        ("ztunnel", stillmesh_ztunnel::config::ROWS.iter().map(|row| row.key).chain(telemetry).collect()),
    ]
    .into();
    let mut parts = BTreeSet::new();
    for container in manifest.containers() {
        let part = container["args"][0].as_str().unwrap_or_default();
        parts.insert(part);
        for variable in strings(&container["env"], "name") {
            assert!(read[part].contains(variable), "{part} does not read {variable}; it reads {:?}", read[part]);
        }
    }
    assert_eq!(parts, read.keys().copied().collect());
}

#[test]
fn selectors_and_services_find_their_pods() {
    let manifest = Manifest::read();
    let pods: Vec<&Value> = manifest.workloads().map(|workload| &workload["spec"]["template"]).collect();
    for workload in manifest.workloads() {
        let found = objects::selected(&workload["spec"]["selector"]["matchLabels"], &pods);
        assert_eq!(found, [&workload["spec"]["template"]], "{}", workload["metadata"]["name"]);
    }
    for kind in ["PodDisruptionBudget", "NetworkPolicy"] {
        for object in manifest.of(kind) {
            let field = if kind == "NetworkPolicy" { "podSelector" } else { "selector" };
            assert_eq!(objects::selected(&object["spec"][field]["matchLabels"], &pods).len(), 1, "{object}");
        }
    }
    for service in manifest.of("Service") {
        let found = objects::selected(&service["spec"]["selector"], &pods);
        let ports: Vec<_> = found
            .iter()
            .flat_map(|pod| list(&pod["spec"]["containers"][0]["ports"]))
            .map(|port| &port["containerPort"])
            .collect();
        assert_eq!(found.len(), 1, "{service}");
        for port in list(&service["spec"]["ports"]) {
            assert!(ports.contains(&&port["targetPort"]), "{port}: the pod has {ports:?}");
        }
    }
}

#[test]
fn probes_and_policies_name_ports_that_are_there() {
    let manifest = Manifest::read();
    for container in manifest.containers() {
        let ports = list(&container["ports"]);
        for probe in ["readinessProbe", "livenessProbe"] {
            let Some(port) = container[probe]["httpGet"].get("port") else { continue };
            let there = ports.iter().any(|one| one["name"] == *port || one["containerPort"] == *port);
            assert!(there, "{probe} of {}: {port}", container["name"]);
        }
        assert!(container["readinessProbe"].is_object(), "{} says when it is ready", container["name"]);
    }
}

#[test]
fn every_part_can_use_what_it_is_told() {
    let manifest = Manifest::read();
    stillmesh_controller::config::Config::read(manifest.environment("controller")).unwrap();
    stillmesh_cni::Config::from_env(manifest.environment("agent")).unwrap();
    stillmesh_ztunnel::config::Config::read(manifest.environment("ztunnel")).unwrap();
}

#[test]
fn the_control_plane_that_ztunnel_asks_is_the_one_installed() {
    let manifest = Manifest::read();
    let controller = stillmesh_controller::config::Config::read(manifest.environment("controller")).unwrap();
    let service = &manifest.of("Service").next().unwrap()["metadata"];
    let host = format!("{}.{}.svc", service["name"].as_str().unwrap(), service["namespace"].as_str().unwrap());
    for key in ["XDS_ADDRESS", "CA_ADDRESS"] {
        assert_eq!(manifest.variable("ztunnel", key), format!("https://{host}:15012"));
    }
    assert!(controller.certificate_names().contains(&host), "{:?}", controller.certificate_names());

    let ztunnel = manifest.workloads().find(|one| one["metadata"]["name"] == "ztunnel").unwrap();
    let text = |value: &Value| value.as_str().unwrap().into();
    let account =
        (text(&ztunnel["metadata"]["namespace"]), text(&ztunnel["spec"]["template"]["spec"]["serviceAccountName"]));
    assert_eq!(controller.trusted_node_accounts, [account]);
    for key in ["CLUSTER_DOMAIN", "TRUST_DOMAIN"] {
        assert_eq!(manifest.variable("controller", key), manifest.variable("ztunnel", key));
    }
    assert_eq!(manifest.variable("controller", "CLUSTER_ID"), manifest.variable("ztunnel", "ISTIO_META_CLUSTER_ID"));
}

/// A right more is a line more in `rights.txt`, and so in front of whoever reviews the change.
#[test]
fn rights_are_the_listed_ones() {
    let mut rights = String::new();
    let manifest = Manifest::read();
    for role in manifest.of("ClusterRole").chain(manifest.of("Role")) {
        let place = if role["kind"] == "Role" { "its namespace" } else { "everywhere" };
        for rule in list(&role["rules"]) {
            let words = |key: &str| objects::words(&rule[key]);
            let group = words("apiGroups").first().filter(|group| !group.is_empty()).map(|group| format!(".{group}"));
            for resource in words("resources") {
                let names = words("resourceNames").join(",");
                let names = if names.is_empty() { names } else { format!(" {names}") };
                let (name, verbs) = (role["metadata"]["name"].as_str().unwrap(), words("verbs").join(","));
                rights +=
                    &format!("{name}: {resource}{}{names}: {verbs}, {place}\n", group.clone().unwrap_or_default());
            }
        }
    }
    assert_eq!(rights, include_str!("rights.txt"), "what is granted, and what rights.txt lists");
    assert!(!rights.contains('*'), "no right is for everything");
}

#[test]
fn bindings_give_each_role_to_the_account_of_its_part_only() {
    let manifest = Manifest::read();
    for binding in manifest.of("ClusterRoleBinding").chain(manifest.of("RoleBinding")) {
        let (role, subjects) = (&binding["roleRef"]["name"], list(&binding["subjects"]));
        assert_eq!(subjects.len(), 1, "{binding}");
        assert_eq!((&subjects[0]["kind"], &subjects[0]["name"]), (&Value::from("ServiceAccount"), role));
        assert!(manifest.of("ServiceAccount").any(|account| account["metadata"]["name"] == *role), "{role} is there");
        assert_ne!(role, "ztunnel", "ztunnel has no rights in the Kubernetes API");
    }
    let mounted: Vec<_> = manifest
        .workloads()
        .filter(|one| one["spec"]["template"]["spec"]["automountServiceAccountToken"] != false)
        .map(|one| one["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(mounted, ["stillmesh-cni", "stillmesh-controller"]);
}

#[test]
fn capabilities_are_the_listed_ones() {
    let manifest = Manifest::read();
    let listed: BTreeMap<&str, &[&str]> = [
        ("controller", &[][..]),
        ("ztunnel", &["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]),
        ("agent", &["DAC_OVERRIDE", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"]),
    ]
    .into();
    for container in manifest.containers() {
        let (part, context) = (container["args"][0].as_str().unwrap(), &container["securityContext"]);
        let mut added = objects::words(&context["capabilities"]["add"]);
        added.sort();
        assert_eq!(added, listed[part], "{part}");
        assert_eq!(objects::words(&context["capabilities"]["drop"]), ["ALL"], "{part}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{part}");
        assert_ne!(context["privileged"], true, "{part}");
    }
    for workload in manifest.workloads() {
        let (name, pod) = (&workload["metadata"]["name"], &workload["spec"]["template"]["spec"]);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_ne!(pod["hostPID"], true, "{name}");
        assert_eq!(pod["hostNetwork"] == true, name == "stillmesh-cni", "{name}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"] == true, name == "stillmesh-controller", "{name}");
    }
}

/// What the schema accepts can be read in `values.yaml`; what is in there and not accepted, Helm refuses.
#[test]
fn every_value_has_its_place_in_values_yaml() {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/chart");
    let read = |file: &str| std::fs::read_to_string(chart.join(file)).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    let mut missing = objects::undocumented(&schema, &values);
    // Helm's own, of charts within charts.
    missing.retain(|path| path != ".global");
    assert!(missing.is_empty(), "{missing:?}");
}

/// A webhook that the mesh does not answer must not stop anything but, at most, the mesh's own policies.
#[test]
fn the_webhook_asks_about_the_meshs_own_kinds_only_and_lets_go_of_them() {
    let manifest = Manifest::read();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ours: BTreeSet<(String, String)> = manifest
        .of("CustomResourceDefinition")
        // Orders are held to their rules by the API server itself: they must work while nothing of the mesh does.
        .filter(|crd| crd["spec"]["group"] != "stillmesh.io")
        .map(|crd| (text(&crd["spec"]["group"]), text(&crd["spec"]["names"]["plural"])))
        .collect();
    let webhooks: Vec<&Value> =
        manifest.of("ValidatingWebhookConfiguration").flat_map(|one| list(&one["webhooks"])).collect();
    assert_eq!(webhooks.len(), 1);
    for webhook in webhooks {
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert!(webhook["clientConfig"].get("caBundle").is_none(), "the leader writes it");
        let mut asked = BTreeSet::new();
        for rule in list(&webhook["rules"]) {
            assert_eq!(objects::words(&rule["operations"]), ["CREATE", "UPDATE"], "deleting always works");
            for group in objects::words(&rule["apiGroups"]) {
                asked.extend(
                    objects::words(&rule["resources"]).into_iter().map(|kind| (group.to_owned(), kind.to_owned())),
                );
            }
        }
        assert_eq!(asked, ours, "what the mesh defines, and nothing else");
    }
}

#[test]
fn examples_have_nothing_to_find_fault_with() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let found =
            stillmesh_k8s::parse::documents(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
        assert!(found.findings.is_empty(), "{:#?}", found.findings);
        assert_eq!(found.objects.len(), 1, "{}", path.display());
        read += 1;
    }
    assert!(read >= 5, "{read} examples");
}

/// Contents of a file of the repository.
fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let rules = file("deploy/telemetry/rules.yaml");
    let of = |key: &str| -> BTreeSet<String> {
        rules
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(key))
            .map(|text| text.trim().to_owned())
            .collect()
    };
    let alerts = of("- alert:");
    assert!(alerts.len() > 10, "{alerts:?}");
    let pages: BTreeSet<String> = alerts.iter().map(|alert| format!("docs/runbooks/{alert}.md")).collect();
    assert_eq!(of("runbook_url:"), pages);
    for page in &pages {
        let text = file(page);
        for heading in ["## What it means", "## How to look", "## What to do"] {
            assert!(text.contains(heading), "{page} lacks {heading}");
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/runbooks");
    let there = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.map(|name| format!("docs/runbooks/{name}")).collect::<BTreeSet<_>>(), pages);
}
