//! Where policies, routes, bindings and enrolments are in force, as the controller knows it at this moment.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::api::Api;
use super::node_http;
use super::system::MONITORING;

const DEADLINE: Duration = Duration::from_secs(5);

/// A page of the controller that is a list. Errors: it does not answer, or says that it cannot yet.
pub(super) async fn page(api: &Api, path: &str) -> anyhow::Result<Vec<Value>> {
    let controller = api.reconciler.lock().await.controller().context("no controller runs yet")?;
    let node = api.machine.nodes.first().context("there is no node")?;
    let asking = async {
        let stream = node_http::connect(node, SocketAddr::new(controller, MONITORING), true).await?;
        let (status, body) = node_http::exchange(stream, "controller", path, &[]).await?;
        ensure!(status == 200, "the controller: {}", String::from_utf8_lossy(&body).trim());
        anyhow::Ok(serde_json::from_slice::<Vec<Value>>(&body)?)
    };
    tokio::time::timeout(DEADLINE, asking)
        .await
        .with_context(|| format!("the controller has not answered within {DEADLINE:?}"))?
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

/// What `status` says: how many are in force everywhere, and of the others where not; then the same of enrolments.
pub(crate) fn lines(receipts: &[Value]) -> Vec<String> {
    let (enrolments, objects): (Vec<&Value>, Vec<&Value>) =
        receipts.iter().partition(|receipt| receipt["kind"] == "Namespace");
    let of_objects = told("policies, routes and bindings", "in force everywhere", &objects, |receipt| {
        let what = format!("{} {}/{}", text(receipt, "kind"), text(receipt, "namespace"), text(receipt, "name"));
        if receipt["refused"] == true {
            return format!("{what}: its newest version is not used");
        }
        let (in_force, expected) = (&receipt["inForce"], &receipt["expected"]);
        format!("{what}: in force in {in_force} of {expected} places; lagging: {}", lagging(receipt))
    });
    let of_enrolments = told("namespaces in the mesh", "have all their pods captured", &enrolments, |receipt| {
        let (captured, pods) = (&receipt["inForce"], &receipt["expected"]);
        format!("{}: {captured} of {pods} pods captured; lagging: {}", text(receipt, "name"), lagging(receipt))
    });
    of_objects.into_iter().chain(of_enrolments).collect()
}

/// What `status` says where no controller says it.
pub(crate) fn unknown(why: &str) -> String {
    format!("policies, routes and bindings: where they are in force is not known: {why}")
}

/// How many there are, how many of them are whole, and a line about each of the first that are not.
fn told(what: &str, how: &str, receipts: &[&Value], about: impl Fn(&Value) -> String) -> Vec<String> {
    if receipts.is_empty() {
        return Vec::new();
    }
    let lags = |receipt: &&&Value| receipt["inForce"] != receipt["expected"] || receipt["refused"] == true;
    let lagging: Vec<&&Value> = receipts.iter().filter(lags).collect();
    let whole = receipts.len() - lagging.len();
    let mut lines = vec![format!("{what}: {whole} of {} {how}", receipts.len())];
    lines.extend(lagging.iter().take(LISTED).map(|receipt| format!("  {}", about(receipt))));
    if let Some(more) = lagging.len().checked_sub(LISTED).filter(|more| *more > 0) {
        lines.push(format!("  and {more} more"));
    }
    lines
}

fn text<'a>(receipt: &'a Value, field: &str) -> &'a str {
    receipt[field].as_str().unwrap_or_default()
}

/// Who lags, and why.
fn lagging(receipt: &Value) -> String {
    let lagging = receipt["lagging"].as_array().into_iter().flatten();
    lagging.map(|one| format!("{} ({})", text(one, "name"), text(one, "reason"))).collect::<Vec<_>>().join(", ")
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
    fn enrolments_are_told_by_themselves() {
        let enrolled = |name: &str, in_force: u64, lagging: Value| json!({"kind": "Namespace", "name": name, "inForce": in_force, "expected": 6, "lagging": lagging});
        let lagging = json!([{"name": "shop/web-0", "reason": "it is not captured"}]);
        let receipts = [enrolled("bank", 6, json!([])), enrolled("shop", 5, lagging)];
        assert_eq!(
            lines(&receipts),
            [
                "namespaces in the mesh: 1 of 2 have all their pods captured",
                "  shop: 5 of 6 pods captured; lagging: shop/web-0 (it is not captured)",
            ]
        );
        let mut namespace = json!({"kind": "Namespace", "metadata": {"name": "shop"}});
        attach(&mut namespace, &receipts);
        assert_eq!(cell(&namespace), "5/6");
    }

    #[test]
    fn a_status_names_some_and_counts_the_others() {
        let many: Vec<Value> = (0..LISTED + 3).map(|number| receipt(&number.to_string(), 1, json!({}))).collect();
        let lines = lines(&many);
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (LISTED + 2, Some("  and 3 more")));
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
