//! `stillmesh why`: what became of a connection or request, hop by hop, after the fact. Tunnels and waypoints keep records
//! ([`stillmesh_records`]); this finds those that belong together and tells them as one story.
//!
//! [`who`] makes names what records are found by, [`ask`] asks, [`join`] puts hops together, [`story`] prints.

mod ask;
pub(crate) mod join;
pub(crate) mod place;
mod quarantine;
mod skipped;
pub(crate) mod story;
pub(crate) mod tap;
#[cfg(test)]
mod tests;
pub(crate) mod who;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use stillmesh_records::{Hop, Query, Told};

use crate::cluster::args::{MeshNamespace, WhichMesh, duration, namespace_name};
use crate::output::line;
use ask::Asked;
use join::Connection;
use place::Place;
use who::{End, Role};

/// `stillmesh why`.
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// Who connected: a pod, Deployment or Service as `[NAMESPACE/]NAME` or `KIND/NAME`, or an address. Alone: the id of a
    /// connection or request, as logs have it or as a refused client was told
    #[arg(value_name = "SRC | ID")]
    source: String,
    /// To whom, likewise; `:PORT` may follow
    #[arg(value_name = "DST[:PORT]")]
    destination: Option<String>,
    /// Only requests for this path
    #[arg(long, requires = "destination")]
    path: Option<String>,
    /// Only requests with this method
    #[arg(long, requires = "destination")]
    method: Option<String>,
    /// How far back
    #[arg(long, default_value = "5m", value_parser = duration)]
    since: Duration,
    /// How many connections are told; refused ones come first
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    limit: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Namespace of names that carry none
    #[arg(long, short, default_value = "default", value_parser = namespace_name)]
    namespace: String,
    #[command(flatten)]
    which: WhichMesh,
    #[command(flatten)]
    mesh: MeshNamespace,
}

/// Carries it out. Fails where nothing is found, having said what that means.
pub(crate) async fn run(args: &Why) -> anyhow::Result<ExitCode> {
    let place = Place::find(&args.which).await?;
    let found = match &args.destination {
        None => by_id(args, &place).await?,
        Some(destination) => by_names(args, &place, destination).await?,
    };
    let Found { mut connections, mut notes, asked } = found;
    let whole = connections.len();
    connections.truncate(usize::from(args.limit));
    notes.extend(quarantine::notes(&place, &connections).await);
    notes.extend(skipped::notes(&place, &connections).await);
    if args.json {
        let answer = json!({ "connections": connections, "found": whole, "notes": notes, "asked": asked });
        line(&serde_json::to_string_pretty(&answer)?);
    } else {
        let stories: Vec<String> = connections.iter().map(story::of).collect();
        if !stories.is_empty() {
            line(&stories.join("\n\n"));
        }
        if whole > connections.len() {
            line(&format!("\n{} more; --limit shows them", whole - connections.len()));
        }
        if !notes.is_empty() {
            line(&notes.join("\n"));
        }
    }
    Ok(if connections.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What was found, and what is to be said about it.
struct Found {
    connections: Vec<Connection>,
    notes: Vec<String>,
    asked: Vec<Asked>,
}

async fn by_id(args: &Why, place: &Place) -> anyhow::Result<Found> {
    let id = stillmesh_records::id(&args.source).with_context(|| {
        format!(
            "{:?} is no id: 16 or 32 hexadecimal digits, as `conn.id` of the access log or the body of a 403 has them. To ask \
             by names, give two: stillmesh why SRC DST",
            args.source
        )
    })?;
    let proxies = place.proxies(&BTreeSet::new()).await?;
    let mut gathered = ask::Gathered::default();
    ask::follow(&proxies, &mut gathered, vec![id]).await;
    let connections = join::connections(std::mem::take(&mut gathered.told), &|told| join::has_id(told, id));
    let mut notes = gathered.notes();
    if connections.is_empty() {
        notes.insert(0, format!("nothing is recorded under {}", args.source));
        notes.push(story::reach(&gathered.asked));
    }
    Ok(Found { connections, notes, asked: gathered.asked })
}

async fn by_names(args: &Why, place: &Place, destination: &str) -> anyhow::Result<Found> {
    let (name, port) = who::port_of(destination)?;
    let source = who::find(place, &args.source, &args.namespace, Role::Source).await.context("SRC")?;
    let destination = who::find(place, name, &args.namespace, Role::Destination).await.context("DST")?;
    let nodes: BTreeSet<String> = [&source, &destination].into_iter().flat_map(End::nodes).collect();
    let proxies = place.proxies(&nodes).await?;
    if proxies.is_empty() {
        bail!("no ztunnel and no waypoint runs where they could have seen it");
    }
    let question = Query {
        sources: source.terms.clone(),
        destinations: destination.terms.clone(),
        port,
        since: Some(args.since.max(Duration::from_secs(1))),
        path: args.path.clone(),
        method: args.method.clone(),
        ..Query::all()
    };
    let mut gathered = ask::Gathered::default();
    let ids = ask::ask(&proxies, &question, &mut gathered).await;
    ask::follow(&proxies, &mut gathered, ids).await;
    let wanted = |told: &Told| told.hop != Hop::Request || question.takes_request(&told.method, &told.path);
    let mut connections = join::connections(std::mem::take(&mut gathered.told), &wanted);
    connections.retain(|one| one.is_for(&question));
    if args.path.is_some() || args.method.is_some() {
        connections.retain(|one| one.hops.iter().any(|told| told.hop == Hop::Request));
    }
    let mut notes = gathered.notes();
    if connections.is_empty() {
        notes.insert(0, format!("no connection from {source} to {destination} within {:?}", args.since));
        notes.extend(who::why_nothing(&source, &destination));
        notes.push(story::reach(&gathered.asked));
    }
    Ok(Found { connections, notes, asked: gathered.asked })
}
