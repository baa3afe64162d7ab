//! `stillmesh flows`: who spoke to whom within a day, added up hour by hour by tunnels and waypoints ([`stillmesh_records::flows`]) and
//! here over all of them. [`strict`] asks the same tables who would be refused under STRICT.

pub(crate) mod strict;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use stillmesh_records::{Flow, FlowsAnswer, Hop};

use crate::cluster::args::{Format, WhichMesh, duration, namespace_name};
use crate::output::{aligned, line, note};
use crate::why::place::{self, Place};
use crate::why::story;

/// `stillmesh flows`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each tunnel and waypoint that sees a connection or request counts it: SEEN BY says where it stood.\n\
    Paths are templates: ids and long tokens are {id}.\n\nExit code: 0, or 1 when nobody could be asked or \
    there is no such namespace."
)]
pub(crate) struct Flows {
    /// Only what has an end in this namespace
    #[arg(value_name = "NAMESPACE", value_parser = namespace_name)]
    namespace: Option<String>,
    /// How far back; a day is kept
    #[arg(long, default_value = "24h", value_parser = duration)]
    since: Duration,
    /// Only clients whose identity, workload or address has this in it
    #[arg(long, value_name = "TEXT")]
    src: Option<String>,
    /// Only destinations whose service or workload has this in it
    #[arg(long, value_name = "TEXT")]
    dst: Option<String>,
    /// Rows of the table
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// How to print
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    which: WhichMesh,
}

/// What one of those who were asked has answered.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Asked {
    pub(crate) by: String,
    /// How far its table goes back, seconds; none where it keeps none.
    pub(crate) reaches_back_s: Option<u64>,
    /// Why it has not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// The tables of all.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) flows: Vec<Flow>,
    pub(crate) asked: Vec<Asked>,
}

/// Carries it out.
pub(crate) async fn run(args: &Flows) -> anyhow::Result<ExitCode> {
    let place = Place::find(&args.which).await?;
    let gathered = gather(&place, args.since).await?;
    let flows = merged(gathered.flows, |flow| is_wanted(args, flow));
    // What is gone may have been counted.
    if let (true, Some(namespace)) = (flows.is_empty(), &args.namespace) {
        place.must_have_namespace(namespace).await?;
    }
    match args.output.report() {
        None => print(&flows, args.limit),
        Some(report) => line(&report.of(&json!({ "flows": flows, "asked": gathered.asked }))?),
    }
    notes(&gathered.asked).iter().for_each(|text| note(text));
    let is_deaf = gathered.asked.iter().all(|asked| asked.reaches_back_s.is_none());
    Ok(if is_deaf { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Asks all tunnels and waypoints.
pub(crate) async fn gather(mesh: &Place, since: Duration) -> anyhow::Result<Gathered> {
    let proxies = mesh.proxies(&BTreeSet::new()).await?;
    let path = format!("/flows?since={}", since.as_secs().max(1));
    let mut gathered = Gathered::default();
    for (by, answer) in place::answers::<FlowsAnswer>(&proxies, &path).await {
        let asked = match answer {
            Ok(answer) => {
                let age = answer.now_us.saturating_sub(answer.since_us) / 1_000_000;
                gathered.flows.extend(answer.flows);
                Asked { by, reaches_back_s: answer.is_on.then_some(age), error: None }
            }
            Err(error) => Asked { by, reaches_back_s: None, error: Some(format!("{error:#}")) },
        };
        gathered.asked.push(asked);
    }
    Ok(gathered)
}

/// What is to be said of those who were asked.
pub(crate) fn notes(asked: &[Asked]) -> Vec<String> {
    let mut notes = Vec::new();
    for one in asked {
        match (&one.error, one.reaches_back_s) {
            (Some(error), _) => notes.push(format!("{} has not answered, so its part is missing: {error}", one.by)),
            (None, None) => notes.push(format!("{} keeps no flows (FLOWS_MEMORY is 0)", one.by)),
            (None, Some(_)) => {}
        }
    }
    if asked.is_empty() {
        notes.push("no ztunnel and no waypoint runs".to_owned());
    }
    notes
}

/// Rows that differ in nothing but hour and place are one; the highest counts first.
pub(crate) fn merged(flows: Vec<Flow>, is_wanted: impl Fn(&Flow) -> bool) -> Vec<Flow> {
    let mut all: BTreeMap<String, Flow> = BTreeMap::new();
    for flow in flows.into_iter().filter(is_wanted) {
        let (hop, verdict) = (flow.hop, (flow.refused, flow.overflow, flow.clear));
        let names = (&flow.source, &flow.service, &flow.endpoint, flow.port, &flow.method, &flow.path);
        let key = format!("{hop:?} {verdict:?} {names:?} {} {}", flow.reason, flow.object);
        match all.get_mut(&key) {
            Some(one) => {
                one.count = one.count.saturating_add(flow.count);
                one.open = one.open.saturating_add(flow.open);
                one.first_us = one.first_us.min(flow.first_us);
                one.last_us = one.last_us.max(flow.last_us);
                one.hour = one.hour.min(flow.hour);
            }
            None => drop(all.insert(key, flow)),
        }
    }
    let mut all: Vec<Flow> = all.into_values().collect();
    all.sort_by(|one, other| other.count.cmp(&one.count).then(other.last_us.cmp(&one.last_us)));
    all
}

fn is_wanted(args: &Flows, flow: &Flow) -> bool {
    let has = |wanted: &Option<String>, texts: &[&str]| {
        wanted.as_ref().is_none_or(|wanted| texts.iter().any(|text| text.contains(wanted.as_str())))
    };
    let in_namespace = |namespace: &str| {
        flow.source.starts_with(&format!("{namespace}/"))
            || flow.source.contains(&format!("/ns/{namespace}/"))
            || flow.service.starts_with(&format!("{namespace}/"))
            || flow.endpoint.starts_with(&format!("{namespace}/"))
    };
    args.namespace.as_deref().is_none_or(in_namespace)
        && has(&args.src, &[&flow.source])
        && has(&args.dst, &[&flow.service, &flow.endpoint])
}

/// Who served, or was meant.
fn destination(flow: &Flow) -> String {
    let host = flow.service.split_once('/').map_or(flow.service.as_str(), |(_, host)| host);
    match (flow.hop, flow.endpoint.as_str(), host) {
        (_, "", "") => "-".to_owned(),
        (Hop::Inbound, endpoint, _) if !endpoint.is_empty() => endpoint.to_owned(),
        (_, endpoint, "") => endpoint.to_owned(),
        (_, _, host) => host.to_owned(),
    }
}

pub(crate) fn time(microseconds: u64) -> String {
    story::timestamp(microseconds).map(|time| format!("{time:.0}")).unwrap_or_default()
}

fn print(flows: &[Flow], limit: usize) {
    // What the table shows alike is one row, such as what came before and after a pod's Service was known.
    let mut shown: Vec<([String; 6], u64, u64)> = Vec::new();
    let mut places: BTreeMap<[String; 6], usize> = BTreeMap::new();
    for flow in flows {
        let row = row(flow);
        match places.get(&row).and_then(|at| shown.get_mut(*at)) {
            Some((_, count, last)) => (*count, *last) = (count.saturating_add(flow.count), flow.last_us.max(*last)),
            None => {
                places.insert(row.clone(), shown.len());
                shown.push((row, flow.count, flow.last_us));
            }
        }
    }
    shown.sort_by_key(|(_, count, last)| std::cmp::Reverse((*count, *last)));
    let heads = ["COUNT", "FROM", "TO", "PORT", "REQUEST", "VERDICT", "LAST SEEN", "SEEN BY"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(shown.iter().take(limit).map(|([source, to, port, request, verdict, seen_by], count, last)| {
        let words = [&count.to_string(), source, to, port, request, verdict, &time(*last), seen_by];
        words.map(ToOwned::to_owned).to_vec()
    }));
    match flows.is_empty() {
        true => line("no flows were counted"),
        false => line(&aligned(&rows)),
    }
    if shown.len() > limit {
        line(&format!("{} more rows; --limit shows them", shown.len() - limit));
    }
}

/// From, to, port, request, verdict, seen by.
fn row(flow: &Flow) -> [String; 6] {
    let source = match (flow.overflow, flow.clear) {
        (true, _) => "(rows beyond the budget)".to_owned(),
        (false, true) => format!("{} (clear text)", flow.source),
        (false, false) => flow.source.trim_start_matches("spiffe://").to_owned(),
    };
    let verdict = match (flow.refused, flow.object.as_str()) {
        (false, _) => "carried".to_owned(),
        (true, "") => format!("refused: {}", flow.reason),
        (true, object) => format!("refused: {} by {object}", flow.reason),
    };
    let seen_by = match flow.hop {
        Hop::Outbound => "client",
        Hop::Connection | Hop::Request => "waypoint",
        Hop::Inbound => "server",
    };
    let request = format!("{} {}", flow.method, flow.path).trim().to_owned();
    let request = if request.is_empty() { "-".to_owned() } else { request };
    [source, destination(flow), flow.port.to_string(), request, verdict, seen_by.to_owned()]
}
