//! `stillmesh simulate`: what would become of a connection or request, hop by hop, without sending it. The objects are manifests'
//! or those of a mesh that runs ([`crate::offline`]); the decisions are core's, as tunnels and waypoints ask for them ([`walk`]);
//! the answer has the form of `stillmesh why`.

mod ends;
pub(crate) mod request;
pub(crate) mod tell;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Args};
use serde::Serialize;
use serde_json::json;

use crate::cluster::args::{WhichMesh, namespace_name};
use crate::offline::{self, Known, settings::Settings};
use crate::output::{answered, line};
use crate::why::join::Connection;
use crate::why::place::Place;
use crate::why::story;
use walk::{Asked, Way};

/// How often what is left to chance is drawn: a share of one in fifty is met.
const DRAWS: u64 = 128;
/// Ends of the way that are told.
const MOST_OUTCOMES: usize = 6;

/// `stillmesh simulate`.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("objects").required(true).args(["files", "live"]),
    after_help = "Exit code: 0 when it would pass, 1 when it would be refused or some of it, 2 when it cannot be said.\n\n\
    Examples:\n  \
    stillmesh simulate -f manifests shop/deploy/page stock.shop:80 --method GET --path /items\n  \
    stillmesh simulate --live outside pod/shop/stock-0:8080\n  \
    stillmesh simulate --live spiffe://cluster.local/ns/shop/sa/page svc/shop/stock --claim group=admin"
)]
pub(crate) struct Simulate {
    /// Who connects: a pod, Deployment or Service as `[NAMESPACE/]NAME` or `KIND/NAME`, an address, an identity
    /// (`spiffe://…`), or `outside`: a client that is not in the mesh
    #[arg(value_name = "SRC")]
    source: String,
    /// To whom, likewise; `:PORT` may follow
    #[arg(value_name = "DST[:PORT]")]
    destination: String,
    /// Manifests: a file, or a directory as `up` takes it; may be repeated
    #[arg(
        long = "filename",
        short = 'f',
        value_name = "DIR",
        conflicts_with_all = ["live", "name", "kubeconfig", "context"]
    )]
    files: Vec<PathBuf>,
    /// The objects of the mesh that runs on this machine, else of the cluster
    #[arg(long)]
    live: bool,
    /// What of a request decides.
    #[command(flatten)]
    request: request::Request,
    /// The server name that a client of TLS asks for
    #[arg(long = "tls-sni", value_name = "NAME")]
    server_name: Option<String>,
    /// The client's address, where SRC does not say it
    #[arg(long, value_name = "IP")]
    source_ip: Option<IpAddr>,
    #[command(flatten)]
    settings: Settings,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Namespace of names that carry none
    #[arg(long, short, default_value = "default", value_parser = namespace_name)]
    namespace: String,
    #[command(flatten)]
    which: WhichMesh,
}

/// One way that it may go.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// As `stillmesh why` tells it; its id is empty.
    #[serde(flatten)]
    connection: Connection,
    /// How many of all connections go this way, 0 to 1.
    share: f64,
    /// Endpoints that it may end at.
    endpoints: Vec<String>,
}

/// Carries it out: 0 where it would pass, 1 where not, 2 where it cannot be said.
pub(crate) async fn run(args: &Simulate) -> ExitCode {
    answered(answer(args).await)
}

async fn answer(args: &Simulate) -> anyhow::Result<ExitCode> {
    let known = know(args).await?;
    let Known { snapshot, objects, mut notes, .. } = known;
    let place = Place::Objects(objects);
    let who = ends::Who { place: &place, snapshot: &snapshot, mesh: &known.mesh, workloads: &known.workloads };
    let (client, said) = who.client(&args.source, &args.namespace, args.source_ip).await?;
    notes.extend(said);
    let (to, said) = who.destination(&args.destination, &args.namespace).await?;
    notes.extend(said);
    let request = args.request.read()?;
    let asked = Asked {
        snapshot: &snapshot,
        client: &client,
        to: &to,
        request: request.as_ref(),
        server_name: args.server_name.as_deref(),
    };
    let (outcomes, said) = outcomes(&asked);
    notes.extend(said);
    let is_refused = |one: &Outcome| one.connection.refused;
    let verdict = match (outcomes.iter().any(is_refused), outcomes.iter().all(is_refused)) {
        (false, _) => "allowed",
        (true, true) => "refused",
        (true, false) => "mixed",
    };
    notes.push(match args.live {
        true => "simulated: whether anything listens and answers is not known from objects".to_owned(),
        false => "simulated: whether endpoints are ready, listen and answer is not known from manifests".to_owned(),
    });
    if args.json {
        let answer = json!({ "verdict": verdict, "connections": outcomes, "found": outcomes.len(), "notes": notes });
        line(&serde_json::to_string_pretty(&answer)?);
    } else {
        tell(&outcomes, &notes);
    }
    Ok(if verdict == "allowed" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The mesh that is asked about.
async fn know(args: &Simulate) -> anyhow::Result<Known> {
    if args.live {
        let place = Place::find(&args.which).await?;
        let (mesh, assumed) = args.settings.of(&place).await;
        let written = offline::live(&place, &args.which.access, &mesh).await?;
        return offline::known(written, mesh, assumed.into_iter().collect());
    }
    let mesh = args.settings.of_files();
    let (written, notes) = offline::from_files(&args.files).await?.complete(&mesh)?;
    offline::known(written, mesh, notes)
}

fn tell(outcomes: &[Outcome], notes: &[String]) {
    for (number, outcome) in outcomes.iter().take(MOST_OUTCOMES).enumerate() {
        if number > 0 {
            line("");
        }
        line(&story::of(&outcome.connection));
        if outcomes.len() > 1 {
            line(&format!("  (about {:.0} % of its connections go this way)", outcome.share * 100.0));
        }
        if outcome.endpoints.len() > 1 {
            line(&format!("  (or likewise to any of {} endpoints)", outcome.endpoints.len()));
        }
    }
    if outcomes.len() > MOST_OUTCOMES {
        line(&format!("\n{} more ways; --json shows them", outcomes.len() - MOST_OUTCOMES));
    }
    notes.iter().for_each(|note| line(&format!("note: {note}")));
}

/// All ways that it may go, refused ones first, then the likeliest. Those that differ in the endpoint alone are one.
fn outcomes(asked: &Asked<'_>) -> (Vec<Outcome>, BTreeSet<String>) {
    let mut found: BTreeMap<String, (Way, u64, BTreeSet<String>)> = BTreeMap::new();
    let mut notes = BTreeSet::new();
    for draw in 0..DRAWS {
        let way = walk::walk(asked, walk::entropy(draw));
        notes.extend(way.notes.iter().cloned());
        let endpoint = way.hops.last().map(|told| told.destination.endpoint.clone()).unwrap_or_default();
        let (_, count, endpoints) = found.entry(way.signature()).or_insert_with(|| (way, 0, BTreeSet::new()));
        *count += 1;
        endpoints.insert(endpoint);
    }
    let mut outcomes: Vec<Outcome> = found
        .into_values()
        .map(|(way, count, endpoints)| Outcome {
            connection: Connection { id: String::new(), refused: way.is_refused(), hops: way.hops },
            share: count as f64 / DRAWS as f64,
            endpoints: endpoints.into_iter().filter(|uid| !uid.is_empty()).collect(),
        })
        .collect();
    outcomes.sort_by(|one, other| {
        (other.connection.refused).cmp(&one.connection.refused).then(other.share.total_cmp(&one.share))
    });
    (outcomes, notes)
}
