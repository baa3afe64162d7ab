//! The life of pods, as a kubelet leads it: environment, init containers, probes, restarts, ends.

use crate::scene::{SLEEP, Scene, pod};
use crate::support::{peer, signal, text, wait};

#[test]
fn variables_come_from_values_maps_secrets_and_fields() {
    let scene = Scene::new(
        "pods-env",
        r#"
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: settings, namespace: NS}, data: {colour: blue, size: "9"}}
---
{apiVersion: v1, kind: Secret, metadata: {name: keys, namespace: NS}, stringData: {pin: "1234"}, data: {word: c2VzYW1l}}
---
apiVersion: v1
kind: Pod
metadata: {name: env, namespace: NS, labels: {tier: front}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    command: [sh, -c, "env; echo args: $*", sh]
    args: ["$(GREETING)", "$(NOBODY)", "$$(GREETING)"]
    envFrom: [{prefix: S_, configMapRef: {name: settings}}, {secretRef: {name: keys}}, {configMapRef: {name: absent, optional: true}}]
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PIN, valueFrom: {secretKeyRef: {name: keys, key: pin}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: NO_NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['none']"}}}
    - {name: GREETING, value: "hello $(COLOUR) $(TIER)"}
"#,
    );
    scene.wait_word("env", "Completed");
    let said = scene.logs("env", "main");
    let address = scene.mesh.ips("pods-env", "env").first().cloned().unwrap_or_default();
    let node = scene.pod("env")["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    for line in [
        "S_colour=blue",
        "S_size=9",
        "pin=1234",
        "word=sesame",
        "COLOUR=blue",
        "PIN=1234",
        "POD=env",
        "TIER=front",
        "NO_NOTE=",
        "GREETING=hello blue front",
        "args: hello blue front $(NOBODY) $(GREETING)",
        "HOSTNAME=env",
        &format!("POD_IP={address}"),
        &format!("NODE={node}"),
    ] {
        assert!(said.lines().any(|one| one == line), "no {line:?} in:\n{said}");
    }
}

#[test]
fn a_pod_waits_for_its_config_map_and_says_so() {
    let wanting = pod("wanting", "", "echo got $WORD; exec sleep infinity", "envFrom: [{configMapRef: {name: late}}]");
    let scene = Scene::new("pods-wait", &wanting);
    scene.wait_word("wanting", "CreateContainerConfigError");
    let waiting = scene.pod("wanting")["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(waiting["message"], "ConfigMap \"late\" is not there");
    scene.set(
        &(wanting
            + "\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: late, namespace: NS}, data: {WORD: it}}\n"),
    );
    scene.wait_ready("wanting");
    wait("it has the value", || scene.logs("wanting", "main") == "got it\n");
    assert_eq!(scene.restarts("wanting", 0), 0);
}

#[test]
fn init_containers_run_in_order_and_a_failing_one_is_repeated() {
    let init = "initContainers:
  - {name: first, command: [sh, -c, 'echo first >> DIR/order']}
  - {name: second, command: [sh, -c, 'test -f DIR/go && echo second >> DIR/order']}";
    let scene = Scene::new("pods-init", &pod("three", init, "echo main >> DIR/order; exec sleep infinity", ""));
    wait("the second is repeated", || {
        scene.pod("three")["status"]["initContainerStatuses"][1]["restartCount"].as_u64() >= Some(2)
    });
    scene.wait_word("three", "Init:CrashLoopBackOff");
    assert_eq!(scene.file("order"), "first\n");
    scene.flag("go");
    scene.wait_ready("three");
    wait("main runs", || scene.file("order") == "first\nsecond\nmain\n");
    let status = scene.pod("three")["status"].clone();
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(status["phase"], "Running");
}

#[test]
fn a_failed_init_container_ends_a_pod_that_is_not_restarted() {
    let init = "restartPolicy: Never\n  initContainers: [{name: first, command: ['false']}]";
    let scene = Scene::new("pods-init-never", &pod("one", init, "echo never >> DIR/order", ""));
    scene.wait_word("one", "Error");
    assert_eq!(scene.pod("one")["status"]["phase"], "Failed");
    assert_eq!(scene.file("order"), "");
}

#[test]
fn a_sidecar_is_there_before_the_others_and_ends_after_them() {
    let init = "restartPolicy: Never
  initContainers:
  - name: side
    restartPolicy: Always
    command: [sh, -c, 'echo side >> DIR/order; trap \"echo side ends >> DIR/order; exit 0\" TERM; touch DIR/up; while :; do sleep 0.1; done']
    startupProbe: {exec: {command: [test, -f, DIR/up]}, periodSeconds: 1}
  - {name: then, command: [sh, -c, 'echo then >> DIR/order']}";
    let scene = Scene::new("pods-sidecar", &pod("job", init, "echo main >> DIR/order", ""));
    scene.wait_word("job", "Completed");
    assert_eq!(scene.file("order"), "side\nthen\nmain\nside ends\n");
}

#[test]
fn containers_of_a_pod_share_the_network_and_have_their_own_logs() {
    let scene = Scene::new(
        "pods-two",
        "
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: NS}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - {name: web, image: stillmesh/echo, ports: [{containerPort: 8080}], readinessProbe: {tcpSocket: {port: 8080}}}
  - {name: talker, command: [sh, -c, 'echo here; echo there >&2; exec sleep infinity'], workingDir: /tmp}
",
    );
    scene.wait_ready("two");
    let peer = peer();
    let ask = [
        "exec",
        "-n",
        "pods-two",
        "two",
        "-c",
        "talker",
        "--",
        peer.to_str().unwrap(),
        "client",
        "http",
        "127.0.0.1:8080",
    ];
    let answer = scene.mesh.command(&ask);
    assert!(text(&answer).contains("server: two"), "{}", text(&answer));
    wait("both outputs are in the log", || scene.logs("two", "talker") == "here\nthere\n");
    assert_eq!(scene.logs("two", "web"), "");
    let pwd = scene.mesh.command(&["exec", "-n", "pods-two", "two", "-c", "talker", "--", "pwd"]);
    assert_eq!(String::from_utf8_lossy(&pwd.stdout), "/tmp\n");
    let absent = scene.mesh.command(&["exec", "-n", "pods-two", "two", "-c", "nobody", "--", "true"]);
    assert!(!absent.status.success() && text(&absent).contains("web, talker"), "{}", text(&absent));
    assert!(scene.line("two").contains("2/2"), "{}", scene.line("two"));
}

#[test]
fn a_pod_that_is_never_restarted_shows_how_it_ended() {
    let never = |name: &str, command: &str| pod(name, "restartPolicy: Never", command, "");
    let scene = Scene::new("pods-never", &(never("good", "echo done") + &never("bad", "echo oh; exit 3")));
    scene.wait_word("good", "Completed");
    scene.wait_word("bad", "Error");
    let state = |pod: &str| scene.pod(pod)["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].clone();
    assert_eq!((state("good"), state("bad")), (0.into(), 3.into()));
    assert_eq!((scene.restarts("good", 0), scene.restarts("bad", 0)), (0, 0));
    assert_eq!((scene.logs("good", "main"), scene.logs("bad", "main")), ("done\n".to_owned(), "oh\n".to_owned()));
}

#[test]
fn a_pod_restarted_on_failure_is_complete_once_it_succeeds() {
    let third = "echo x >> DIR/tries; test $(wc -l < DIR/tries) -ge 3";
    let scene = Scene::new("pods-onfailure", &pod("third", "restartPolicy: OnFailure", third, ""));
    scene.wait_word("third", "Completed");
    assert_eq!((scene.restarts("third", 0), scene.file("tries").as_str()), (2, "x\nx\nx\n"));
}

#[test]
fn a_container_that_keeps_crashing_is_started_again_with_growing_pauses() {
    let command = "echo try; test -f DIR/mended && exec sleep infinity; exit 4";
    let scene = Scene::new("pods-crash", &pod("crashing", "", command, ""));
    wait("it was restarted", || scene.restarts("crashing", 0) >= 2);
    scene.wait_word("crashing", "CrashLoopBackOff");
    let status = scene.pod("crashing")["status"]["containerStatuses"][0].clone();
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 4);
    assert!(!scene.is_ready("crashing"));
    scene.flag("mended");
    scene.wait_ready("crashing");
    let tries = scene.logs("crashing", "main").lines().count();
    assert_eq!(tries as u64, scene.restarts("crashing", 0) + 1);
}

#[test]
fn a_program_that_does_not_exist_is_said_in_its_log() {
    let scene = Scene::new(
        "pods-absent",
        "
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: NS}
spec: {restartPolicy: Never, containers: [{name: main, command: [/no/such/program]}]}
",
    );
    scene.wait_word("one", "Error");
    assert_eq!(scene.pod("one")["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 127);
    assert!(scene.logs("one", "main").contains("/no/such/program"), "{}", scene.logs("one", "main"));
}

#[test]
fn a_failed_liveness_probe_restarts_the_container_and_says_why() {
    let probe = "livenessProbe: {exec: {command: [test, '!', -f, DIR/stuck]}, periodSeconds: 1, failureThreshold: 1}";
    let scene = Scene::new("pods-live", &pod("stuck", "", "rm -f DIR/stuck; exec sleep infinity", probe));
    scene.wait_ready("stuck");
    let uid = scene.uid("stuck");
    scene.flag("stuck");
    wait("it is restarted", || scene.restarts("stuck", 0) == 1);
    scene.wait_ready("stuck");
    let last = scene.pod("stuck")["status"]["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!(last["message"], "its liveness probe failed", "{last}");
    assert_eq!(scene.uid("stuck"), uid);
}

#[test]
fn a_pod_that_is_not_ready_is_taken_out_of_its_service_and_put_back() {
    let peer = peer();
    let serve = format!("exec {} serve 7000", peer.display());
    let probe = "readinessProbe: {exec: {command: [test, -f, DIR/ready]}, periodSeconds: 1, failureThreshold: 1}";
    let service = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NS}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 7000}]}
";
    let scene = Scene::new("pods-ready", &(pod("web", "", &serve, probe) + &pod("client", "", SLEEP, "") + service));
    let reaches = || scene.mesh.peer("pods-ready", "client", &["who", "web:80"]).status.success();
    scene.wait_ready("client");
    wait("web runs", || scene.pod("web")["status"]["phase"] == "Running");
    assert!(!scene.is_ready("web") && !reaches());
    scene.flag("ready");
    scene.wait_ready("web");
    wait("the service leads there", reaches);
    scene.unflag("ready");
    wait("the service leads nowhere", || !reaches());
    assert_eq!((scene.is_ready("web"), scene.restarts("web", 0)), (false, 0));
    scene.flag("ready");
    wait("the service leads there again", reaches);
}

#[test]
fn probes_of_every_kind_are_made_and_the_others_wait_for_the_startup_probe() {
    let peer = peer();
    let probes = "ports: [{name: web, containerPort: 8080}]
    startupProbe: {exec: {command: [test, -f, DIR/started]}, periodSeconds: 1, failureThreshold: 1000}
    readinessProbe: {httpGet: {port: web, path: '/ok', httpHeaders: [{name: x-probe, value: 'yes'}]}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 1}";
    let web = format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: NS}}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: stillmesh/echo
    {probes}
"
    );
    // Answers with a status that is no success: never ready.
    let bad = web.replace("name: web, namespace", "name: bad, namespace").replace("'/ok'", "'/?status=503'");
    let scene = Scene::new("pods-probes", &(web + &bad));
    wait("the containers run", || ["web", "bad"].iter().all(|pod| scene.pod(pod)["status"]["phase"] == "Running"));
    let address = format!("{}:8080", scene.mesh.ips("pods-probes", "web")[0]);
    let answer = scene.mesh.exec("pods-probes", "web", &[peer.to_str().unwrap(), "client", "http", &address]);
    assert!(answer.status.success(), "{}", text(&answer));
    assert_eq!(scene.pod("web")["status"]["containerStatuses"][0]["started"], false);
    assert!(!scene.is_ready("web"));
    scene.flag("started");
    scene.wait_ready("web");
    wait("bad has started", || scene.pod("bad")["status"]["containerStatuses"][0]["started"] == true);
    assert_eq!((scene.is_ready("bad"), scene.restarts("web", 0)), (false, 0));
}

#[test]
fn a_pod_ends_by_hook_then_signal_and_is_killed_after_its_grace_period() {
    let hook = "lifecycle: {preStop: {exec: {command: [sh, -c, 'echo hook $WORD >> DIR/polite']}}}\n    env: [{name: WORD, value: x}]";
    let polite = "trap 'echo term >> DIR/polite; exit 0' TERM; touch DIR/up; while :; do sleep 0.1; done";
    // Neither its hook nor its program ends by itself.
    let endless = "lifecycle: {preStop: {exec: {command: [sleep, infinity]}}}";
    let deaf =
        |name: &str, more: &str| pod(name, "", "trap '' TERM; touch DIR/deaf; while :; do sleep 0.1; done", more);
    let patient = pod("polite", "", polite, hook).replace("PeriodSeconds: 2", "PeriodSeconds: 100");
    let scene = Scene::new("pods-end", &(patient + &deaf("deaf", "") + &deaf("hooked", endless)));
    for name in ["polite", "deaf", "hooked"] {
        scene.wait_ready(name);
    }
    wait("the traps are set", || scene.dir().join("up").exists() && scene.dir().join("deaf").exists());
    scene.remove();
    assert_eq!(scene.file("polite"), "hook x\nterm\n");
}

#[test]
fn the_echo_image_names_itself_its_headers_and_its_peer() {
    let echo = "
---
apiVersion: v1
kind: Pod
metadata: {name: echo, namespace: NS}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: main, image: 'stillmesh/echo:1', ports: [{containerPort: 80}], readinessProbe: {httpGet: {port: 80}}}]
";
    let scene = Scene::new("pods-echo", &(echo.to_owned() + &pod("client", "", SLEEP, "")));
    scene.wait_ready("echo");
    scene.wait_ready("client");
    let (target, own) = (&scene.mesh.ips("pods-echo", "echo")[0], &scene.mesh.ips("pods-echo", "client")[0]);
    let answer = scene.mesh.peer("pods-echo", "client", &["http", &format!("{target}:80"), "/path"]);
    let said = text(&answer);
    for line in
        ["server: echo", "request: GET /path HTTP/1.1", &format!("header host: {target}:80"), &format!("peer: {own}:")]
    {
        assert!(said.contains(line), "no {line:?} in:\n{said}");
    }
}

#[test]
fn a_pod_has_its_own_names_and_sees_nothing_of_the_host_or_the_machine() {
    let aliases = "hostAliases: [{ip: 192.0.2.7, hostnames: [alias, other]}]";
    let long = "a-pod-with-a-name-that-is-longer-than-what-the-kernel-takes-as-a-name-of-a-host";
    let scene = Scene::new("pods-inside", &(pod("inside", aliases, SLEEP, "") + &pod(long, "", SLEEP, "")));
    scene.wait_ready("inside");
    scene.wait_ready(long);
    let address = scene.mesh.ips("pods-inside", "inside")[0].clone();
    assert_eq!(scene.said("inside", "hostname"), "inside\n");
    assert_eq!(scene.said(long, "hostname").trim(), long[..63].trim_end_matches('-'));
    let hosts = scene.said("inside", "cat /etc/hosts");
    assert!(hosts.contains(&format!("{address} inside\n")) && hosts.contains("192.0.2.7 alias other\n"), "{hosts}");
    let resolver = scene.said("inside", "cat /etc/resolv.conf");
    assert!(resolver.starts_with("nameserver 10.96.0.10\nsearch pods-inside.svc.cluster.local"), "{resolver}");
    assert!(scene.said("inside", "cat /etc/nsswitch.conf").contains("hosts: files dns\n"));
    // Sockets of the host's resolvers and daemons, keys and sockets of the machine.
    assert_eq!(scene.said("inside", "find /run -xdev -type s"), "");
    assert_eq!(scene.said("inside", "ls -A /run/stillmesh"), "");
    let mounts = scene.said("inside", "cat /proc/self/mountinfo");
    assert!(!mounts.contains(" /run/stillmesh"), "{mounts}");
    // Its own processes and no others.
    let processes = scene.said("inside", "cat /proc/[0-9]*/comm");
    assert!(processes.lines().count() <= 5 && processes.contains("sleep"), "{processes}");
}

#[test]
fn a_pod_whose_namespaces_are_lost_comes_back_in_new_ones() {
    let scene = Scene::new("pods-lost", &pod("lost-and-found", "", "echo start; exec sleep infinity", ""));
    scene.wait_ready("lost-and-found");
    let (uid, address) = (scene.uid("lost-and-found"), scene.mesh.ips("pods-lost", "lost-and-found"));
    let holder = process(&["internal", "sandbox"], "lost-and-found").expect("a holder");
    signal(holder, "KILL");
    wait("it was restarted", || scene.restarts("lost-and-found", 0) == 1);
    scene.wait_ready("lost-and-found");
    assert_eq!((scene.uid("lost-and-found"), scene.mesh.ips("pods-lost", "lost-and-found")), (uid, address));
    assert_eq!(scene.said("lost-and-found", "hostname"), "lost-and-found\n");
    wait("both starts are in the log", || scene.logs("lost-and-found", "main") == "start\nstart\n");
}

/// A process of this machine with these arguments, and a text in one of the others.
pub fn process(arguments: &[&str], text: &str) -> Option<u32> {
    let numbers =
        std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found = numbers.filter(|pid: &u32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let parts: Vec<&str> = line.split('\0').collect();
        parts.get(1..3) == Some(arguments) && parts.iter().any(|part| part.contains(text))
    });
    found.next()
}
