use std::path::Path;

use serde_json::json;

use super::*;
use crate::known::{Keeper, Known};

const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a;K8S_POD_UID=u-1";

fn call(values: &[(&str, &str)], input: &Value) -> (String, Done) {
    let reader = Reader::from_values(values.iter().copied());
    Call { reader: &reader, input: input.to_string().as_bytes() }.answer()
}

fn input(state: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "stillmesh-cni",
        "cni_agent_run_dir": state.join("absent"), "state_dir": state,
        "exclude_namespaces": ["kube-system"], "pod_namespace": "stillmesh-system",
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.7/24"}], "dns": {}, "x": [1, null]},
    })
}

fn add(args: &str, input: &Value) -> Done {
    call(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "/run/netns/x"), ("CNI_ARGS", args)], input).1
}

#[test]
fn the_name_or_the_environment_makes_it_the_plugin() {
    let called = |arguments: &[&str], values: &[(&str, &str)]| {
        is_called(arguments.iter().map(Into::into), &Reader::from_values(values.iter().copied()))
    };
    assert!(called(&["/opt/cni/bin/stillmesh-cni"], &[]));
    assert!(called(&["/usr/bin/stillmesh"], &[("CNI_COMMAND", "ADD")]));
    assert!(!called(&["/usr/bin/stillmesh", "agent"], &[("CNI_COMMAND", "ADD")]));
    assert!(!called(&["stillmesh"], &[]));
}

#[test]
fn without_an_agent_only_pods_of_the_mesh_wait() {
    let state = tempfile::tempdir().unwrap();
    let mut keeper = Keeper::new(state.path());
    let enrolled = ["shop".to_owned(), "kube-system".to_owned()].into();
    keeper.keep(Known { enrolled, ..Known::default() }).unwrap();
    let input = input(state.path());
    let failure = add(ARGS, &input).unwrap_err();
    assert_eq!(failure.code, Code::TryAgainLater);
    assert!(failure.message.starts_with("pod shop/a does not start without the mesh: namespace shop is in the mesh"));
    assert!(failure.message.contains("cannot connect to"), "{failure}");
    assert!(failure.details.contains("kubectl -n stillmesh-system get pods -l app=stillmesh-cni"));

    let unchanged = input["prevResult"].clone();
    for namespace in ["other", "kube-system", "stillmesh-system"] {
        let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=a");
        assert_eq!(add(&args, &input), Ok(Some(unchanged.clone())), "{namespace}");
    }
    assert_eq!(add("", &input), Ok(Some(unchanged)));
}

#[test]
fn the_other_commands_need_no_agent() {
    let state = tempfile::tempdir().unwrap();
    let input = input(state.path());
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        assert_eq!(call(&[("CNI_COMMAND", command), ("CNI_ARGS", ARGS)], &input), ("1.0.0".to_owned(), Ok(None)));
    }
    let (_, versions) = call(&[("CNI_COMMAND", "VERSION")], &json!({"cniVersion": "1.0.0"}));
    assert_eq!(versions.unwrap().unwrap()["cniVersion"], "1.0.0");
}

#[test]
fn a_call_that_makes_no_sense_is_refused_by_its_number() {
    let state = tempfile::tempdir().unwrap();
    let good = input(state.path());
    let code = |values: &[(&str, &str)], input: &Value| call(values, input).1.unwrap_err().code;
    assert_eq!(code(&[("CNI_COMMAND", "JUMP")], &good), Code::InvalidEnvironment);
    assert_eq!(code(&[], &good), Code::InvalidEnvironment);
    assert_eq!(code(&[("CNI_COMMAND", "ADD"), ("CNI_ARGS", ARGS)], &good), Code::InvalidEnvironment);
    let mut alone = good.clone();
    alone["prevResult"] = Value::Null;
    assert_eq!(code(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "/x")], &alone), Code::InvalidConfiguration);
    assert_eq!(code(&[("CNI_COMMAND", "CHECK")], &alone), Code::InvalidConfiguration);
    let mut old = good;
    old["cniVersion"] = json!("0.1.0");
    assert_eq!(code(&[("CNI_COMMAND", "DEL")], &old), Code::IncompatibleVersion);
}
