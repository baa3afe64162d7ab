use super::*;
use proptest::prelude::*;

fn findings(text: &str) -> Vec<String> {
    documents("shop.yaml", text).findings.iter().map(ToString::to_string).collect()
}

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: page
  namespace: shop
spec:
  selector: {app: page}
  ports:
  - name: http
    port: 80
    targetPort: web
";

#[test]
fn a_good_document_is_an_object_with_its_place() {
    let found = documents("shop.yaml", &format!("# shop\n---\n{SERVICE}"));
    assert_eq!(found.findings, []);
    let [placed] = &found.objects[..] else { panic!("{found:?}") };
    assert_eq!(placed.object.key().to_string(), "Service shop/page");
    assert_eq!(placed.at, Position::new("shop.yaml", 3, 1));
}

#[test]
fn an_absent_namespace_is_default_and_cluster_kinds_have_none() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n";
    let keys: Vec<String> = documents("a", text).objects.iter().map(|one| one.object.key().to_string()).collect();
    assert_eq!(keys, ["ConfigMap default/a", "Namespace b"]);
}

#[test]
fn a_namespace_that_says_something_odd_of_tunnels_is_told() {
    let of = |value: &str| {
        let labels = format!("{{stillmesh.io/same-node: {value}}}");
        findings(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {labels}}}\n"))
    };
    assert!(of("direct").is_empty() && of("tunnel").is_empty());
    assert!(of("yes-please")[0].contains("direct and tunnel are accepted"), "{:?}", of("yes-please"));
}

#[test]
fn json_and_lists_are_read_too() {
    let text = "{\n\t\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n\t{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\
                \"metadata\":{\"name\":\"a\"}},\n\t{\"apiVersion\":\"v1\",\"kind\":\"Nope\",\"metadata\":{\"name\":\"b\"}}]}";
    let found = documents("list.json", text);
    assert_eq!(found.objects.len(), 1, "{found:?}");
    assert_eq!(found.objects[0].at.line, 3);
    assert_eq!(found.findings[0].at.line, 4);
}

#[test]
fn an_impossible_port_says_what_a_port_is() {
    assert_eq!(
        findings(&SERVICE.replace("port: 80\n", "port: 80800\n")),
        [
            "shop.yaml:10:11: Service shop/page: spec.ports[0].port: 80800 is not a port; a port is a number from 1 to 65535"
        ]
    );
    assert_eq!(findings(&SERVICE.replace("port: 80\n", "port: 0\n")).len(), 1);
    assert_eq!(
        findings(&SERVICE.replace("port: 80\n", "port: 99999999999\n")),
        [
            "shop.yaml:10:11: Service shop/page: spec.ports[0].port: 99999999999 is not a port; a port is a number from 1 to 65535"
        ]
    );
    assert_eq!(
        findings(&SERVICE.replace("targetPort: web", "targetPort: '8080'")),
        [
            "shop.yaml:11:17: Service shop/page: spec.ports[0].targetPort: \"8080\" is not a port's name; a port's number is written without quotes"
        ]
    );
}

#[test]
fn a_wrong_type_says_what_is_there_and_what_is_accepted() {
    assert_eq!(
        findings(&SERVICE.replace("port: 80\n", "port: \"80\"\n")),
        [
            "shop.yaml:10:11: Service shop/page: spec.ports[0].port: wrong type: the text \"80\"; a whole number is accepted: remove the quotes"
        ]
    );
    assert_eq!(
        findings(&SERVICE.replace("{app: page}", "[page]")),
        ["shop.yaml:7:13: Service shop/page: spec.selector: wrong type: a list; a map is accepted"]
    );
    assert_eq!(
        findings(&SERVICE.replace("app: page", "app: 1")),
        [
            "shop.yaml:7:19: Service shop/page: spec.selector.app: wrong type: the number 1; a text is accepted: put it in quotes"
        ]
    );
}

#[test]
fn an_unknown_kind_lists_the_known_ones() {
    let text = SERVICE.replace("kind: Service", "kind: Sevice");
    let found = findings(&text);
    assert!(
        found[0].starts_with(
            "shop.yaml:2:7: Sevice shop/page: kind: unknown kind \"Sevice\"; is Service meant? Namespace, Node,"
        ),
        "{found:?}"
    );
    let found = findings(&SERVICE.replace("apiVersion: v1", "apiVersion: v2"));
    assert!(found[0].contains("unknown apiVersion \"v2\" of kind Service; v1 is accepted"), "{found:?}");
}

#[test]
fn names_are_needed_and_checked() {
    let found = findings(&SERVICE.replace("  name: page\n", ""));
    assert_eq!(
        found,
        ["shop.yaml:4:3: Service: metadata.name: the name is missing; every object needs a metadata.name"]
    );
    assert_eq!(findings(&SERVICE.replace("  name: page\n", "  name:\n")), found);
    let container = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: }]}\n";
    let nameless = findings(container);
    assert_eq!(nameless.len(), 1, "{nameless:?}");
    assert!(nameless[0].contains("the name is missing; every container needs a name"), "{nameless:?}");
    let found = findings(&SERVICE.replace("name: page", "name: Page_1"));
    assert!(
        found[0].starts_with("shop.yaml:4:9: Service shop/Page_1: metadata.name: \"Page_1\" is not a name; up to 63"),
        "{found:?}"
    );
}

#[test]
fn what_is_not_yaml_is_told_with_its_place_and_the_rest_works_on() {
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: [\n---\n{SERVICE}");
    let found = documents("shop.yaml", &text);
    assert_eq!(found.objects.len(), 1, "{found:?}");
    assert_eq!(found.findings.len(), 1, "{found:?}");
    assert_eq!(found.findings[0].to_string(), "shop.yaml:4:9: Pod: not YAML: unclosed bracket '['");
}

#[test]
fn a_repeated_key_is_an_error_that_names_the_object() {
    let text = format!("---\n{}", SERVICE.replace("  namespace: shop", "  namespace: shop\n  name: other"));
    assert_eq!(
        findings(&text),
        ["shop.yaml:7:3: Service shop/page: the key \"name\" is there twice; every key is accepted once in a map"]
    );
}

#[test]
fn an_unknown_field_is_a_warning_in_core_kinds_and_an_error_in_policies() {
    let found = documents("shop.yaml", &SERVICE.replace("selector:", "selectors:"));
    assert_eq!(found.objects.len(), 1);
    assert_eq!(found.findings[0].severity, Severity::Warning);
    assert_eq!(
        found.findings[0].to_string(),
        "shop.yaml:7:3: Service shop/page: spec.selectors: unknown field \"selectors\"; is selector meant?"
    );
    let policy = "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  action: DENY\n  \
                  rules:\n  - from:\n    - source: {principal: [a]}\n";
    let found = documents("p.yaml", policy);
    assert_eq!(found.objects.len(), 0);
    assert_eq!(
        found.findings[0].to_string(),
        "p.yaml:8:16: AuthorizationPolicy default/p: spec.rules[0].from[0].source.principal: unknown field \"principal\"; is principals meant?"
    );
}

#[test]
fn policies_are_held_to_what_the_webhook_of_istio_accepts() {
    let policy = |spec: &str| {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
        );
        findings(&text).into_iter().map(|one| one.split_once("default/p: ").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(policy("{}"), [""; 0]);
    assert_eq!(
        policy("{rules: [{to: [{operation: {ports: ['http']}}]}]}"),
        ["spec.rules[0].to[0].operation.ports[0]: \"http\" is not a port; a port is a number from 1 to 65535"]
    );
    assert_eq!(
        policy("{rules: [{from: [{source: {ipBlocks: ['10.0.0.0/40']}}]}]}"),
        [
            "spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0.0/40\" is not an address; an IP address or a range such as 10.0.0.0/8 is accepted"
        ]
    );
    assert_eq!(
        policy("{action: REFUSE}"),
        ["spec.action: unknown value \"REFUSE\"; one of ALLOW, DENY, AUDIT, CUSTOM is accepted"]
    );
    assert_eq!(policy("{rules: [{from: [{source: {}}]}]}").len(), 1);
    assert_eq!(policy("{rules: [{from: [{}], to: [{operation: {paths: []}}]}]}").len(), 2);
    assert_eq!(policy("{rules: [{when: [{key: source.ip}]}]}").len(), 1);
    assert_eq!(policy("{action: DENY}").len(), 1);
    assert_eq!(policy("{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Gateway, name: w}]}").len(), 1);
}

#[test]
fn modes_of_ports_may_be_written_as_numbers_and_need_a_selector() {
    let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n  selector: {matchLabels: \
                {app: a}}\n  portLevelMtls:\n    8080: {mode: STRICT}\n";
    let found = documents("p", text);
    assert_eq!(found.findings, []);
    let Object::PeerAuthentication(peer) = &found.objects[0].object else { panic!("{found:?}") };
    assert_eq!(peer.spec.port_level_mtls["8080"].mode, crate::istio::Mode::Strict);
    assert_eq!(findings(&text.replace("8080", "80800")).len(), 1);
    assert_eq!(findings(&text.replace("  selector: {matchLabels: {app: a}}\n", "")).len(), 1);
}

#[test]
fn a_pod_is_read_with_probes_octal_modes_and_quantities() {
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: a, creationTimestamp: null}
spec:
  volumes: [{name: v, secret: {secretName: s, defaultMode: 0644}}]
  containers:
  - name: main
    command: [echo]
    env: [{name: A, value: 'yes'}, {name: B, value: no more}]
    resources: {limits: {cpu: 1, memory: 1Gi}}
    readinessProbe: {httpGet: {port: web, path: /}}
    ports: [{containerPort: 8080, name: web}]
";
    let found = documents("pod", text);
    assert_eq!(found.findings, []);
    let Object::Pod(pod) = &found.objects[0].object else { panic!("{found:?}") };
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.volumes.as_ref().unwrap()[0].secret.as_ref().unwrap().default_mode, Some(0o644));
    assert_eq!(findings(&text.replace("8080", "70000")).len(), 1);
    assert_eq!(
        findings(&text.replace("no more", "no")),
        [
            "shop.yaml:10:53: Pod default/a: spec.containers[0].env[1].value: wrong type: false; a text is accepted: put it in quotes"
        ]
    );
    assert_eq!(findings(&text.replace("port: web", "port: 0")).len(), 1);
    assert_eq!(findings(&text.replace("name: main", "name: Main")).len(), 1);
    assert_eq!(
        findings(&text.replace("command", "comand")),
        ["shop.yaml:9:5: Pod default/a: spec.containers[0].comand: unknown field \"comand\"; is command meant?"]
    );
}

#[test]
fn what_needs_a_port_says_so_instead_of_taking_port_0() {
    let pod = |container: &str| {
        findings(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: main, {container}}}]}}\n"
        ))
    };
    for (container, path) in [
        ("readinessProbe: {httpGet: {path: /}}", "readinessProbe.httpGet.port"),
        ("livenessProbe: {tcpSocket: {port: }}", "livenessProbe.tcpSocket.port"),
        ("startupProbe: {grpc: {}}", "startupProbe.grpc.port"),
        ("lifecycle: {preStop: {httpGet: {path: /}}}", "lifecycle.preStop.httpGet.port"),
        ("ports: [{name: web}]", "ports[0].containerPort"),
    ] {
        let found = pod(container);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains(&format!("spec.containers[0].{path}: the port is missing")), "{found:?}");
    }
}

#[test]
fn json_of_programs_is_read_alike_and_its_faults_have_places() {
    let good = documents("a", SERVICE);
    let json = serde_json::to_string_pretty(&good.objects[0].object).unwrap();
    let read = documents("a.json", &json);
    assert_eq!((&read.objects[0].object, &read.findings), (&good.objects[0].object, &vec![]));
    let bad = documents("a.json", &json.replace("\"port\": 80", "\"port\": 0"));
    assert_eq!((bad.findings.len(), bad.findings[0].at.line > 1), (1, true), "{bad:?}");
    let twice = documents("a.json", &json.replace("\"port\": 80", "\"port\": 80, \"port\": 81"));
    assert_eq!(twice.findings[0].code, "MAN009");
}

#[test]
fn statuses_are_their_controllers_business() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {}\nstatus: {observedGeneration: '7', \
                validationMessages: [{a: b}], conditions: [{type: A, status: 'True', observedGeneration: 3}]}\n";
    let found = documents("a", text);
    assert_eq!(found.findings, []);
    let Object::AuthorizationPolicy(policy) = &found.objects[0].object else { panic!("{found:?}") };
    assert_eq!(policy.status.as_ref().unwrap().observed_generation, Some(7));
}

#[test]
fn keys_are_texts_as_they_stand() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  on: a\n  8080: b\n  y: c\n";
    let found = documents("a", text);
    let Object::ConfigMap(map) = &found.objects[0].object else { panic!("{found:?}") };
    assert_eq!(map.data.as_ref().unwrap().keys().collect::<Vec<_>>(), ["8080", "on", "y"]);
}

#[test]
fn a_deployments_selector_must_match_its_template() {
    let text = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: a}
spec:
  replicas: 2
  selector: {matchLabels: {app: a}}
  template:
    metadata: {labels: {app: a}}
    spec: {containers: [{name: main, image: stillmesh/echo}]}
";
    assert_eq!(findings(text), [""; 0]);
    assert_eq!(findings(&text.replace("labels: {app: a}", "labels: {app: b}")).len(), 1);
    assert_eq!(findings(&text.replace("replicas: 2", "replicas: -2")).len(), 1);
    assert_eq!(findings(&text.replace("  selector: {matchLabels: {app: a}}\n", "")).len(), 1);
}

#[test]
fn what_the_mesh_writes_it_reads_back() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  action: \
                  DENY\n  rules: [{from: [{source: {namespaces: [a]}}]}]\nstatus: {conditions: [{type: ZtunnelAccepted, status: 'True'}]}\n";
    for text in [SERVICE, policy] {
        let first = documents("a", text);
        assert_eq!(first.findings, []);
        let json = serde_json::to_string_pretty(&first.objects[0].object).unwrap();
        let second = documents("b", &json);
        assert_eq!(second.findings, [], "{json}");
        assert_eq!(first.objects[0].object, second.objects[0].object);
    }
}

#[test]
fn anchors_are_expanded_but_not_without_end() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: &n a, labels: {app: *n}}\n";
    assert_eq!(findings(text), [""; 0]);
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..9 {
        let refs = vec![format!("*a{}", level - 1); 10].join(",");
        bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
    }
    assert_eq!(findings(&bomb).len(), 1);
    assert_eq!(findings(&"[".repeat(100_000)).len(), 1);
    assert_eq!(findings(&"- ".repeat(100_000)).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_is_read_without_panic(text in "[\\PC\\n\\t:{}\\[\\]\"'&*!|>#%-]{0,200}") {
        documents("any", &text);
    }

    #[test]
    fn any_spoilt_manifest_is_read_without_panic(at in 0..SERVICE.len(), with in "\\PC{0,3}") {
        let mut text = SERVICE.to_owned();
        text.replace_range(at..=at, &with);
        let found = documents("spoilt", &text);
        prop_assert!(found.objects.len() + found.findings.len() > 0);
    }
}

#[test]
fn a_virtual_service_is_told_what_is_wrong_where_it_is() {
    let of = |http: &str| {
        let head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\n";
        let found = documents("v.yaml", &format!("{head}spec:\n  hosts: [a]\n  http:\n{http}"));
        let findings: Vec<String> = found.findings.iter().map(ToString::to_string).collect();
        (findings.join("\n"), found.objects.len())
    };
    for (http, place, part) in [
        ("  - name: x\n", "v.yaml:7:5", "spec.http[0]: the rule does nothing"),
        ("  - {redirect: {uri: /}, route: [{destination: {host: a}}]}\n", "v.yaml:7:5", "both route and redirect"),
        ("  - route: [{destination: {}}]\n", "v.yaml:7:27", "destination.host: the host is missing"),
        ("  - route: [{destination: {host: a, port: {number: 0}}}]\n", "v.yaml:7:52", "0 is not a port"),
        ("  - {timeout: 5, route: [{destination: {host: a}}]}\n", "v.yaml:7:15", "spec.http[0].timeout"),
        ("  - {timeout: 5x, route: [{destination: {host: a}}]}\n", "v.yaml:7:15", "\"5x\" is not a duration"),
        ("  - {timeuot: 5s, route: [{destination: {host: a}}]}\n", "v.yaml:7:6", "is timeout meant?"),
    ] {
        let (findings, objects) = of(http);
        assert!(findings.starts_with(place) && findings.contains(part), "{http}: {findings}");
        assert_eq!(objects, 0, "{http}");
    }
    let (findings, objects) =
        of("  - route: [{destination: {host: a}}]\n  - {route: [{destination: {host: a}}], delegate: {name: d}}\n");
    assert!(findings.contains("both route and delegate"), "{findings}");
    assert_eq!(objects, 0);
    assert_eq!(of("  - route: [{destination: {host: a}}]\n  - delegate: {name: d}\n"), (String::new(), 1));
    let (findings, objects) = of("  - route: [{destination: {host: a}}]\n  - {redirect: {redirectCode: 200}}\n");
    assert_eq!(objects, 1, "it is there, and its status says that it is not carried out: {findings}");
    assert!(
        findings.starts_with("v.yaml:8:5") && findings.contains("spec.http[1]: redirect: status 200"),
        "{findings}"
    );
    assert_eq!(of("  - route: [{destination: {host: a, port: {number: 80}}, weight: 1}]\n"), (String::new(), 1));
}

#[test]
fn documents_of_other_kinds_are_handed_over_with_their_place() {
    let text = "kind: Pod\napiVersion: v1\n---\n# a comment\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a}\n---\nkind: [\n---\nnothing: here\n";
    let found = foreign("f.yaml", text);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].value["metadata"]["name"].as_str(), found[0].at.line), (Some("a"), 5));
    let list =
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod}\n- {apiVersion: batch/v1, kind: Job}\n";
    assert_eq!(foreign("f.yaml", list)[0].value["kind"], "Job");
    let near = "apiVersion: gateway.networking.k8s.io/v1\nkind: HttpRoute\n";
    assert_eq!(foreign("f.yaml", near)[0].meant, Some(Kind::HttpRoute));
    assert_eq!(found[0].meant, None);
}
