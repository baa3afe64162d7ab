//! `stillmesh bench` with tiny numbers: it says what it measured, and refuses what it cannot measure. Nothing here depends on
//! how fast anything is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{STILLMESH, run, signal, text, wait};

/// Runs it with two rounds of very short measurements.
fn bench(arguments: &[&str]) -> Output {
    let short = ["bench", "--rounds", "2", "--seconds", "0.2", "--foreign", "100", "--workloads", "0", "--json"];
    run(Command::new(STILLMESH).args(short).args(arguments))
}

fn succeeded(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A system whose client dials through a sidecar that passes bytes on as they are: in clear.
fn plain_system(name: &str, annotations: &str) -> String {
    let peer = crate::support::peer();
    let peer = peer.to_str().expect("a path");
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {name}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: server, namespace: {name}}}
spec: {{nodeName: node2, containers: [{{name: server, command: [\"${{STILLMESH}}\", bench-load, server]}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: {name}, annotations: {{stillmesh.io/bench-target: '127.0.0.1:7001'{annotations}}}}}
spec:
  nodeName: node1
  containers:
  - {{name: client, command: [sleep, infinity]}}
  - {{name: proxy, command: [\"{peer}\", relay, '127.0.0.1:7001', \"${{SERVER}}:7000\"]}}
"
    )
}

#[test]
fn every_system_is_measured_in_every_round() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("plain.yaml");
    fs::write(&file, plain_system("plain", ", stillmesh.io/bench-wire: clear")).expect("the file can be written");
    let budgets = dir.path().join("budgets.toml");
    let budget =
        "[[budget]]\nscenario = 'bulk-1'\nquantity = 'gbit-per-s'\nyardstick = 'plain'\ncomparison = 'ratio-at-most'\n";
    fs::write(&budgets, format!("{budget}value = 1e9\n")).expect("the file can be written");
    let mut arguments = vec!["--system", file.to_str().expect("a path"), "--check", budgets.to_str().expect("a path")];
    for scenario in ["fresh", "bulk-1", "closed-64", "open-16", "mixed", "connect-16", "idle-1000"] {
        arguments.extend(["--scenario", scenario]);
    }
    let found = succeeded(&bench(&arguments));
    let samples = found["samples"].as_array().expect("samples");
    for system in ["raw", "mesh", "raw-one-node", "mesh-one-node", "direct-one-node", "plain"] {
        for (scenario, quantity) in [
            ("bulk-1", "gbit-per-s"),
            ("closed-64", "per-s"),
            ("open-16", "p999-us"),
            ("mixed", "p99-over-alone"),
            ("connect-16", "per-s"),
        ] {
            let those: Vec<&Value> =
                samples.iter().filter(|one| one["system"] == *system && one["scenario"] == *scenario).collect();
            assert_eq!(those.len(), 2, "{system} {scenario}");
            let value = |one: &Value, quantity: &str| one["values"][quantity].as_f64().unwrap_or_default();
            assert!(those.iter().all(|one| value(one, quantity) > 0.0), "{system} {scenario} {those:?}");
            // CPU is counted where there are proxies, a file's as ours.
            let cpu = |one: &Value| ["cpu-us-each", "cpu-s-per-gb"].iter().find_map(|key| one["values"][*key].as_f64());
            let has_cpu = those.iter().all(|one| cpu(one).is_some());
            assert_eq!(has_cpu, !system.starts_with("raw") && scenario != "mixed", "{system} {scenario} {those:?}");
            // What threads used that have ended since is known in ticks only: of few connections, nothing.
            assert!(!has_cpu || scenario == "connect-16" || those.iter().any(|one| cpu(one) > Some(0.0)), "{those:?}");
        }
    }
    for scenario in ["fresh", "idle-1000"] {
        let mut with_memory: Vec<&str> = samples
            .iter()
            .filter(|one| one["scenario"] == *scenario && one["values"]["rss-mib"].as_f64() > Some(0.1))
            .filter_map(|one| one["system"].as_str())
            .collect();
        // Systems take turns in being first.
        with_memory.sort_unstable();
        assert_eq!(with_memory, ["direct-one-node", "mesh", "mesh-one-node", "plain"], "{scenario}");
    }
    let wire = &found["wire"];
    assert!(
        wire["raw"]["word_in_clear"].as_u64() > Some(0) && wire["plain"]["word_in_clear"].as_u64() > Some(0),
        "{wire}"
    );
    assert_eq!(wire["mesh"]["word_in_clear"], 0);
    assert!(wire["mesh"]["tls_records"].as_u64() > Some(0), "{wire}");
    let rows = found["rows"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["scenario"] == "bulk-1" && row["quantity"] == "gbit-per-s").expect("a row");
    assert!(row["ratios"]["plain"]["median"].as_f64() > Some(0.0), "{row}");
    assert_eq!(found["budgets"][0]["result"], "kept");
}

#[test]
fn new_tunnels_are_measured_beside_many_pods() {
    let scenarios = ["crowd", "crowd-open-16", "cold-1", "cold-16"];
    let mut arguments = vec!["--pods", "3"];
    arguments.extend(scenarios.iter().flat_map(|scenario| ["--scenario", *scenario]));
    let found = succeeded(&bench(&arguments));
    let samples = found["samples"].as_array().expect("samples");
    let of = |system: &str, scenario: &str, quantity: &str| -> Vec<f64> {
        let those = samples.iter().filter(|one| one["system"] == *system && one["scenario"] == *scenario);
        those.filter_map(|one| one["values"][quantity].as_f64()).collect()
    };
    for scenario in ["cold-1", "cold-16"] {
        let (rates, cpu) = (of("mesh", scenario, "per-s"), of("mesh", scenario, "cpu-us-each"));
        assert!(rates.len() == 2 && rates.iter().all(|rate| *rate > 0.0), "{scenario} {rates:?}");
        // A handshake is never free: three of them are no less than three signatures.
        assert!(cpu.len() == 2 && cpu.iter().all(|cpu| *cpu > 1.0), "{scenario} {cpu:?}");
        // They are about tunnels between nodes.
        assert!(of("raw", scenario, "per-s").is_empty() && of("mesh-one-node", scenario, "per-s").is_empty());
    }
    for system in ["raw", "mesh", "raw-one-node", "mesh-one-node", "direct-one-node"] {
        assert_eq!(of(system, "crowd-open-16", "p99-us").len(), 2, "{system}");
    }
    let memory = of("mesh", "crowd", "rss-mib");
    assert!(memory.len() == 1 && memory.iter().all(|memory| *memory > 0.1), "{memory:?}");
}

/// System calls depend little on the machine's speed. Counted were 12, 62 to 68, and 101 to 116: a change that doubles one fails.
#[test]
fn a_request_a_connection_and_a_megabyte_take_no_more_system_calls_than_ever() {
    let mut command = Command::new(STILLMESH);
    command.args(["bench", "--rounds", "1", "--seconds", "1", "--foreign", "100", "--calls", "--json"]);
    let bounds =
        [("echo-1", "calls-each", 20.0), ("connect-1", "calls-each", 105.0), ("bulk-1", "calls-per-mb", 180.0)];
    for (scenario, ..) in bounds {
        command.args(["--scenario", scenario]);
    }
    let found = succeeded(&run(&mut command));
    let samples = found["samples"].as_array().expect("samples");
    let mut beyond = Vec::new();
    for (scenario, quantity, most) in bounds {
        let of = |system: &str| -> Vec<f64> {
            let those = samples.iter().filter(|one| one["system"] == *system && one["scenario"] == *scenario);
            those.filter_map(|one| one["values"][quantity].as_f64()).collect()
        };
        let [count] = of("mesh")[..] else { panic!("{scenario}: {samples:?}") };
        assert!(count > 0.0 && of("raw").is_empty(), "{scenario} {count}");
        if count > most {
            beyond.push(format!("{scenario}: {count:.1} {quantity}, at most {most} are expected"));
        }
    }
    assert!(beyond.is_empty(), "{beyond:#?}");
}

#[test]
fn profiles_are_written_where_it_is_asked() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // A tool that stands for perf: where that is missing, or may not be used, is no business of this test's.
    let tool = dir.path().join("perf");
    let content = "#!/bin/sh\ncase $1 in\n--version) ;;\nrecord) while [ \"$1\" != -o ]; do [ \"$1\" != -p ] || of=$2; shift; done; echo $of > $2; cat;;\n\
        report) while [ \"$1\" != -i ]; do shift; done; echo about; cat $2;;\nesac\n";
    fs::write(&tool, content).expect("the file can be written");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
    let into = dir.path().join("profiles");
    let path = stillmesh_runtime::env::Reader::process().string("PATH").expect("a search path");
    let mut command = Command::new(STILLMESH);
    command.args(["bench", "--rounds", "1", "--seconds", "0.1", "--foreign", "100", "--json", "--scenario", "echo-1"]);
    command.arg("--profile").arg(&into).env("PATH", format!("{}:{path}", dir.path().display()));
    succeeded(&run(&mut command));
    for name in ["mesh-1", "mesh-2", "mesh-one-node-1", "direct-one-node-1"] {
        let text = fs::read_to_string(into.join(format!("echo-1-{name}.txt"))).expect("a report");
        let of: Vec<&str> = text.lines().collect();
        assert!(of.len() == 2 && of[0] == "about" && of[1].parse::<u32>().is_ok(), "{name}: {text}");
    }
    assert_eq!(fs::read_dir(&into).expect("a folder").count(), 8);
}

#[test]
fn a_tool_that_is_missing_is_named_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (option, words) in
        [("--calls", "strace(1), which cannot be run"), ("--profile=x", "perf(1), which cannot be run")]
    {
        let output = run(Command::new(STILLMESH).args(["bench", option]).env("PATH", dir.path()).current_dir(&dir));
        let said = text(&output);
        assert!(!output.status.success() && said.contains(words) && !said.contains("…"), "{said}");
    }
}

#[test]
fn policies_are_pushed_under_load_and_nobody_is_refused_wrongly() {
    let scenarios = ["push", "scale", "policies", "policies-connect-16", "policies-push"];
    let mut command = Command::new(STILLMESH);
    command.args(["bench", "--rounds", "1", "--seconds", "0.5", "--foreign", "100", "--json"]);
    command.args(["--workloads", "20", "--policies", "30"]);
    command.args(scenarios.iter().flat_map(|scenario| ["--scenario", *scenario]));
    let found = succeeded(&run(&mut command));
    let samples = found["samples"].as_array().expect("samples");
    let of = |system: &str, scenario: &str, quantity: &str| -> Vec<f64> {
        let those = samples.iter().filter(|one| one["system"] == *system && one["scenario"] == *scenario);
        those.filter_map(|one| one["values"][quantity].as_f64()).collect()
    };
    for scenario in ["push", "policies-push"] {
        assert_eq!(of("mesh", scenario, "refused"), [0.0], "{scenario}");
        for quantity in ["p99-us", "p99-over-alone", "in-force-ms", "lifted-ms"] {
            let values = of("mesh", scenario, quantity);
            assert!(values.len() == 1 && values[0] > 0.0, "{scenario} {quantity} {values:?}");
        }
        assert!(of("raw", scenario, "p99-us").is_empty());
    }
    assert_eq!(of("mesh", "policies-connect-16", "per-s").len(), 1);
    assert_eq!(of("mesh", "policies", "known-s").len(), 1);
    assert!(of("mesh", "policies", "rss-mib").iter().any(|memory| *memory > 0.1));
}

#[test]
fn another_make_of_node_tunnels_is_measured_in_a_mesh_of_its_own() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // It tells that it was in our place, and that it was told what a tunnel needs to know, and is ours.
    let (script, said) = (dir.path().join("tunnel"), dir.path().join("said"));
    let content = format!(
        "#!/bin/sh\necho \"$NODE_NAME $CA_ADDRESS $POD_NAMESPACE $SERVICE_ACCOUNT $INSTANCE_IP $WORD $1\" >> {}\nexec {STILLMESH} proxy ztunnel\n",
        said.display()
    );
    fs::write(&script, content).expect("the file can be written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
    let file = dir.path().join("other.toml");
    let content = "name = 'other'\ncommand = ['${TUNNEL}', 'argument']\nenv = { WORD = 'word' }\n";
    fs::write(&file, content).expect("the file can be written");
    let mut command = Command::new(STILLMESH);
    command.args(["bench", "--rounds", "2", "--seconds", "0.2", "--foreign", "100", "--workloads", "20", "--json"]);
    command.args(["--scenario", "fresh", "--scenario", "echo-1", "--scenario", "scale", "--system"]).arg(&file);
    let found = succeeded(&run(command.env("TUNNEL", &script)));
    let samples = found["samples"].as_array().expect("samples");
    let of = |system: &str, scenario: &str, quantity: &str| -> Vec<f64> {
        let those = samples.iter().filter(|one| one["system"] == *system && one["scenario"] == *scenario);
        those.filter_map(|one| one["values"][quantity].as_f64()).collect()
    };
    for system in ["mesh", "mesh-one-node", "other", "other-one-node"] {
        assert_eq!(of(system, "echo-1", "per-s").len(), 2, "{system}");
        let cpu = of(system, "echo-1", "cpu-us-each");
        assert!(cpu.iter().any(|cpu| *cpu > 0.0), "{system} {cpu:?}");
        assert!(of(system, "fresh", "rss-mib").iter().any(|memory| *memory > 0.1), "{system}");
    }
    for system in ["mesh", "other"] {
        assert!(of(system, "scale", "restart-s").iter().any(|seconds| *seconds > 0.0), "{system}");
    }
    assert!(found["wire"]["other"]["tls_records"].as_u64() > Some(0), "{}", found["wire"]);
    let said = fs::read_to_string(said).expect("it ran");
    for node in ["node1", "node2"] {
        let told = said.lines().find(|line| line.starts_with(node)).unwrap_or_else(|| panic!("{node}: {said}"));
        assert!(told.starts_with(&format!("{node} https://")), "{told}");
        assert!(told.contains(":15012 istio-system ztunnel 10.") && told.ends_with(" word argument"), "{told}");
    }
    // node1's was killed by `scale`; ours were not started by the script.
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn what_passes_in_clear_unannounced_fails_the_run() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("plain.yaml");
    fs::write(&file, plain_system("leaky", "")).expect("the file can be written");
    let output = bench(&["--scenario", "echo-1", "--system", file.to_str().expect("a path")]);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("leaky on the wire: the application's bytes can be read between the nodes"), "{said}");
}

#[test]
fn what_it_cannot_measure_is_said_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, content).expect("the file can be written");
        path.to_str().expect("a path").to_owned()
    };
    let same = path("same.yaml", &plain_system("raw", ""));
    let empty = path("empty.yaml", "");
    let broken = path("broken.yaml", "a: [1, 2");
    let tunnel = path("tunnel.toml", "name = 'other'\ncommand = ['/no/such']\n");
    let budgets = path(
        "budgets.toml",
        "[[budget]]\nscenario = 'speed'\nquantity = 'p50-us'\ncomparison = 'at-most'\nvalue = 1\n",
    );
    for (arguments, words) in [
        (["--system", "/no/such.yaml"], "system /no/such.yaml"),
        (["--system", &broken], "not YAML"),
        (["--system", &empty], "it needs one Namespace"),
        (["--system", &same], "there is a system raw already"),
        (["--system", &tunnel], "there is no program \"/no/such\""),
        (["--scenario", "speed"], "there are: fresh, bulk-1"),
        (["--check", &budgets], "no scenario speed"),
        (["--check", "/no/such.toml"], "budgets /no/such.toml"),
    ] {
        let output = bench(&arguments);
        let said = text(&output);
        assert!(!output.status.success() && said.contains(words), "{arguments:?}: {said}");
        assert!(!said.contains("…"), "{arguments:?} started something: {said}");
    }
}

#[test]
fn interrupted_it_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let said = dir.path().join("said");
    let mut child = Command::new(STILLMESH)
        .args(["bench", "--rounds", "100", "--scenario", "echo-1"])
        .env("TMPDIR", dir.path())
        .stdout(std::process::Stdio::null())
        .stderr(fs::File::create(&said).expect("a file"))
        .spawn()
        .expect("it starts");
    let told = || fs::read_to_string(&said).unwrap_or_default();
    wait("it measures", || {
        assert!(child.try_wait().expect("a child").is_none(), "{}", told());
        told().contains("round 1 of 100")
    });
    let below = descendants(child.id());
    assert!(below.len() > 5, "{below:?}");
    signal(child.id(), "INT");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    wait("its processes are gone", || !below.iter().any(|pid| is_stillmesh(*pid)));
    let left: Vec<_> = fs::read_dir(dir.path()).expect("a folder").flatten().map(|one| one.file_name()).collect();
    assert_eq!(left, ["said"]);
}

fn descendants(root: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let pids = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|one| one.file_name().to_str()?.parse().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut family = vec![root];
    let mut at = 0;
    while let Some(of) = family.get(at).copied() {
        family.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    family
}

/// Whether a process is one of ours still, and not another that has its number by now.
fn is_stillmesh(pid: u32) -> bool {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    exe == Path::new(STILLMESH)
}
