//! Where policies, routes and bindings are in force, as the controller knows it at this moment.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::api::Api;
use super::node_http;
use super::system::MONITORING;

const DEADLINE: Duration = Duration::from_secs(5);

/// A page of the controller that is a list; `None` while it does not answer.
pub(super) async fn page(api: &Api, path: &str) -> Option<Vec<Value>> {
    let controller = api.reconciler.lock().await.controller()?;
    let node = api.machine.nodes.first()?;
    let asking = async {
        let stream = node_http::connect(node, SocketAddr::new(controller, MONITORING), true).await?;
        let (_, body) = node_http::exchange(stream, "controller", path, &[]).await?;
        anyhow::Ok(serde_json::from_slice::<Vec<Value>>(&body)?)
    };
    tokio::time::timeout(DEADLINE, asking).await.ok()?.ok()
}

/// Puts an object's receipt into its status, for whoever prints it.
pub(super) fn attach(object: &mut Value, receipts: &[Value]) {
    let (kind, metadata) = (&object["kind"], &object["metadata"]);
    let is_its = |receipt: &&Value| {
        ["namespace", "name"].iter().all(|field| receipt[*field] == metadata[*field]) && receipt["kind"] == *kind
    };
    if let Some(receipt) = receipts.iter().find(is_its) {
        let mut receipt = receipt.clone();
        if let Some(fields) = receipt.as_object_mut() {
            ["kind", "namespace", "name"].iter().for_each(|field| drop(fields.remove(*field)));
        }
        object["status"]["receipt"] = receipt;
    }
}

/// In how many places an object is in force, of how many, and how long that took.
pub(super) fn cell(object: &Value) -> String {
    let receipt = &object["status"]["receipt"];
    let (Some(in_force), Some(expected)) = (receipt["inForce"].as_u64(), receipt["expected"].as_u64()) else {
        return "-".to_owned();
    };
    let took = receipt["took"]["p99Ms"].as_u64().filter(|_| in_force == expected);
    let not_used = if receipt["refused"] == true { ", not the newest" } else { "" };
    took.map_or(format!("{in_force}/{expected}{not_used}"), |took| format!("{in_force}/{expected} ({took} ms)"))
}

/// What `status` says: how many are in force everywhere, and of the others where not.
pub(super) fn lines(receipts: &[Value]) -> Vec<String> {
    let lags = |receipt: &&Value| receipt["inForce"] != receipt["expected"] || receipt["refused"] == true;
    let complete = receipts.len() - receipts.iter().filter(lags).count();
    let mut lines =
        vec![format!("policies, routes and bindings: {complete} of {} in force everywhere", receipts.len())];
    lines.extend(receipts.iter().filter(lags).take(LISTED).map(|receipt| {
        let text = |field: &str| receipt[field].as_str().unwrap_or_default().to_owned();
        let lagging = receipt["lagging"].as_array().into_iter().flatten().map(|one| {
            format!("{} ({})", one["name"].as_str().unwrap_or_default(), one["reason"].as_str().unwrap_or_default())
        });
        let lagging: Vec<String> = lagging.collect();
        let what = format!("{} {}/{}", text("kind"), text("namespace"), text("name"));
        match receipt["refused"] == true {
            true => format!("  {what}: its newest version is not used"),
            false => {
                let (in_force, expected) = (&receipt["inForce"], &receipt["expected"]);
                format!("  {what}: in force in {in_force} of {expected} places; lagging: {}", lagging.join(", "))
            }
        }
    }));
    lines
}

/// Objects that `status` names.
const LISTED: usize = 20;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn receipt(name: &str, in_force: u64, more: Value) -> Value {
        let mut receipt = json!({"kind": "AuthorizationPolicy", "namespace": "shop", "name": name, "inForce": in_force,
            "expected": 2, "lagging": []});
        more.as_object().unwrap().iter().for_each(|(key, value)| receipt[key] = value.clone());
        receipt
    }

    #[test]
    fn a_receipt_is_told_with_its_object_and_in_a_word() {
        let receipts = [receipt("a", 2, json!({"took": {"p99Ms": 80}})), receipt("b", 1, json!({}))];
        let object = |name: &str| {
            let mut object =
                json!({"kind": "AuthorizationPolicy", "metadata": {"namespace": "shop", "name": name}, "spec": {}});
            attach(&mut object, &receipts);
            object
        };
        assert_eq!(
            (cell(&object("a")), cell(&object("b")), cell(&object("c"))),
            ("2/2 (80 ms)".into(), "1/2".into(), "-".into())
        );
        assert_eq!(object("c")["status"], Value::Null);
    }

    #[test]
    fn who_lags_is_named() {
        let lagging = json!({"lagging": [{"name": "n2", "reason": "not connected"}]});
        let receipts =
            [receipt("a", 2, json!({})), receipt("b", 1, lagging), receipt("c", 2, json!({"refused": true}))];
        assert_eq!(
            lines(&receipts),
            [
                "policies, routes and bindings: 1 of 3 in force everywhere",
                "  AuthorizationPolicy shop/b: in force in 1 of 2 places; lagging: n2 (not connected)",
                "  AuthorizationPolicy shop/c: its newest version is not used",
            ]
        );
    }
}
