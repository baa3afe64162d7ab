//! How orders are shown: while they are carried out, as a list, as they are.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use serde_json::{Value, json};

use super::Wanted;
use super::place::Place;
use crate::cluster::args::Report;
use crate::cluster::progress::took;
use crate::cluster::value::{list, name, namespace, text};
use crate::output::{Mark, Marks, aligned, line, note};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Every node has carried it out.
    Out,
    /// It is over, and every pod is as before.
    Back,
}

/// Says which nodes have done it since the last look. Returns what is still waited for; fails where the order is refused.
pub(super) fn progress(
    order: &Value,
    goal: Goal,
    told: &mut BTreeSet<String>,
    aloud: bool,
) -> anyhow::Result<Vec<String>> {
    let status = &order["status"];
    let title = format!("{} {}/{}", text(&order["kind"]), namespace(order), name(order));
    let said = list(&status["conditions"]).find(|one| one["type"] == "Done");
    let done = said.is_some_and(|one| one["status"] == "True");
    // A Quarantine holds all that it means: nothing comes of waiting.
    let overridden = said.is_some_and(|one| one["reason"] == "Overridden");
    match (text(&status["phase"]), goal) {
        ("", _) => return Ok(vec![format!("the controller has not looked at {title}")]),
        ("Refused", _) => bail!("{title} is refused: {}", text(&status["summary"])),
        ("Active", Goal::Back) => return Ok(vec![format!("the controller has not ended {title}")]),
        (_, Goal::Back) if done => return Ok(Vec::new()),
        (_, Goal::Back) => return Ok(vec![format!("{title}: {}", text(&status["summary"]))]),
        ("Ended", Goal::Out) => bail!("{title} has been ended meanwhile"),
        _ => {}
    }
    let mut lagging = Vec::new();
    for node in list(&status["nodes"]) {
        let (name, pods, done) = (text(&node["node"]), number(&node["pods"]), number(&node["done"]));
        if done < pods {
            lagging.push(format!("{name}: {done} of {pods} pods"));
        } else if told.insert(format!("{title} {name}")) && aloud {
            let ms = node["tookMs"].as_u64().map(|ms| format!(" in {ms} ms")).unwrap_or_default();
            let open = number(&node["connections"]);
            let good = Marks::out().show(Mark::Good);
            line(&match text(&order["kind"]) {
                "Quarantine" => format!("{good} {name}: {pods} pods cut off{ms}, {open} open connections cut"),
                _ => format!("{good} {name}: {pods} pods out{ms}, {open} open connections go on"),
            });
        }
    }
    if lagging.is_empty() && !done && !overridden {
        lagging.push(format!("{title}: {}", text(&status["summary"])));
    }
    Ok(lagging)
}

/// One line about an order that was followed.
pub(super) fn summary(order: &Value, goal: Goal, began: Instant) -> String {
    let status = &order["status"];
    let title = format!("{} {}/{}", text(&order["kind"]), namespace(order), name(order));
    let until = match (goal, text(&status["until"])) {
        (Goal::Back, _) => "; it is over".to_owned(),
        (Goal::Out, "") => String::new(),
        (Goal::Out, until) => format!("; until {until}, or --end"),
    };
    format!("{title}: {} ({}){until}", text(&status["summary"]), took(began))
}

/// Orders as JSON or YAML.
pub(super) fn print(orders: &[Value], report: Report) -> anyhow::Result<()> {
    let all = json!({"apiVersion": "v1", "kind": "List", "items": orders});
    line(&report.of(&all)?);
    Ok(())
}

/// The orders of a kind, of the namespaces that are meant or of all.
pub(super) async fn all(
    place: &Place,
    kind: &str,
    wanted: &[Wanted],
    report: Option<Report>,
) -> anyhow::Result<ExitCode> {
    let mut orders = Vec::new();
    if wanted.is_empty() {
        orders = place.list(kind, "").await?;
    }
    for one in wanted {
        orders.extend(place.list(kind, &one.namespace).await?);
    }
    if let Some(report) = report {
        print(&orders, report)?;
        return Ok(ExitCode::SUCCESS);
    }
    if orders.is_empty() {
        note("none");
        return Ok(ExitCode::SUCCESS);
    }
    let heads = ["NAMESPACE", "NAME", "FOR", "PHASE", "DONE", "UNTIL", "BY", "REASON"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for order in &orders {
        let (spec, status) = (&order["spec"], &order["status"]);
        rows.push(vec![
            namespace(order).to_owned(),
            name(order).to_owned(),
            whom(spec),
            or_dash(text(&status["phase"])),
            or_dash(text(&status["summary"])),
            or_dash(match text(&status["endedAt"]) {
                "" => text(&status["until"]),
                ended => ended,
            }),
            or_dash(text(&spec["requestedBy"])),
            text(&spec["reason"]).to_owned(),
        ]);
    }
    line(&aligned(&rows));
    Ok(ExitCode::SUCCESS)
}

fn whom(spec: &Value) -> String {
    let pods: Vec<&str> = list(&spec["pods"]).map(text).collect();
    let labels = spec["selector"]["matchLabels"].as_object();
    let labels = labels.into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value)));
    let some: Vec<String> = pods.into_iter().map(str::to_owned).chain(labels).collect();
    match (spec["mesh"] == true, some.is_empty()) {
        (true, _) => "the mesh".to_owned(),
        (false, true) => "all pods".to_owned(),
        (false, false) => some.join(","),
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited_for(done: &str, reason: &str) -> Vec<String> {
        let order = json!({
            "kind": "Bypass", "metadata": {"namespace": "shop", "name": "b"},
            "status": {"phase": "Active", "summary": "0/0 nodes", "conditions": [{"type": "Done", "status": done, "reason": reason}]},
        });
        progress(&order, Goal::Out, &mut BTreeSet::new(), false).unwrap()
    }

    #[test]
    fn nothing_is_waited_for_where_a_quarantine_holds_all_that_a_bypass_means() {
        assert_eq!(waited_for("False", "Waiting"), ["Bypass shop/b: 0/0 nodes"]);
        assert!(waited_for("False", "Overridden").is_empty() && waited_for("True", "Out").is_empty());
    }
}
