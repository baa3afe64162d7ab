//! `get`, `logs` and `exec` as a shell uses them: pipes, exit codes, readers that go away.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::Value;

use crate::scene::{SLEEP, Scene, pod};
use crate::support::{run, signal, text, wait};

/// Waits for the end of a child, which must come; its exit code.
fn end(child: &mut Child) -> Option<i32> {
    let mut code = None;
    wait("the command ends", || {
        code = child.try_wait().unwrap().map(|status| status.code());
        code.is_some()
    });
    code.flatten()
}

#[test]
fn get_prints_tables_and_json_of_one_namespace_one_object_or_all() {
    let scene = Scene::new("shell-get", &(pod("one", "", SLEEP, "") + &pod("two", "", SLEEP, "")));
    scene.wait_ready("one");
    scene.wait_ready("two");
    let get = |more: &[&str]| {
        let mut arguments = vec!["get", "pods"];
        arguments.extend(more);
        scene.mesh.command(&arguments)
    };
    let table = text(&get(&["-n", "shell-get", "one"]));
    assert!(table.contains("one ") && !table.contains("two "), "{table}");
    let wide = text(&get(&["-n", "shell-get", "-o", "wide"]));
    let six = scene.mesh.ips("shell-get", "one").get(1).cloned().unwrap_or_default();
    assert!(wide.contains("ACCOUNT") && wide.contains("default") && wide.contains(&six), "{wide}");
    let all = text(&get(&["-A"]));
    assert!(all.lines().any(|line| line.starts_with("shell-get") && line.contains(" one ")), "{all}");
    assert!(all.lines().any(|line| line.starts_with("istio-system")), "{all}");
    let one: Value = serde_json::from_slice(&get(&["-n", "shell-get", "one", "-o", "json"]).stdout).unwrap();
    assert_eq!((&one["kind"], &one["metadata"]["name"]), (&"Pod".into(), &"one".into()));
    let list: Value = serde_json::from_slice(&get(&["-A", "-o", "json"]).stdout).unwrap();
    assert_eq!(list["kind"], "List");
    assert!(list["items"].as_array().unwrap().len() > 2);
    let absent = get(&["-n", "shell-get", "three"]);
    assert!(!absent.status.success() && text(&absent).contains("three"), "{}", text(&absent));
}

#[test]
fn following_logs_ends_with_the_reader_or_the_container() {
    let chatty = pod("chatty", "", "echo hello; exec sleep infinity", "");
    let brief =
        pod("brief", "restartPolicy: Never", "echo first; while ! test -f DIR/go; do sleep 0.1; done; echo last", "");
    let scene = Scene::new("shell-logs", &(chatty + &brief));
    scene.wait_ready("chatty");
    scene.wait_ready("brief");
    let follow = |pod: &str| {
        let mut child =
            scene.mesh.prepare(&["logs", "-f", "-n", "shell-logs", pod]).stdout(Stdio::piped()).spawn().unwrap();
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        (child, reader, line)
    };
    // Nothing more is printed there; the reader goes.
    let (mut child, reader, line) = follow("chatty");
    assert_eq!(line, "hello\n");
    drop(reader);
    end(&mut child);
    // A container that ends for good.
    let (mut child, mut reader, line) = follow("brief");
    assert_eq!(line, "first\n");
    scene.flag("go");
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), end(&mut child)), ("last\n", Some(0)));
    // A pod that is deleted.
    let (mut child, _reader, _) = follow("chatty");
    scene.set("");
    assert_eq!(end(&mut child), Some(0));
}

#[test]
fn exec_is_a_pipe_both_ways() {
    let scene = Scene::new("shell-pipe", &pod("one", "", SLEEP, ""));
    scene.wait_ready("one");
    let exec = ["exec", "-n", "shell-pipe", "one", "--"];
    let mut cat = scene.mesh.prepare(&[&exec[..], &["cat"]].concat());
    let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let bytes: Vec<u8> = (0..4_000_003_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut into, sent) = (cat.stdin.take().unwrap(), bytes.clone());
    let writer = thread::spawn(move || into.write_all(&sent));
    let mut back = Vec::new();
    cat.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(end(&mut cat), Some(0));
    assert!(back == bytes, "{} bytes came back of {}", back.len(), bytes.len());

    let lines = scene.said("one", "seq 1 500000");
    assert_eq!((lines.lines().count(), lines.lines().last()), (500_000, Some("500000")));

    let mut head = scene.mesh.prepare(&[&exec[..], &["yes"]].concat()).stdout(Stdio::piped()).spawn().unwrap();
    let mut two = [0; 2];
    head.stdout.take().unwrap().read_exact(&mut two).unwrap();
    assert_ne!(end(&mut head), Some(0), "yes ends when nobody reads");
}

#[test]
fn exec_of_a_program_that_does_not_exist_is_127_and_said() {
    let scene = Scene::new("shell-absent", &pod("one", "", SLEEP, ""));
    scene.wait_ready("one");
    let absent = scene.mesh.exec("shell-absent", "one", &["no-such-program"]);
    assert_eq!(absent.status.code(), Some(127));
    assert!(text(&absent).contains("no-such-program"), "{}", text(&absent));
    // A directory can be found and not be run.
    assert_eq!(scene.mesh.exec("shell-absent", "one", &["/tmp"]).status.code(), Some(126));
}

#[test]
fn a_program_ends_with_its_exec() {
    let scene = Scene::new("shell-killed", &pod("one", "", SLEEP, ""));
    scene.wait_ready("one");
    let runs = || scene.said("one", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").contains("sleep 4711");
    for kill in ["INT", "KILL"] {
        let exec = scene.mesh.prepare(&["exec", "-n", "shell-killed", "one", "--", "sleep", "4711"]);
        // Whoever started the tests in the background of a script had them ignore interrupts; a user has not.
        let mut exec = Command::new("env")
            .arg("--default-signal=INT")
            .arg(exec.get_program())
            .args(exec.get_args())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        wait("it runs", runs);
        signal(exec.id(), kill);
        end(&mut exec);
        wait("the program has ended", || !runs());
    }
}

#[test]
fn a_pod_that_does_not_run_cannot_be_entered_but_its_log_can_be_read() {
    let scene = Scene::new("shell-done", &pod("done", "restartPolicy: Never", "echo bye", ""));
    scene.wait_word("done", "Completed");
    let exec = scene.mesh.exec("shell-done", "done", &["true"]);
    assert!(!exec.status.success() && text(&exec).contains("does not run"), "{}", text(&exec));
    let follow = run(&mut scene.mesh.prepare(&["logs", "-f", "-n", "shell-done", "done"]));
    assert_eq!(String::from_utf8_lossy(&follow.stdout), "bye\n");
}
