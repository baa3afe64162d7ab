//! `stillmesh check`: facts about a cluster and the mesh in it, each with what to do where it is not as it should be.
//!
//! Everything is read once ([`super::view`]); the judging is pure.

mod cluster;
mod filters;
mod here;
mod mesh;
mod pods;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::{Value, json};

pub(crate) use pods::{Standing, standings};

use super::access::{reach, within};
use super::args::{MeshNamespace, Report, WhichMesh};
use super::foreign;
use super::objects::Objects;
use super::view::View;
use crate::flows::strict::{self, Strict};
use crate::machine::control;
use crate::output::{Mark, Marks, line};

/// `stillmesh check`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Exit code: 0 when nothing is wrong, 1 when something is (✘) or it cannot be checked."
)]
pub(crate) struct Check {
    /// Something else to look at than the mesh as a whole.
    #[command(subcommand)]
    other: Option<Other>,
    /// Only what must be so before `install`
    #[arg(long, conflicts_with = "name")]
    pre: bool,
    /// How to print
    #[arg(long, short, value_enum)]
    output: Option<Report>,
    /// Which mesh.
    #[command(flatten)]
    which: WhichMesh,
    /// The mesh's namespace.
    #[command(flatten)]
    mesh: MeshNamespace,
}

/// What else can be looked at.
#[derive(Debug, Subcommand)]
pub(crate) enum Other {
    /// Who would be refused if clear text were no longer taken (PeerAuthentication STRICT), by what tunnels counted within a day
    Strict(Strict),
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fact {
    /// How it stands.
    pub(crate) mark: Mark,
    /// What it is about, in one stable word.
    pub(crate) topic: &'static str,
    /// What is so.
    pub(crate) text: String,
    /// What to do, where it is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) todo: Option<String>,
    /// What mends it, to be applied: YAML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) patch: Option<String>,
}

impl Fact {
    /// As it should be.
    pub(crate) fn good(topic: &'static str, text: impl Into<String>) -> Self {
        Self { mark: Mark::Good, topic, text: text.into(), todo: None, patch: None }
    }

    /// Somebody should look at it.
    pub(crate) fn doubt(topic: &'static str, text: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { mark: Mark::Doubt, topic, text: text.into(), todo: Some(todo.into()), patch: None }
    }

    /// It does not work.
    pub(crate) fn bad(topic: &'static str, text: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { mark: Mark::Bad, topic, text: text.into(), todo: Some(todo.into()), patch: None }
    }

    /// As it is printed.
    pub(crate) fn show(&self, marks: Marks) -> String {
        let todo = self.todo.as_ref().map(|todo| format!("\n    → {todo}")).unwrap_or_default();
        let patch = self.patch.iter().flat_map(|patch| patch.trim_end().lines()).map(|line| format!("\n      {line}"));
        format!("{} {}{todo}{}", marks.show(self.mark), self.text, patch.collect::<String>())
    }
}

/// The report, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Whole<'a> {
    cluster: &'a str,
    mesh_namespace: &'a str,
    installed: bool,
    good: bool,
    facts: &'a [Fact],
}

/// Carries it out.
pub(crate) async fn run(args: &Check) -> anyhow::Result<ExitCode> {
    if let Some(Other::Strict(args)) = &args.other {
        return Ok(strict::run(args).await);
    }
    if !args.pre
        && let Some(mesh) = control::here(args.which.name.as_deref(), &args.which.access)
    {
        let facts = here::facts(&mesh, jiff::Timestamp::now()).await?;
        let namespace = crate::machine::tunnels::NAMESPACE;
        return told(args, &format!("mesh {mesh:?} on this machine"), namespace, true, &facts);
    }
    let reached = reach(&args.which.access).await?;
    let objects = Objects::new(reached.client());
    let namespace = args.mesh.mesh_namespace.as_str();
    let mut facts = vec![cluster::server(reached.url(), &reached.server)];
    let (installed, found) = look(&objects, namespace, args.pre).await?;
    facts.extend(found);
    told(args, reached.url(), namespace, installed, &facts)
}

/// The facts about a mesh, for reports.
pub(crate) async fn report(objects: &Objects, namespace: &str) -> anyhow::Result<Value> {
    let (installed, facts) = look(objects, namespace, false).await?;
    Ok(json!({ "installed": installed, "facts": facts }))
}

/// Whether a mesh is installed, and the facts about it and its cluster.
async fn look(objects: &Objects, namespace: &str, pre: bool) -> anyhow::Result<(bool, Vec<Fact>)> {
    let view = if pre { View::objects(objects, namespace).await } else { View::whole(objects, namespace).await };
    let installed = view.own("Deployment").chain(view.own("DaemonSet")).next().is_some();
    let mut facts = Vec::new();
    facts.extend(view.unread().map(|(kind, why)| {
        Fact::doubt(
            "rights",
            format!("objects of kind {kind} cannot be read: {why}"),
            "use an account that may list them",
        )
    }));
    if pre || !installed {
        facts.push(cluster::rights(&missing_rights(objects.client()).await?));
        facts.extend(cluster::definitions(&view));
        facts.extend(cluster::other_meshes(&view));
        facts.extend(cluster::network(&view));
    }
    facts.extend(cluster::nodes(&view));
    let (server, now) = (server_clock(objects.client()).await, jiff::Timestamp::now());
    facts.extend(cluster::clocks(&leases(objects.client()).await, server, now));
    facts.extend(filters::tunnels(&view, if pre { filters::Whose::All } else { filters::Whose::Enrolled }));
    if !pre {
        if installed {
            // By the clock that the mesh's parts go by, as far as it is known.
            facts.extend(of_mesh(&view, server.unwrap_or(now)));
        } else {
            facts.push(Fact::bad(
                "installed",
                format!("no Stillmesh is installed in namespace {namespace}"),
                "stillmesh install, or -i NAMESPACE if it is elsewhere",
            ));
        }
    }
    Ok((installed, facts))
}

/// Prints facts, and says whether something is wrong.
fn told(
    args: &Check,
    cluster: &str,
    mesh_namespace: &str,
    installed: bool,
    facts: &[Fact],
) -> anyhow::Result<ExitCode> {
    let good = facts.iter().all(|fact| fact.mark != Mark::Bad);
    let whole = Whole { cluster, mesh_namespace, installed, good, facts };
    match args.output {
        Some(format) => line(&format.of(&whole)?),
        None => print(facts),
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(facts: &[Fact]) {
    let marks = Marks::out();
    for fact in facts {
        line(&fact.show(marks));
    }
    let count = |mark: Mark| facts.iter().filter(|fact| fact.mark == mark).count();
    let (bad, doubt) = (count(Mark::Bad), count(Mark::Doubt));
    line(&match (bad, doubt) {
        (0, 0) => "everything is as it should be".to_owned(),
        (0, _) => format!("nothing is wrong; {doubt} to look at (!)"),
        _ => format!("{bad} wrong (✘), {doubt} to look at (!)"),
    });
}

/// What is not as it should be with an installed mesh.
pub(crate) fn worrying(view: &View, now: jiff::Timestamp) -> Vec<Fact> {
    let mut facts = of_mesh(view, now);
    facts.retain(|fact| fact.mark != Mark::Good && fact.topic != "namespaces");
    facts
}

fn of_mesh(view: &View, now: jiff::Timestamp) -> Vec<Fact> {
    let mut facts = mesh::workloads(view);
    facts.extend(mesh::waypoints(view));
    facts.extend(mesh::answers(view));
    facts.extend(mesh::sync(view));
    facts.extend(mesh::certificates(view, now));
    facts.extend(mesh::webhooks(view));
    facts.extend(pods::captured(view));
    facts.extend(mesh::policies(view));
    facts.extend(mesh::found(view));
    facts
}

/// What the asking account may not do of what an installation does.
async fn missing_rights(client: &Client) -> anyhow::Result<Vec<String>> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for (group, resource) in cluster::RIGHTS {
        for verb in ["get", "list", "create", "patch", "delete"] {
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(ResourceAttributes {
                        group: Some((*group).to_owned()),
                        resource: Some((*resource).to_owned()),
                        verb: Some(verb.to_owned()),
                        ..ResourceAttributes::default()
                    }),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let answer = within("asking for your rights", reviews.create(&PostParams::default(), &review)).await?;
            if !answer.status.is_some_and(|status| status.allowed) {
                missing.push(format!("{verb} {resource}"));
            }
        }
    }
    Ok(missing)
}

/// The API server's clock, by the date of an answer; `None` where it has none.
pub(super) async fn server_clock(client: &Client) -> Option<jiff::Timestamp> {
    let request = http::Request::get("/version").body(kube::client::Body::empty()).ok()?;
    let answer = within("asking for the time", client.send(request)).await.ok()?;
    let date = answer.headers().get(http::header::DATE)?.to_str().ok()?;
    jiff::fmt::rfc2822::parse(date).ok().map(|date| date.timestamp())
}

/// When each node's kubelet last told the time.
async fn leases(client: &Client) -> Vec<(String, jiff::Timestamp)> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let Ok(list) = within("listing the nodes' leases", leases.list(&ListParams::default())).await else {
        return Vec::new();
    };
    let told = |lease: Lease| Some((lease.metadata.name?, lease.spec?.renew_time?.0));
    list.items.into_iter().filter_map(told).collect()
}

/// Other meshes among the objects of a view.
fn foreign_in(view: &View) -> Vec<foreign::Foreign> {
    foreign::kinds().iter().flat_map(|kind| view.list(kind.kind())).filter_map(foreign::foreign).collect()
}
