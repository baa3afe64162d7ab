//! What `stillmesh precheck` says where an operation is refused. Every refusal is a real one, planted in namespaces of
//! the test's own: a limit, a mount, a system call filter. A machine that permits no namespaces fails these tests.
#![expect(clippy::panic, clippy::expect_used, reason = "a test that cannot run fails with the reason")]

mod plant;

use std::process::{Command, Stdio};

use serde_json::Value;
use stillmesh_test_support::isolated;

/// What the pre-check said.
struct Said {
    code: Option<i32>,
    json: Value,
    text: String,
}

/// With whose privileges the pre-check runs: with root's it makes no user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    Root,
    User,
}

/// Runs the pre-check, both ways of telling, under what `plant` does to the thread that starts it.
fn precheck(who: As, plant: impl Fn() + Send + Sync) -> Said {
    let run = |json: bool| {
        let start = || {
            if who == As::User {
                plant::no_capabilities();
            }
            plant();
            let mut command = Command::new(env!("CARGO_BIN_EXE_stillmesh"));
            command.arg("precheck").args(json.then_some("--json")).stdin(Stdio::null());
            command.output().expect("the command starts")
        };
        // Filters and capabilities are a thread's own, and its children's.
        std::thread::scope(|scope| scope.spawn(start).join()).expect("the thread that plants")
    };
    let (text, json) = (run(false), run(true));
    let shown = |output: &std::process::Output| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    assert_eq!(text.status.code(), json.status.code(), "{}\n{}", shown(&text), shown(&json));
    let said = Said {
        code: json.status.code(),
        json: serde_json::from_slice(&json.stdout).unwrap_or_else(|error| panic!("{error}: {}", shown(&json))),
        text: shown(&text),
    };
    assert_eq!(said.json["user_namespace"], who == As::User, "{}", said.text);
    assert_eq!(said.json["passes"], said.code == Some(0), "{}", said.text);
    said
}

impl Said {
    fn check(&self, id: &str) -> &Value {
        let checks = self.json["checks"].as_array().expect("checks");
        checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no {id} in {}", self.json))
    }

    /// The operation is refused, the mesh cannot run, and the remedy has these words, in JSON and in the text.
    fn refuses(&self, id: &str, words: &[&str]) {
        assert_ne!(self.code, Some(0), "{}", self.text);
        let check = self.check(id);
        assert_eq!(check["result"], "refused", "{id}: {}", self.text);
        let remedy = check["remedy"].as_str().unwrap_or_default();
        for word in words {
            assert!(remedy.contains(word), "{id}: {word:?} is not in the remedy:\n{remedy}");
            assert!(self.text.contains(word), "{id}: {word:?} is not in the text:\n{}", self.text);
        }
        let line = format!("REFUSED {}", check["what"].as_str().expect("a text"));
        assert!(self.text.contains(&line), "{line:?} is not in\n{}", self.text);
    }

    fn works(&self, id: &str) {
        assert_eq!(self.check(id)["result"], "works", "{id}: {}", self.text);
    }

    /// Nothing that the mesh needs is refused.
    fn passes(&self) {
        assert_eq!(self.code, Some(0), "this machine refuses something without being made to:\n{}", self.text);
    }
}

#[test]
fn nothing_planted_is_nothing_refused() {
    isolated(|| {
        for who in [As::Root, As::User] {
            precheck(who, || ()).passes();
        }
    });
}

#[test]
fn a_seccomp_filter_like_a_container_engines_is_named() {
    isolated(|| {
        let said = precheck(As::User, plant::container_filter);
        said.refuses("user-namespace", &["a seccomp filter refuses", "--security-opt seccomp=unconfined"]);
        assert_eq!(said.check("network-namespace")["result"], "not-tried");
        let said = precheck(As::Root, plant::container_filter);
        said.refuses("network-namespace", &["a seccomp filter refuses", "--security-opt seccomp=unconfined"]);
        assert_eq!(said.check("user-namespace")["result"], "not-needed");
    });
}

#[test]
fn a_limit_of_no_user_namespaces_is_named() {
    isolated(|| {
        plant::limit("max_user_namespaces", 0);
        precheck(As::User, || ()).refuses("user-namespace", &["sysctl -w user.max_user_namespaces="]);
        // Root's mesh needs none.
        precheck(As::Root, || ()).passes();
    });
}

#[test]
fn limits_of_the_other_namespaces_are_named() {
    isolated(|| {
        for (id, kind) in [
            ("network-namespace", "net"),
            ("mount-namespace", "mnt"),
            ("host-name-namespace", "uts"),
            ("ipc-namespace", "ipc"),
            ("process-namespace", "pid"),
        ] {
            let before = plant::limit(&format!("max_{kind}_namespaces"), 0);
            for who in [As::Root, As::User] {
                precheck(who, || ()).refuses(id, &[&format!("sysctl -w user.max_{kind}_namespaces=")]);
            }
            plant::limit(&format!("max_{kind}_namespaces"), before);
        }
    });
}

#[test]
fn a_read_only_proc_sys_is_named() {
    isolated(|| {
        plant::read_only("/proc/sys");
        let said = precheck(As::User, || ());
        said.refuses("fresh-proc", &["masked or read-only", "findmnt -R /proc", "systempaths=unconfined"]);
        said.refuses("forwarding", &["/proc/sys is read-only"]);
        // Who owns the mounts may have a new /proc, where /proc/sys can be written.
        let said = precheck(As::Root, || ());
        said.works("fresh-proc");
        said.works("forwarding");
    });
}

#[test]
fn a_masked_proc_is_named() {
    isolated(|| {
        plant::masked("/proc/version");
        let said = precheck(As::User, || ());
        said.refuses("fresh-proc", &["masked or read-only", "findmnt -R /proc", "systempaths=unconfined"]);
        // The rest is tried all the same.
        said.works("veth");
    });
}

#[test]
fn a_machine_without_ipv6_can_hold_a_mesh_and_is_told_so() {
    isolated(|| {
        for who in [As::Root, As::User] {
            let said = precheck(who, plant::no_ipv6);
            said.passes();
            let check = said.check("ipv6");
            assert_eq!((&check["result"], &check["required"]), (&"refused".into(), &false.into()));
            assert!(said.text.contains("missing use IPv6 (not required)"), "{}", said.text);
            assert!(said.text.contains("the mesh runs with IPv4 alone"), "{}", said.text);
        }
    });
}
