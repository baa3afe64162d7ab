//! `stillmesh bypass`: orders that take pods out of the mesh for a while, as objects (`stillmesh.io`). `stillmesh quarantine`:
//! such that cut them off. Controller, agents and tunnels carry them out; this writes them, says first what would be refused or cut,
//! and follows them.

mod cut;
mod effects;
mod place;
mod show;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::cluster::args::{MeshNamespace, Report, WhichMesh, duration, namespace_name};
use crate::cluster::value::{list, name, namespace, text};
use crate::output::{line, note};
use place::Place;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// `stillmesh bypass`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0, or 1 when something is refused, or a node lags behind.")]
pub(crate) struct Bypass {
    #[command(flatten)]
    whom: Whom,
    /// How long; then the pods come back by themselves. At most 168h
    #[arg(long = "for", value_name = "DURATION", default_value = "30m", value_parser = duration)]
    lasts: Duration,
    /// Do it although connections would then be refused
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    how: How,
}

/// `stillmesh quarantine`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0, or 1 when something is refused, or a node lags behind.")]
pub(crate) struct Quarantine {
    /// Namespaces, or pods as NAMESPACE/POD
    #[arg(value_name = "NAMESPACE[/POD]", required_unless_present = "list")]
    targets: Vec<String>,
    /// Of a namespace, the pods with these labels
    #[arg(long, short = 'l', value_name = "KEY=VALUE,...", value_parser = labels, requires = "targets")]
    selector: Option<Labels>,
    /// How long; then the pods are connected again. At most 168h
    #[arg(long = "for", value_name = "DURATION", default_value = "30m", value_parser = duration)]
    lasts: Duration,
    /// Do it; without it, only what would be cut is listed
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    how: How,
}

/// Whom an order is about.
#[derive(Debug, Args)]
struct Whom {
    /// Namespaces, or pods as NAMESPACE/POD
    #[arg(value_name = "NAMESPACE[/POD]", required_unless_present_any = ["mesh", "list"], conflicts_with = "mesh")]
    targets: Vec<String>,
    /// The whole mesh
    #[arg(long)]
    mesh: bool,
    /// Of a namespace, the pods with these labels
    #[arg(long, short = 'l', value_name = "KEY=VALUE,...", value_parser = labels, requires = "targets")]
    selector: Option<Labels>,
}

/// How it is done, the same for all orders.
#[derive(Debug, Args)]
struct How {
    /// Why; whoever finds the order reads it
    #[arg(long, required_unless_present_any = ["end", "list"])]
    reason: Option<String>,
    /// End orders about these, before their time
    #[arg(long, conflicts_with_all = ["reason", "list"])]
    end: bool,
    /// List orders, those that ended within the last hour too
    #[arg(long, conflicts_with = "reason")]
    list: bool,
    /// Do not wait until every node has done it
    #[arg(long)]
    no_wait: bool,
    /// How long nodes may take
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// Print orders as they are then
    #[arg(long, short, value_enum)]
    output: Option<Report>,
    #[command(flatten)]
    which: WhichMesh,
    #[command(flatten)]
    mesh_namespace: MeshNamespace,
}

type Labels = Vec<(String, String)>;

/// An order that is to be written: one for each namespace.
#[derive(Debug, PartialEq)]
struct Wanted {
    namespace: String,
    pods: Vec<String>,
}

/// Carries out `stillmesh bypass`.
pub(crate) async fn bypass(args: &Bypass) -> anyhow::Result<ExitCode> {
    let place = Place::find(&args.how.which).await?;
    let wanted = wanted(&args.whom, place.system(&args.how))?;
    if args.how.list {
        return show::all(&place, "Bypass", &wanted, args.how.output).await;
    }
    if args.how.end {
        return end(&place, "Bypass", &args.whom, &wanted, &args.how).await;
    }
    let by = place.who().await?;
    let mut orders = Vec::new();
    for one in &wanted {
        place.must_have_namespace(&one.namespace).await?;
        place.must_have_pods(&one.namespace, &one.pods).await?;
        let seconds = format!("{}s", args.lasts.as_secs().max(1));
        orders.push(order("Bypass", one, &args.whom, &args.how, &by, Some(seconds)));
    }
    let refused = effects::of(&place, &args.how.mesh_namespace.mesh_namespace, &orders).await;
    match refused {
        Ok(refused) if refused.is_empty() => {}
        Ok(refused) => {
            note("Policies go by identity, which pods out of the mesh do not have. Refused would then be:");
            refused.iter().for_each(|text| note(&format!("  {text}")));
            ensure!(args.yes, "nothing has been done; --yes does it all the same");
        }
        Err(error) => {
            note(&format!("What policies would then refuse cannot be told: {error:#}"));
            ensure!(args.yes, "nothing has been done; --yes does it all the same");
        }
    }
    let began = Instant::now();
    for order in &orders {
        place.create(order).await?;
    }
    follow(&place, &orders, &args.how, began, show::Goal::Out).await
}

/// Carries out `stillmesh quarantine`.
pub(crate) async fn quarantine(args: &Quarantine) -> anyhow::Result<ExitCode> {
    let place = Place::find(&args.how.which).await?;
    let whom = Whom { targets: args.targets.clone(), mesh: false, selector: args.selector.clone() };
    let wanted = wanted(&whom, place.system(&args.how))?;
    if args.how.list {
        return show::all(&place, "Quarantine", &wanted, args.how.output).await;
    }
    if args.how.end {
        return end(&place, "Quarantine", &whom, &wanted, &args.how).await;
    }
    let by = place.who().await?;
    let mut orders = Vec::new();
    for one in &wanted {
        place.must_have_namespace(&one.namespace).await?;
        place.must_have_pods(&one.namespace, &one.pods).await?;
        let seconds = format!("{}s", args.lasts.as_secs().max(1));
        orders.push(order("Quarantine", one, &whom, &args.how, &by, Some(seconds)));
    }
    let system = place.system(&args.how);
    cut::tell(&place, &args.how.which, &system, &orders).await;
    ensure!(args.yes, "nothing has been done; --yes does it");
    let began = Instant::now();
    for order in &orders {
        place.create(order).await?;
    }
    follow(&place, &orders, &args.how, began, show::Goal::Out).await
}

/// Waits until orders are carried out, saying so node by node.
async fn follow(
    place: &Place,
    orders: &[Value],
    how: &How,
    began: Instant,
    goal: show::Goal,
) -> anyhow::Result<ExitCode> {
    let mut told = BTreeSet::new();
    let mut lagging: Vec<String> = Vec::new();
    let mut now = Vec::new();
    loop {
        now.clear();
        lagging.clear();
        for order in orders {
            let found = place.get(text(&order["kind"]), namespace(order), name(order)).await?;
            let Some(found) = found else {
                bail!("{} {}/{} is gone", text(&order["kind"]), namespace(order), name(order))
            };
            lagging.extend(show::progress(&found, goal, &mut told, how.output.is_none())?);
            now.push(found);
        }
        if lagging.is_empty() || how.no_wait || began.elapsed() > how.timeout {
            break;
        }
        sleep(LOOK).await;
    }
    let done = lagging.is_empty() || how.no_wait;
    match how.output {
        Some(report) => show::print(&now, report)?,
        None => now.iter().for_each(|order| line(&show::summary(order, goal, began))),
    }
    if !done {
        note(&format!("not done within {:?}: {}", how.timeout, lagging.join("; ")));
    }
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends what is in force about these.
async fn end(place: &Place, kind: &str, whom: &Whom, wanted: &[Wanted], how: &How) -> anyhow::Result<ExitCode> {
    let by = place.who().await?;
    let mut ended = Vec::new();
    for one in wanted {
        for order in place.list(kind, &one.namespace).await? {
            let spec = &order["spec"];
            let pods: Vec<&str> = list(&spec["pods"]).map(text).collect();
            let labels = &spec["selector"]["matchLabels"];
            let has = |(key, value): &(String, String)| labels[key.as_str()] == value.as_str();
            let meant = (spec["mesh"] == true) == whom.mesh
                && whom.selector.as_ref().is_none_or(|wanted| wanted.iter().all(has))
                && (one.pods.is_empty() || pods.iter().any(|pod| one.pods.iter().any(|wanted| wanted == pod)));
            if meant && order["status"]["phase"] != "Ended" && spec["ended"] != true {
                place.end(&order, &by).await?;
                ended.push(order);
            }
        }
    }
    if ended.is_empty() {
        let where_: Vec<&str> = wanted.iter().map(|one| one.namespace.as_str()).collect();
        bail!("no {kind} is in force there ({}); --list shows all", where_.join(", "));
    }
    follow(place, &ended, how, Instant::now(), show::Goal::Back).await
}

/// Orders by namespace, each name once.
fn wanted(whom: &Whom, system: String) -> anyhow::Result<Vec<Wanted>> {
    if whom.mesh {
        return Ok(vec![Wanted { namespace: system, pods: Vec::new() }]);
    }
    let mut all: Vec<Wanted> = Vec::new();
    for target in &whom.targets {
        let (namespace, pod) = target.split_once('/').map_or((target.as_str(), None), |(a, b)| (a, Some(b)));
        namespace_name(namespace).map_err(|problem| anyhow::anyhow!("{target:?}: {problem}"))?;
        ensure!(pod != Some(""), "{target:?}: NAMESPACE/POD is accepted");
        let at = all.iter().position(|one| one.namespace == namespace);
        let whole = pod.is_none();
        match at.and_then(|at| all.get_mut(at)) {
            Some(one) if whole || one.pods.is_empty() => one.pods.clear(),
            Some(one) => one.pods.extend(pod.map(str::to_owned)),
            None => {
                all.push(Wanted { namespace: namespace.to_owned(), pods: pod.map(str::to_owned).into_iter().collect() })
            }
        }
    }
    let pods = all.iter().any(|one| !one.pods.is_empty());
    ensure!(!pods || whom.selector.is_none(), "give pods by name or by --selector, not both");
    Ok(all)
}

fn order(kind: &str, wanted: &Wanted, whom: &Whom, how: &How, by: &str, lasts: Option<String>) -> Value {
    let mut spec = json!({ "reason": how.reason, "requestedBy": by });
    if let Some(lasts) = lasts {
        spec["duration"] = lasts.into();
    }
    if whom.mesh {
        spec["mesh"] = true.into();
    }
    if !wanted.pods.is_empty() {
        spec["pods"] = json!(wanted.pods);
    }
    if let Some(labels) = &whom.selector {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        spec["selector"] = json!({ "matchLabels": labels });
    }
    let number: u32 = rand::random();
    json!({
        "apiVersion": place::VERSION,
        "kind": kind,
        "metadata": { "namespace": wanted.namespace, "name": format!("{}-{number:08x}", kind.to_lowercase()) },
        "spec": spec,
    })
}

fn labels(text: &str) -> Result<Labels, String> {
    let one = |part: &str| match part.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("labels are accepted, such as app=web or app=web,tier=front".to_owned()),
    };
    text.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whom(targets: &[&str]) -> Whom {
        Whom { targets: targets.iter().map(|one| (*one).to_owned()).collect(), mesh: false, selector: None }
    }

    #[test]
    fn targets_are_gathered_by_namespace() {
        let all = wanted(&whom(&["shop/a", "other", "shop/b", "other/c"]), "s".into()).unwrap();
        let expected = [("shop", vec!["a".to_owned(), "b".to_owned()]), ("other", vec![])];
        let expected = expected.map(|(namespace, pods)| Wanted { namespace: namespace.to_owned(), pods });
        assert_eq!(all, expected);
        for bad in ["shop/", "/a", "Shop"] {
            assert!(wanted(&whom(&[bad]), "s".into()).is_err(), "{bad}");
        }
        let mesh = Whom { mesh: true, ..whom(&[]) };
        assert_eq!(wanted(&mesh, "s".into()).unwrap(), [Wanted { namespace: "s".into(), pods: vec![] }]);
    }
}
