//! `stillmesh waypoint`: waypoints as Gateways of a cluster (contract 7.2, 10). What a waypoint is made of is the
//! controller's matter; this writes and reads the Gateway, and the label that binds a namespace to it.

mod enrolment;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use stillmesh_k8s::gateway::{HBONE, HBONE_PORT, class};
use tokio::time::sleep;

use super::access::{Reached, reach, within};
use super::args::{Access, MeshNamespace, WhichMesh, duration, namespace_name};
use super::objects::{Objects, Resource};
use super::progress::{LOOK, took};
use super::value::{condition, holds, label, list, name, namespace, text};
use crate::machine::control;
use crate::output::{Mark, Marks, aligned, line, note};
use crate::why::place::Place;

/// Label that binds to a waypoint.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Label of a Gateway with what it is for.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Label with the revision that looks after it.
const REVISION: &str = "istio.io/rev";
/// No waypoint can have this name: as a label's value it means that none is used.
const NONE: &str = "none";

/// `stillmesh waypoint`.
#[derive(Debug, Subcommand)]
pub(crate) enum Waypoint {
    /// Make a waypoint, and let a namespace go through it
    Apply(Apply),
    /// Print the Gateway that `apply` would apply
    Generate(Which),
    /// List waypoints
    List(List),
    /// Say how waypoints are: one line for each condition of their Gateways
    Status(Status),
    /// Delete waypoints
    Delete(Delete),
}

/// What a waypoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum For {
    /// What is sent to services
    Service,
    /// What is sent to pods by their addresses
    Workload,
    /// Both
    All,
    /// Nothing
    None,
}

impl For {
    fn label(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
            Self::All => "all",
            Self::None => NONE,
        }
    }
}

/// Which waypoint.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Its namespace
    #[arg(long, short, default_value = "default", value_parser = namespace_name)]
    namespace: String,
    /// Its name
    #[arg(long, default_value = "waypoint", value_parser = waypoint_name)]
    name: String,
    /// What it is for; a waypoint that says nothing is for services
    #[arg(long = "for", value_enum)]
    purpose: Option<For>,
    /// Revision of the mesh that looks after it
    #[arg(long, short)]
    revision: Option<String>,
    /// Its class; `stillmesh-waypoint` beside an istiod
    #[arg(long, default_value = "istio-waypoint")]
    class: String,
}

/// `stillmesh waypoint apply`.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Which.
    #[command(flatten)]
    which: Which,
    /// Bind the namespace to it
    #[arg(long)]
    enroll_namespace: bool,
    /// Bind the namespace although it is bound to another waypoint
    #[arg(long)]
    overwrite: bool,
    /// Bind the namespace although policies would do something else than before
    #[arg(long, short)]
    yes: bool,
    /// Wait until it is ready
    #[arg(long, short)]
    wait: bool,
    /// How long
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = duration)]
    waypoint_timeout: Duration,
    /// Cluster.
    #[command(flatten)]
    access: Access,
    /// The mesh's namespace.
    #[command(flatten)]
    mesh: MeshNamespace,
}

/// Which waypoints are looked at.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// In which namespace
    #[arg(long, short, default_value = "default", value_parser = namespace_name)]
    namespace: String,
    /// In all namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Where.
    #[command(flatten)]
    which: WhichMesh,
}

/// `stillmesh waypoint status`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0, or 1 when a waypoint is not programmed.")]
pub(crate) struct Status {
    /// Only the one of this name
    #[arg(value_name = "NAME")]
    waypoint: Option<String>,
    /// Which.
    #[command(flatten)]
    list: List,
    /// Wait until they are programmed
    #[arg(long, short, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: Option<bool>,
    /// How long
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = duration)]
    waypoint_timeout: Duration,
}

/// `stillmesh waypoint delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Their names
    #[arg(required_unless_present_any = ["all", "revision"], conflicts_with_all = ["all", "revision"])]
    names: Vec<String>,
    /// All of the namespace
    #[arg(long)]
    all: bool,
    /// Those of the namespace that a revision looks after
    #[arg(long, short)]
    revision: Option<String>,
    /// In which namespace
    #[arg(long, short, default_value = "default", value_parser = namespace_name)]
    namespace: String,
    /// Cluster.
    #[command(flatten)]
    access: Access,
}

fn waypoint_name(text: &str) -> Result<String, String> {
    match text {
        NONE => Err(format!("as a value of label {USE_WAYPOINT}, {NONE} means that no waypoint is used")),
        other => namespace_name(other)
            .map_err(|_| "names of waypoints are up to 63 lower case letters, digits and inner hyphens".to_owned()),
    }
}

/// Carries it out.
pub(crate) async fn run(args: &Waypoint) -> anyhow::Result<ExitCode> {
    match args {
        Waypoint::Apply(args) => apply(args).await.map(|()| ExitCode::SUCCESS),
        Waypoint::Generate(which) => {
            // A document of its own, behind whatever it is appended to.
            line("---");
            line(serde_saphyr::to_string(&gateway(which))?.trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Waypoint::List(args) => {
            let found = waypoints(&Place::find(&args.which).await?, args).await?;
            line(&listed(&found, args.all_namespaces));
            Ok(ExitCode::SUCCESS)
        }
        Waypoint::Status(args) => status(args).await,
        Waypoint::Delete(args) => delete(args).await,
    }
}

/// The Gateway (contract 7.2).
fn gateway(which: &Which) -> Value {
    let mut gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": which.name, "namespace": which.namespace},
        "spec": {
            "gatewayClassName": which.class,
            "listeners": [{"name": "mesh", "port": HBONE_PORT, "protocol": HBONE}],
        },
    });
    let purpose = which.purpose.map(|purpose| (WAYPOINT_FOR, purpose.label()));
    let revision = which.revision.as_deref().map(|revision| (REVISION, revision));
    for (key, value) in purpose.into_iter().chain(revision) {
        gateway["metadata"]["labels"][key] = value.into();
    }
    gateway
}

fn gateways() -> Resource {
    Resource::new("gateway.networking.k8s.io/v1", "Gateway")
}

fn namespaces() -> Resource {
    Resource::new("v1", "Namespace")
}

/// The cluster. Waypoints of a mesh on this machine are made of its manifests alone.
async fn reached(access: &Access) -> anyhow::Result<Reached> {
    let reached = reach(access).await;
    if access.chosen() || control::running().is_empty() {
        return reached;
    }
    reached.context(
        "this changes a cluster's waypoints; those of a mesh on this machine are Gateways among its manifests \
         (`stillmesh waypoint generate` prints one)",
    )
}

async fn apply(args: &Apply) -> anyhow::Result<()> {
    let reached = reached(&args.access).await?;
    let objects = Objects::new(reached.client());
    let Which { namespace, name, .. } = &args.which;
    let definition = Resource::new("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    if objects.get(&definition, "", "gateways.gateway.networking.k8s.io").await?.is_none() {
        bail!(
            "the cluster at {} does not know the Gateway API; install its definitions first \
             (https://gateway-api.sigs.k8s.io/guides/, standard-install.yaml)",
            reached.url()
        );
    }
    let Some(there) = objects.get(&namespaces(), "", namespace).await? else {
        bail!("there is no namespace {namespace}");
    };
    if args.enroll_namespace {
        may_enroll(args, &objects, &there).await?;
    }
    let wanted = gateway(&args.which);
    let applied = async { objects.apply(&wanted, false, true).await };
    within(&format!("applying Gateway {namespace}/{name}"), applied).await?;
    line(&format!("✅ waypoint {namespace}/{name} applied"));
    if args.enroll_namespace {
        objects.merge(&there, &json!({"metadata": {"labels": {USE_WAYPOINT: name}}})).await?;
        line(&format!("✅ namespace {namespace} labeled with \"{USE_WAYPOINT}: {name}\""));
        if label(&there, "istio.io/dataplane-mode") != Some("ambient") {
            note(&format!(
                "namespace {namespace} is not in the mesh yet; kubectl label namespace {namespace} \
                 istio.io/dataplane-mode=ambient puts it there"
            ));
        }
    }
    if args.wait {
        wait_ready(&objects, args).await?;
    }
    Ok(())
}

/// Refuses to bind a namespace that is bound already, or whose policies would then do something else.
async fn may_enroll(args: &Apply, objects: &Objects, there: &Value) -> anyhow::Result<()> {
    let Which { namespace, name, .. } = &args.which;
    if let Some(other) = label(there, USE_WAYPOINT)
        && other != name
        && !args.overwrite
    {
        bail!("namespace {namespace} is bound to waypoint {other:?} already; --overwrite binds it to {name:?} instead");
    }
    if label(there, USE_WAYPOINT) == Some(name) {
        return Ok(());
    }
    let concerns = enrolment::look(objects, &args.mesh.mesh_namespace, namespace, name).await?;
    for concern in &concerns {
        note(&format!("{} {concern}", Marks::err().show(Mark::Bad)));
    }
    if !concerns.is_empty() && !args.yes {
        bail!(
            "nothing was changed: attach these policies to the waypoint (spec.targetRefs) or let it pass; --yes goes on all the same"
        );
    }
    Ok(())
}

async fn wait_ready(objects: &Objects, args: &Apply) -> anyhow::Result<()> {
    let Which { namespace, name, .. } = &args.which;
    let (began, mut said) = (Instant::now(), String::new());
    loop {
        let Some(found) = objects.get(&gateways(), namespace, name).await? else {
            bail!("Gateway {namespace}/{name} has been deleted while it was waited for");
        };
        if holds(&found, "Programmed") {
            line(&format!("✅ waypoint {namespace}/{name} is ready! ({})", took(began)));
            return Ok(());
        }
        let standing = standing(&found);
        if standing != said {
            note(&format!("  waiting: {standing}"));
            said = standing;
        }
        if began.elapsed() > args.waypoint_timeout {
            return Err(anyhow!(
                "waypoint {namespace}/{name} is not ready after {:?}: {said}; `kubectl -n {namespace} get pods -l \
                 gateway.networking.k8s.io/gateway-name={name}` shows what runs it",
                args.waypoint_timeout
            ));
        }
        sleep(LOOK).await;
    }
}

/// What a Gateway that is not programmed says.
fn standing(gateway: &Value) -> String {
    let of = |kind| condition(gateway, kind).filter(|condition| condition["status"] == "False");
    match of("Accepted").or_else(|| of("Programmed")) {
        Some(condition) => format!("{}: {}", text(&condition["reason"]), text(&condition["message"])),
        None => format!("nobody looks after class {} yet", text(&gateway["spec"]["gatewayClassName"])),
    }
}

/// The waypoints that are asked for, in order.
async fn waypoints(place: &Place, args: &List) -> anyhow::Result<Vec<Value>> {
    let namespace_of = if args.all_namespaces { "" } else { &args.namespace };
    let (classes, mut found) = match place {
        Place::Here { mesh } => {
            (control::objects(mesh, "GatewayClass", "").await?, control::objects(mesh, "Gateway", namespace_of).await?)
        }
        Place::Cluster { objects } => {
            let classes = Resource::new("gateway.networking.k8s.io/v1", "GatewayClass");
            (objects.list(&classes, "", "").await?, objects.list(&gateways(), namespace_of, "").await?)
        }
        Place::Objects(_) => bail!("manifests have no waypoints that run"),
    };
    let ours = |gateway: &Value| is_waypoint(text(&gateway["spec"]["gatewayClassName"]), &classes);
    found.retain(ours);
    found.sort_by(|one, other| (namespace(one), name(one)).cmp(&(namespace(other), name(other))));
    Ok(found)
}

fn is_waypoint(class: &str, classes: &[Value]) -> bool {
    let controller = classes.iter().find(|one| name(one) == class).map(|one| text(&one["spec"]["controllerName"]));
    class::WAYPOINTS.iter().any(|own| match controller {
        Some(controller) => own.controller == controller,
        None => own.name == class,
    })
}

fn listed(found: &[Value], all_namespaces: bool) -> String {
    if found.is_empty() {
        return "No waypoints found.".to_owned();
    }
    let heads = ["NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"];
    let row = |gateway: &Value| {
        let programmed = condition(gateway, "Programmed").map_or("Unknown", |condition| text(&condition["status"]));
        let of = |key, otherwise| label(gateway, key).unwrap_or(otherwise);
        [namespace(gateway), name(gateway), of(REVISION, "default"), of(WAYPOINT_FOR, "service"), programmed]
            .map(str::to_owned)
    };
    table(std::iter::once(heads.map(str::to_owned)).chain(found.iter().map(row)), all_namespaces)
}

async fn status(args: &Status) -> anyhow::Result<ExitCode> {
    let place = Place::find(&args.list.which).await?;
    let (began, wait) = (Instant::now(), args.wait.unwrap_or(true));
    loop {
        let mut found = waypoints(&place, &args.list).await?;
        found.retain(|gateway| args.waypoint.as_deref().is_none_or(|wanted| wanted == name(gateway)));
        if found.is_empty() && args.waypoint.is_some() {
            bail!("no such waypoint; `stillmesh waypoint list -A` shows which there are");
        }
        let good = found.iter().all(|gateway| holds(gateway, "Programmed"));
        if good || !wait || began.elapsed() > args.waypoint_timeout {
            line(&conditions(&found, args.list.all_namespaces));
            return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        sleep(LOOK).await;
    }
}

fn conditions(found: &[Value], all_namespaces: bool) -> String {
    if found.is_empty() {
        return "No waypoints found.".to_owned();
    }
    let heads = ["NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE"];
    let rows = found.iter().flat_map(|gateway| {
        list(&gateway["status"]["conditions"]).map(move |one| {
            let of = |key: &str| text(&one[key]);
            [namespace(gateway), name(gateway), of("status"), of("type"), of("reason"), of("message")]
                .map(str::to_owned)
        })
    });
    table(std::iter::once(heads.map(str::to_owned)).chain(rows), all_namespaces)
}

/// A table whose first column is the namespace, which one that shows a single namespace does without.
fn table<const N: usize>(rows: impl Iterator<Item = [String; N]>, all_namespaces: bool) -> String {
    let rows: Vec<Vec<String>> = rows.map(|row| row.into_iter().skip(usize::from(!all_namespaces)).collect()).collect();
    aligned(&rows)
}

async fn delete(args: &Delete) -> anyhow::Result<ExitCode> {
    let objects = Objects::new(reached(&args.access).await?.client());
    let which = WhichMesh { name: None, access: args.access.clone() };
    let which = List { namespace: args.namespace.clone(), all_namespaces: false, which };
    let found = waypoints(&Place::Cluster { objects: objects.clone() }, &which).await?;
    let of_revision = |gateway: &&Value| {
        args.revision.as_deref().is_none_or(|wanted| label(gateway, REVISION).unwrap_or("default") == wanted)
    };
    let place = &args.namespace;
    let mut missing = false;
    let chosen: Vec<&Value> = if args.names.is_empty() {
        found.iter().filter(of_revision).collect()
    } else {
        let named = |wanted: &String| {
            let there = found.iter().find(|gateway| name(gateway) == wanted);
            if there.is_none() {
                missing = true;
                note(&format!("waypoint {place}/{wanted} not found"));
            }
            there
        };
        args.names.iter().filter_map(named).collect()
    };
    if chosen.is_empty() && !missing {
        line("No waypoints found.");
    }
    for gateway in chosen {
        objects.delete(gateway, false).await?;
        line(&format!("waypoint {place}/{} deleted", name(gateway)));
    }
    let there = objects.get(&namespaces(), "", place).await?;
    if let Some(bound) = there.as_ref().and_then(|there| label(there, USE_WAYPOINT))
        && objects.get(&gateways(), place, bound).await?.is_none()
    {
        note(&format!(
            "namespace {place} still asks for waypoint {bound:?}; kubectl label namespace {place} {USE_WAYPOINT}- ends that"
        ));
    }
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn which() -> Which {
        Which {
            namespace: "shop".to_owned(),
            name: "waypoint".to_owned(),
            purpose: None,
            revision: None,
            class: "istio-waypoint".to_owned(),
        }
    }

    #[test]
    fn a_generated_gateway_is_one_that_the_controller_takes() {
        let more = Which { purpose: Some(For::All), revision: Some("canary".to_owned()), ..which() };
        let written = gateway(&more);
        assert_eq!(written["metadata"]["labels"], json!({WAYPOINT_FOR: "all", REVISION: "canary"}));
        assert_eq!(gateway(&which())["metadata"]["labels"], Value::Null);
        let read = stillmesh_k8s::parse::documents("g", &serde_saphyr::to_string(&written).unwrap());
        assert_eq!(read.findings, []);
        let stillmesh_k8s::Object::Gateway(read) = &read.objects[0].object else { panic!("{read:?}") };
        assert!(class::is_waypoint(&read.spec.gateway_class_name, None) && read.tunnel_listener().is_some());
    }

    #[test]
    fn tables_say_what_waypoints_are_and_how() {
        let mut one = gateway(&Which { purpose: Some(For::Workload), ..which() });
        one["status"]["conditions"] = json!([
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "fine"},
            {"type": "Programmed", "status": "False", "reason": "AddressNotAssigned", "message": "no address yet"},
        ]);
        assert_eq!(
            listed(&[one.clone(), gateway(&which())], false),
            "NAME       REVISION   TRAFFIC TYPE   PROGRAMMED\n\
             waypoint   default    workload       False\n\
             waypoint   default    service        Unknown"
        );
        assert!(listed(std::slice::from_ref(&one), true).starts_with("NAMESPACE   NAME"));
        assert_eq!(
            conditions(std::slice::from_ref(&one), false),
            "NAME       STATUS   TYPE         REASON               MESSAGE\n\
             waypoint   True     Accepted     Accepted             fine\n\
             waypoint   False    Programmed   AddressNotAssigned   no address yet"
        );
        assert_eq!(standing(&one), "AddressNotAssigned: no address yet");
        assert_eq!(listed(&[], true), "No waypoints found.");
    }

    #[test]
    fn the_name_that_means_none_is_no_waypoints_name() {
        assert!(waypoint_name("none").is_err() && waypoint_name("Way").is_err());
        assert_eq!(waypoint_name("way-1"), Ok("way-1".to_owned()));
    }

    #[test]
    fn a_waypoint_is_one_by_its_classs_controller() {
        let of = |controller: &str| [json!({"metadata": {"name": "mine"}, "spec": {"controllerName": controller}})];
        assert!(is_waypoint("istio-waypoint", &[]));
        assert!(!is_waypoint("mine", &of("example.com/other")));
        assert!(is_waypoint("mine", &of(class::WAYPOINTS[0].controller)));
    }
}
