use clap::Parser as _;

use stillmesh_k8s::{Kind, ObjectKey};

use super::*;
use crate::args::{Cli, Command};
use crate::cluster::fake;

/// A namespace in the mesh with a waypoint, `web` and `page` behind it, and `plain`, which goes without.
const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: page, namespace: shop}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop}
spec: {selector: {app: plain}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, version: v1}}
    spec: {serviceAccountName: web, containers: [{name: c, image: nginx, ports: [{containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: plain, namespace: shop}
spec:
  template:
    metadata: {labels: {app: plain}}
    spec: {containers: [{name: c, image: nginx, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: page, namespace: shop, labels: {app: page}}
spec: {serviceAccountName: page, containers: [{name: c, image: nginx}]}
---
apiVersion: v1
kind: Pod
metadata: {name: visitor, namespace: street, labels: {app: visitor}}
spec: {containers: [{name: c, image: nginx}]}
";

const TARGET: &str = "targetRefs: [{kind: Service, group: '', name: web}]";

fn of(texts: &[&str]) -> Vec<Message> {
    let mut input = Input::default();
    for (at, text) in texts.iter().enumerate() {
        input.text(if at == 0 { "shop.yaml" } else { "more.yaml" }, text, false);
    }
    analyze(input, Mesh::default()).unwrap().0
}

/// What is found because of an object that is added: code, object, line.
fn found(object: &str) -> Vec<(&'static str, String, u32)> {
    let base = of(&[SHOP]);
    let text = format!("# a comment\n{object}\n");
    let all = of(&[SHOP, &text]);
    all.iter().filter(|one| !base.contains(one)).map(|one| (one.code.id, one.object.clone(), one.at.line)).collect()
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "AuthorizationPolicy" | "PeerAuthentication" | "RequestAuthentication" => "security.istio.io/v1",
        "Telemetry" => "telemetry.istio.io/v1",
        "VirtualService" | "DestinationRule" => "networking.istio.io/v1",
        "HTTPRoute" | "Gateway" => "gateway.networking.k8s.io/v1",
        "ReferenceGrant" => "gateway.networking.k8s.io/v1beta1",
        "NetworkPolicy" => "networking.k8s.io/v1",
        _ => "v1",
    };
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}")
}

#[test]
fn a_good_shop_has_no_findings() {
    assert_eq!(of(&[SHOP]).iter().map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
}

/// Each code with an object that has the fault, and one that has not.
#[test]
fn each_fault_has_its_code_and_what_is_without_it_has_none() {
    let route = |backend: &str| {
        format!("{{parentRefs: [{{kind: Service, group: '', name: web}}], rules: [{{backendRefs: [{backend}]}}]}}")
    };
    let web = |http: &str| format!("{{hosts: [web], http: {http}}}");
    let to_web = "route: [{destination: {host: web}}]";
    let mut wrong: Vec<String> = Vec::new();
    let tunnel_only = "podSelector: {matchLabels: {app: plain}}, ingress: [{from: [{podSelector: {}}]";
    for (code, kind, bad, good) in [
        ("IST0101", "HTTPRoute", route("{name: gone, port: 80}"), route("{name: web, port: 80}")),
        ("IST0101", "HTTPRoute", route("{name: web, port: 81}"), route("{name: plain, port: 80}")),
        (
            "IST0101",
            "HTTPRoute",
            "{parentRefs: [{kind: Service, group: '', name: gone}], rules: []}".to_owned(),
            route("{name: web, port: 80}"),
        ),
        ("IST0101", "VirtualService", "{hosts: [gone], http: []}".to_owned(), web(&format!("[{{{to_web}}}]"))),
        (
            "IST0101",
            "VirtualService",
            web("[{route: [{destination: {host: gone}}]}]"),
            web("[{route: [{destination: {host: plain}}]}]"),
        ),
        (
            "IST0101",
            "VirtualService",
            web("[{route: [{destination: {host: web, subset: v9}}]}]"),
            web(&format!("[{{{to_web}}}]")),
        ),
        (
            "IST0101",
            "AuthorizationPolicy",
            "{targetRefs: [{kind: Service, group: '', name: gone}]}".to_owned(),
            format!("{{{TARGET}}}"),
        ),
        (
            "IST0106",
            "AuthorizationPolicy",
            format!("{{{TARGET}, rules: [{{to: [{{operation: {{ports: [x]}}}}]}}]}}"),
            format!("{{{TARGET}, rules: [{{to: [{{operation: {{ports: ['80']}}}}]}}]}}"),
        ),
        ("IST0106", "VirtualService", web(&format!("[{{match: [{{uri: {{regex: '('}}}}], {to_web}}}]")), web(&format!("[{{match: [{{uri: {{regex: a}}}}], {to_web}}}]"))),
        (
            "IST0127",
            "AuthorizationPolicy",
            "{selector: {matchLabels: {app: nobody}}}".to_owned(),
            "{selector: {matchLabels: {app: plain}}}".to_owned(),
        ),
        (
            "IST0130",
            "VirtualService",
            web(&format!("[{{{to_web}}}, {{match: [{{uri: {{exact: /a}}}}], {to_web}}}]")),
            web(&format!("[{{match: [{{uri: {{exact: /a}}}}], {to_web}}}, {{{to_web}}}]")),
        ),
        (
            "IST0130",
            "VirtualService",
            web(&format!("[{{match: [{{uri: {{exact: /a}}}}], {to_web}}}, {{match: [{{name: x, uri: {{exact: /a}}}}], {to_web}}}]")),
            web(&format!("[{{match: [{{uri: {{exact: /a}}}}], {to_web}}}, {{match: [{{uri: {{exact: /b}}}}], {to_web}}}]")),
        ),
        (
            "IST0166",
            "RequestAuthentication",
            "{selector: {matchLabels: {app: web}}, jwtRules: [{issuer: 'https://i', jwks: '{\"keys\": []}'}]}".to_owned(),
            format!("{{{TARGET}, jwtRules: [{{issuer: 'https://i', jwks: '{{\"keys\": []}}'}}]}}"),
        ),
        (
            "IST0166",
            "AuthorizationPolicy",
            "{selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: waypoint}}}".to_owned(),
            "{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]}".to_owned(),
        ),
        (
            "IST0166",
            "Telemetry",
            "{selector: {matchLabels: {app: web}}, accessLogging: [{disabled: true}]}".to_owned(),
            format!("{{{TARGET}, accessLogging: [{{disabled: true}}]}}"),
        ),
        (
            "IST0167",
            "AuthorizationPolicy",
            "{targetRefs: [{kind: Service, group: '', name: plain}]}".to_owned(),
            format!("{{{TARGET}}}"),
        ),
        (
            "IST0167",
            "AuthorizationPolicy",
            "{selector: {matchLabels: {app: plain}}, action: AUDIT}".to_owned(),
            "{selector: {matchLabels: {app: plain}}, action: DENY, rules: [{}]}".to_owned(),
        ),
        (
            "IST0167",
            "DestinationRule",
            "{host: plain, trafficPolicy: {loadBalancer: {simple: RANDOM}}}".to_owned(),
            "{host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}".to_owned(),
        ),
        (
            "IST0173",
            "DestinationRule",
            "{host: web, subsets: [{name: v9, labels: {version: v9}}]}".to_owned(),
            "{host: web, subsets: [{name: v1, labels: {version: v1}}]}".to_owned(),
        ),
        ("IST0174", "DestinationRule", "{host: gone}".to_owned(), "{host: web}".to_owned()),
        (
            "SM0101",
            "AuthorizationPolicy",
            "{selector: {matchLabels: {app: plain}}, rules: [{to: [{operation: {methods: [GET]}}]}]}".to_owned(),
            format!("{{{TARGET}, rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}"),
        ),
        (
            "SM0102",
            "AuthorizationPolicy",
            "{selector: {matchLabels: {app: plain}}, action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"
                .to_owned(),
            "{selector: {matchLabels: {app: plain}}, action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]}"
                .to_owned(),
        ),
        (
            "SM0103",
            "VirtualService",
            web(&format!("[{{match: [{{uri: {{exact: /a}}}}, {{sourceNamespace: x}}], {to_web}}}]")),
            web(&format!("[{{match: [{{uri: {{exact: /a}}}}], {to_web}}}]")),
        ),
        (
            "SM0104",
            "HTTPRoute",
            route("{name: till, namespace: street, port: 80}"),
            route("{name: web, port: 80}"),
        ),
        (
            "SM0109",
            "AuthorizationPolicy",
            format!("{{{TARGET}, rules: [{{from: [{{source: {{principals: ['spiffe://cluster.local/ns/shop/sa/page']}}}}]}}]}}"),
            format!("{{{TARGET}, rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/page]}}}}]}}]}}"),
        ),
        (
            "SM0109",
            "AuthorizationPolicy",
            format!("{{{TARGET}, rules: [{{from: [{{source: {{principals: [other.domain/ns/shop/sa/page]}}}}]}}]}}"),
            format!("{{{TARGET}, rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/web]}}}}]}}]}}"),
        ),
        (
            "SM0109",
            "AuthorizationPolicy",
            format!("{{{TARGET}, rules: [{{from: [{{source: {{serviceAccounts: [pages]}}}}]}}]}}"),
            format!("{{{TARGET}, rules: [{{from: [{{source: {{serviceAccounts: [page, elsewhere/pages]}}}}]}}]}}"),
        ),
        (
            "SM0110",
            "AuthorizationPolicy",
            format!("{{{TARGET}, rules: [{{from: [{{source: {{requestPrincipals: ['*']}}}}]}}]}}"),
            format!("{{{TARGET}, rules: [{{from: [{{source: {{principals: ['*']}}}}]}}]}}"),
        ),
        (
            "SM0113",
            "NetworkPolicy",
            format!("{{{tunnel_only}, ports: [{{port: 8080}}]}}]}}"),
            format!("{{{tunnel_only}, ports: [{{port: 8080}}, {{port: 15008}}]}}]}}"),
        ),
        (
            "SM0114",
            "AuthorizationPolicy",
            "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/page]}}]}]}"
                .to_owned(),
            "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/page, cluster.local/ns/shop/sa/waypoint]}}]}]}"
                .to_owned(),
        ),
    ] {
        let bad = object(kind, "it", &bad);
        let told = found(&bad);
        let about = if code == "SM0114" { "Service shop/web".to_owned() } else { format!("{kind} shop/it") };
        // The place is the object's, or the very one in it.
        let is_it = |(found, object, line): &(&str, String, u32)| {
            *found == code && *object == about && (code == "SM0114" || (2..=5).contains(line))
        };
        if !matches!(told.as_slice(), [one] if is_it(one)) {
            wrong.push(format!("{code} alone is told of\n{bad}, not {told:?}"));
        }
        let good = object(kind, "it", &good);
        if !found(&good).is_empty() {
            wrong.push(format!("{code} has no fault in\n{good}, not {:?}", found(&good)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Faults that take several objects, or are no spec's: text, and what is told.
#[test]
fn faults_between_objects_have_their_code() {
    let rule =
        |name: &str| object("VirtualService", name, "{hosts: [web], http: [{route: [{destination: {host: web}}]}]}");
    let both = format!("{}\n---\n{}", rule("one"), rule("two"));
    let status = "status: {conditions: [{type: Programmed, status: 'False', reason: R, message: m, lastTransitionTime: '2026-01-01T00:00:00Z'}]}";
    let class = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: other, namespace: shop}\nspec: {gatewayClassName: somebody, listeners: [{name: a, port: 80, protocol: HTTP}]}\n";
    let service = |label: &str, port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: it, namespace: shop, labels: {{istio.io/use-waypoint: {label}}}}}\nspec: {{selector: {{app: web}}, ports: [{port}]}}"
        )
    };
    let http = "{name: http, port: 80, targetPort: 8080}";
    let tcp = service("waypoint", "{name: tcp, port: 80, targetPort: 8080}");
    let on_it = object(
        "HTTPRoute",
        "r",
        "{parentRefs: [{kind: Service, group: '', name: it}], rules: [{backendRefs: [{name: it, port: 80}]}]}",
    );
    let pod = |annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: open, namespace: shop, labels: {{app: open}}, annotations: {{ambient.istio.io/bypass-inbound-capture: '{annotation}'}}}}\nspec: {{containers: [{{name: c, image: nginx}}]}}\n---\n{}",
            object("PeerAuthentication", "strict", "{mtls: {mode: STRICT}}")
        )
    };
    let street = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: street, labels: {{{labels}}}}}\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: it, namespace: street}}\nspec: {{mtls: {{mode: STRICT}}}}"
        )
    };
    let gateway = |manager: &str| {
        let policy =
            "{podSelector: {matchLabels: {app: edge}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 8080}]}]}";
        let labels = "app: edge, istio.io/dataplane-mode: none, gateway.networking.k8s.io/gateway-name: edge";
        format!(
            "{}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: edge, namespace: shop, labels: {{{labels}, gateway.istio.io/managed: \
             {manager}}}}}\nspec: {{containers: [{{name: c, image: nginx, ports: [{{containerPort: 8080}}]}}]}}",
            object("NetworkPolicy", "edge", policy)
        )
    };
    for (text, told) in [
        (gateway("istio.io-gateway-controller"), vec![]),
        (gateway("istio.io-mesh-controller"), vec![("SM0113", "NetworkPolicy shop/edge", 2)]),
        (both, vec![("IST0109", "VirtualService shop/one", 2), ("IST0109", "VirtualService shop/two", 7)]),
        (format!("{class}{status}"), vec![("IST0171", "Gateway shop/other", 2)]),
        (format!("{class}{}", status.replace("'False'", "'True'")), vec![]),
        (service("waypoint", http), vec![]),
        (service("gone", http), vec![("SM0105", "Service shop/it", 2)]),
        (service("waypoint", "{port: 80, targetPort: 8080}"), vec![("IST0118", "Service shop/it", 2)]),
        (format!("{tcp}\n---\n{on_it}"), vec![("SM0107", "HTTPRoute shop/r", 7)]),
        (pod("true"), vec![("SM0108", "Pod shop/open", 2)]),
        (pod("false"), vec![]),
        (street(""), vec![("SM0112", "PeerAuthentication street/it", 6)]),
        (street("istio.io/dataplane-mode: ambient"), vec![]),
        (
            "apiVersion: networking.istio.io/v1\nkind: EnvoyFilter\nmetadata: {name: it, namespace: shop}".to_owned(),
            vec![("SM0111", "EnvoyFilter shop/it", 2)],
        ),
        ("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: it}".to_owned(), vec![]),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HttpRoute\nmetadata: {name: it}".to_owned(),
            vec![("IST0106", "HttpRoute default/it", 2)],
        ),
        ("kind: Pod\nmetadata: {name: [".to_owned(), vec![("IST0106", "Pod", 3)]),
        ("kind: Pod\napiVersion: v2\nmetadata: {name: x}".to_owned(), vec![("IST0106", "Pod default/x", 3)]),
    ] {
        let told: Vec<_> = told.into_iter().map(|(code, object, line)| (code, object.to_owned(), line)).collect();
        assert_eq!(found(&text), told, "{text}");
    }
}

/// SM0105: whoever asks for a waypoint, and it is not there or not for them.
#[test]
fn a_waypoint_that_is_not_there_or_does_not_take_it_is_told_where_it_is_asked_for() {
    let from = |allowed: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: guests, namespace: shop}}\nspec: {{gatewayClassName: istio-waypoint, \
             listeners: [{{name: mesh, port: 15008, protocol: HBONE{allowed}}}]}}\n---\n"
        )
    };
    let till = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: till, namespace: street, labels: {{{labels}}}}}\n\
             spec: {{selector: {{app: visitor}}, ports: [{{name: http, port: 80}}]}}"
        )
    };
    let lane = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: lane, labels: {{istio.io/use-waypoint: {name}, \
             istio.io/use-waypoint-namespace: shop}}}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: till, namespace: lane}}\n\
             spec: {{ports: [{{name: http, port: 80}}]}}"
        )
    };
    let guests = "istio.io/use-waypoint: guests, istio.io/use-waypoint-namespace: shop";
    let all = ", allowedRoutes: {namespaces: {from: All}}";
    for (text, told) in [
        (from("") + &till(guests), vec!["Service street/till"]),
        (from(all) + &till(guests), vec![]),
        (till("istio.io/use-waypoint: waypoint"), vec!["Service street/till"]),
        (till("istio.io/use-waypoint: none"), vec![]),
        (from("") + &lane("guests"), vec!["Namespace lane"]),
        (from(all) + &lane("guests"), vec![]),
        (lane("gone"), vec!["Namespace lane"]),
    ] {
        let told: Vec<_> = told.into_iter().map(|object| ("SM0105", object.to_owned())).collect();
        let found: Vec<_> = found(&text).into_iter().map(|(code, object, _)| (code, object)).collect();
        assert_eq!(found, told, "{text}");
    }
}

/// SM0106: of what runs alone is it known.
#[test]
fn a_waypoint_that_runs_and_is_not_ready_is_told_of_those_who_are_bound_to_it() {
    let gateway = ObjectKey::new(Kind::Gateway, "shop", "waypoint");
    let found = |is_ready: bool| {
        let mut input = Input::default();
        input.text("shop.yaml", SHOP, false);
        let written = input.written.clone();
        let (mut running, _) = input.written.complete(&Mesh::default()).unwrap();
        if !is_ready {
            running.add(written.objects.get(&gateway).cloned());
        }
        let input = Input { running: Some(running.objects.clone()), written: running, ..Input::default() };
        let (messages, _) = analyze(input, Mesh::default()).unwrap();
        messages.iter().map(|one| (one.code.id, one.object.clone(), one.level())).collect::<Vec<_>>()
    };
    assert_eq!(found(true), []);
    assert_eq!(found(false), [("SM0106", "Service shop/web".to_owned(), Level::Warning)]);
}

/// SM0111: kinds of a mesh that this one does not read; not those of others, and not where they are to be passed over.
#[test]
fn mesh_kinds_without_effect_are_told_and_others_are_not() {
    let told = |version: &str, kind: &str, ignore: bool| {
        let mut input = Input::default();
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: it, namespace: shop}}\n");
        input.text("a.yaml", &text, ignore);
        let (messages, _) = analyze(input, Mesh::default()).unwrap();
        messages.iter().map(|one| (one.code.id, one.object.clone())).collect::<Vec<_>>()
    };
    for (version, kind) in [
        ("networking.istio.io/v1", "Sidecar"),
        ("extensions.istio.io/v1alpha1", "WasmPlugin"),
        ("gateway.networking.k8s.io/v1alpha3", "BackendLBPolicy"),
        ("stillmesh.io/v1", "Unheard"),
    ] {
        assert_eq!(told(version, kind, false), [("SM0111", format!("{kind} shop/it"))], "{version}");
        assert_eq!(told(version, kind, true), [], "{version} {kind}");
    }
    for (version, kind) in
        [("cert-manager.io/v1", "Certificate"), ("v1", "PersistentVolumeClaim"), ("notistio.io/v1", "Sidecar")]
    {
        assert_eq!(told(version, kind, false), [], "{version} {kind}");
    }
}

#[test]
fn pods_of_a_namespace_in_the_mesh_need_no_sidecar() {
    assert!(!of(&[SHOP]).iter().any(|one| ["IST0102", "IST0103"].contains(&one.code.id)));
    assert!(!code::ALL.iter().any(|one| ["IST0102", "IST0103"].contains(&one.id)));
}

#[test]
fn what_an_object_asks_not_to_be_told_of_is_not_told() {
    let policy = object("AuthorizationPolicy", "it", "{selector: {matchLabels: {app: nobody}}}");
    for (annotation, count) in [("IST0127", 0), ("IST0101, IST0127", 0), ("'*'", 0), ("IST0101", 1)] {
        let with = format!("annotations: {{galley.istio.io/analyze-suppress: {annotation}}}, name");
        let with = with.replace("IST0101, IST0127", "'IST0101, IST0127'");
        assert_eq!(found(&policy.replacen("name", &with, 1)).len(), count, "{annotation}");
    }
}

#[test]
fn findings_are_printed_the_worst_first() {
    let policies = [
        object("AuthorizationPolicy", "nobody", "{selector: {matchLabels: {app: nobody}}}"),
        object("AuthorizationPolicy", "reads", "{rules: [{to: [{operation: {methods: [GET]}}]}]}"),
        object("DestinationRule", "gone", "{host: gone}"),
    ];
    let all = of(&[SHOP, &policies.join("\n---\n")]);
    let printed = all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    // The name of the Deployment's pod has a hash in it.
    let hash = printed.split("8080 of web-").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert_eq!(
        printed.replace(hash, "POD"),
        "Error [SM0101] (AuthorizationPolicy shop/reads more.yaml:6) ztunnel does not support HTTP attributes (found: \
         methods). In ambient mode you must use a waypoint proxy to enforce HTTP rules. Within an ALLOW policy, rules \
         matching HTTP attributes are omitted. This will be more restrictive than requested.\n\
         Error [SM0114] (Service shop/web shop.yaml:14) connections of its waypoint to port 8080 of \
         web-POD are refused: allow policies apply and none matched: shop/reads (the waypoint is \
         cluster.local/ns/shop/sa/waypoint); let the waypoint's identity pass there, and decide about clients by a policy \
         with targetRefs\n\
         Warning [IST0127] (AuthorizationPolicy shop/nobody more.yaml:1) spec.selector: no pod has these labels: the policy \
         does nothing; check the labels, and that the policy is in the namespace of the pods\n\
         Warning [IST0174] (DestinationRule shop/gone more.yaml:11) none of its hosts is a Service here"
    );
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(
        json[2],
        serde_json::json!({
            "code": "IST0127", "level": "Warning", "origin": "AuthorizationPolicy shop/nobody", "reference": "more.yaml:1",
            "documentationUrl": "https://istio.io/latest/docs/reference/config/analysis/ist0127/",
            "message": "spec.selector: no pod has these labels: the policy does nothing; check the labels, and that the \
                        policy is in the namespace of the pods",
        })
    );
    assert_eq!(json[0]["documentationUrl"], "docs/analyze.md#sm0101");
}

#[test]
fn files_are_found_in_directories_and_what_cannot_be_read_is_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    std::fs::create_dir(place("inner")).unwrap();
    for (name, text) in [("a.yaml", SHOP), (".hidden.yaml", "x: ["), ("b.txt", "x: ["), ("inner/c.yml", "x: [")] {
        std::fs::write(place(name), text).unwrap();
    }
    std::fs::write(place("d.yaml"), [0xff, 0xfe]).unwrap();
    let told = |paths: &[PathBuf], recursive: bool, ignore: bool| {
        let mut input = Input::default();
        input.files(paths, recursive, ignore);
        let all = analyze(input, Mesh::default()).unwrap().0;
        let name = |one: &Message| one.at.file.rsplit('/').next().unwrap_or_default().to_owned();
        all.iter().map(|one| (one.code.id, name(one))).collect::<Vec<_>>()
    };
    let (c, d) = (("IST0106", "c.yml".to_owned()), ("IST0106", "d.yaml".to_owned()));
    let whole = [folder.path().to_owned()];
    assert_eq!(told(&whole, false, false), std::slice::from_ref(&d));
    assert_eq!(told(&whole, true, false), [d.clone(), c]);
    assert_eq!(told(&whole, true, true), [d]);
    assert_eq!(told(&[place("none.yaml")], false, false), [("IST0106", "none.yaml".to_owned())]);
}

/// `docs/analyze.md` has all codes, with their levels.
#[test]
fn each_code_is_documented() {
    let text = include_str!("../../../../docs/analyze.md");
    for code in code::ALL {
        let row = format!(
            "| <a id=\"{}\"></a>{} | {} | {:?} |",
            code.id.to_ascii_lowercase(),
            code.id,
            code.name,
            code.level
        );
        assert!(text.contains(&row), "no row {row}");
    }
}

/// What is said of a policy for the principal `td.example/ns/shop/sa/page`.
async fn of_principal(line: &[&str]) -> Vec<&'static str> {
    let parsed = Cli::try_parse_from([&["stillmesh", "analyze"], line].concat()).unwrap();
    let Command::Analyze(args) = parsed.command else { panic!("not analyze") };
    let (input, mesh) = read(&args).await.unwrap();
    let (messages, notes) = analyze(input, mesh).unwrap();
    assert!(notes.iter().all(|note| !note.contains("is not known")), "{notes:?}");
    let is_meant = |one: &&Message| one.object == "AuthorizationPolicy shop/page";
    messages.iter().filter(is_meant).map(|one| one.code.id).collect()
}

#[tokio::test]
async fn principals_are_judged_by_the_trust_domain_of_the_mesh() {
    let rules = "{selector: {matchLabels: {app: plain}}, rules: [{from: [{source: {principals: [td.example/ns/shop/sa/page]}}]}]}";
    let policy = object("AuthorizationPolicy", "page", rules);
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::io::Write::write_all(&mut file, format!("{SHOP}---\n{policy}\n").as_bytes()).unwrap();
    let path = file.path().display().to_string();
    assert_eq!(of_principal(&[&path]).await, ["SM0109"]);
    assert_eq!(of_principal(&[&path, "--trust-domain", "td.example"]).await, Vec::<&str>::new());

    for (domain, codes) in [("td.example", &[][..]), ("other.example", &["SM0109"][..])] {
        let server = fake::of_trust_domain(domain).await.unwrap();
        assert_eq!(of_principal(&[&path, "-k", "--kubeconfig", &server.kubeconfig()]).await, codes, "{domain}");
    }
}
