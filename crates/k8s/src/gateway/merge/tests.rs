use serde_json::json;

use super::*;

#[test]
fn an_overlay_says_only_what_is_to_be_different() {
    let base = || {
        json!({
            "replicas": 1,
            "labels": {"a": "1", "b": "2"},
            "containers": [{
                "name": "p",
                "image": "i",
                "args": ["x", "y"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "ports": [{"containerPort": 1, "name": "one"}, {"containerPort": 2, "name": "two"}],
                "volumeMounts": [{"mountPath": "/a", "name": "v"}],
            }],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "tolerations": [{"key": "a"}],
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "finalizers": ["f"],
        })
    };
    for (overlay, pointer, wanted) in [
        (json!({"replicas": 3}), "/replicas", json!(3)),
        (json!({"replicas": null}), "/replicas", Value::Null),
        (json!({"labels": {"b": "3", "c": "4"}}), "/labels", json!({"a": "1", "b": "3", "c": "4"})),
        (json!({"labels": {"a": null}}), "/labels", json!({"b": "2"})),
        (json!({"labels": {"$patch": "replace", "c": "4"}}), "/labels", json!({"c": "4"})),
        (json!({"labels": {"$patch": "delete"}}), "/labels", Value::Null),
        (json!({"containers": [{"name": "p", "image": "j"}]}), "/containers/0/image", json!("j")),
        (json!({"containers": [{"name": "p", "image": "j"}]}), "/containers/0/args", json!(["x", "y"])),
        (json!({"containers": [{"name": "p", "args": ["z"]}]}), "/containers/0/args", json!(["z"])),
        (json!({"containers": [{"name": "q"}]}), "/containers/1", json!({"name": "q"})),
        (
            json!({"containers": [{"name": "p", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]}]}),
            "/containers/0/env",
            json!([{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}]),
        ),
        (
            json!({"containers": [{"name": "p", "env": [{"name": "A", "$patch": "delete"}]}]}),
            "/containers/0/env",
            json!([{"name": "B", "value": "2"}]),
        ),
        (
            json!({"containers": [{"name": "p", "env": [{"$patch": "replace"}, {"name": "C", "value": "4"}]}]}),
            "/containers/0/env",
            json!([{"name": "C", "value": "4"}]),
        ),
        (
            json!({"containers": [{"name": "p", "ports": [{"containerPort": 2, "name": "zwei"}]}]}),
            "/containers/0/ports",
            json!([{"containerPort": 1, "name": "one"}, {"containerPort": 2, "name": "zwei"}]),
        ),
        (
            json!({"containers": [{"name": "p", "volumeMounts": [{"mountPath": "/b", "name": "w"}]}]}),
            "/containers/0/volumeMounts",
            json!([{"mountPath": "/a", "name": "v"}, {"mountPath": "/b", "name": "w"}]),
        ),
        (
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
            "/volumes",
            json!([{"name": "v", "hostPath": {"path": "/x"}}]),
        ),
        (json!({"tolerations": [{"key": "b"}]}), "/tolerations", json!([{"key": "b"}])),
        (json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}), "/strategy", json!({"type": "Recreate"})),
        (json!({"finalizers": ["g", "f"]}), "/finalizers", json!(["f", "g"])),
        (json!({"$deleteFromPrimitiveList/finalizers": ["f"]}), "/finalizers", json!([])),
        (json!({"new": {"$patch": "merge", "a": {"b": 1}}}), "/new", json!({"a": {"b": 1}})),
    ] {
        let merged = merge(base(), &overlay).unwrap();
        assert_eq!(merged.pointer(pointer).cloned().unwrap_or_default(), wanted, "{overlay}");
    }
}

#[test]
fn the_ports_of_a_service_are_known_by_their_numbers() {
    let base = json!({"ports": [{"port": 15008, "name": "mesh"}]});
    let overlay = json!({"ports": [{"port": 15008, "nodePort": 30000}, {"port": 80}]});
    let wanted = json!({"ports": [{"port": 15008, "name": "mesh", "nodePort": 30000}, {"port": 80}]});
    assert_eq!(merge(base, &overlay).unwrap(), wanted);
}

#[test]
fn what_cannot_be_merged_is_told_with_its_place() {
    let base = json!({"spec": {"containers": [{"name": "p"}]}});
    for (overlay, words) in [
        (json!({"spec": {"containers": [{"image": "x"}]}}), "spec.containers[0]: name is missing"),
        (json!({"spec": {"containers": ["x"]}}), "spec.containers[0]: not a map"),
        (json!({"spec": {"$patch": "keep"}}), "spec.$patch: merge, replace and delete"),
        (json!({"spec": {"$setElementOrder/containers": []}}), "not known"),
        (json!({"spec": {"$retainKeys": "x"}}), "a list of words"),
    ] {
        let error = merge(base.clone(), &overlay).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn merging_with_nothing_changes_nothing_and_twice_is_once() {
    let base = json!({"a": [{"x": 1}], "env": [{"name": "A"}], "b": {"c": null}});
    assert_eq!(merge(base.clone(), &json!({})).unwrap(), base);
    let overlay = json!({"a": [{"x": 2}], "env": [{"name": "A", "value": "v"}, {"name": "B"}], "b": {"d": 1}});
    let once = merge(base, &overlay).unwrap();
    assert_eq!(merge(once.clone(), &overlay).unwrap(), once);
}
