//! `stillmesh tap`: what tunnels and waypoints decide, as it happens: a line for each connection and request when it has ended.
//!
//! It reads the same records as `stillmesh why`, again and again, and prints what is new. Nothing is switched on for it: who does
//! not look costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use stillmesh_records::{Answer, Hop, MOST_ANSWERS, Query, Told};
use tokio::time::{Instant, MissedTickBehavior};

use super::place::{self, Place};
use super::story;
use super::who::{self, End, Role};
use crate::cluster::args::{WhichMesh, duration, namespace_name};
use crate::output::{line, note};

/// How often all are asked.
const EVERY: Duration = Duration::from_secs(1);
/// How often it is looked who is to be asked.
const LOOK: Duration = Duration::from_secs(10);

/// `stillmesh tap`.
#[derive(Debug, Args)]
#[command(after_help = "A connection or request is shown when it has ended, about a second after. Ctrl-C ends it.")]
pub(crate) struct Tap {
    /// Only of this client: a pod, Deployment or Service as `[NAMESPACE/]NAME` or `KIND/NAME`, or an address
    #[arg(long, value_name = "SRC")]
    from: Option<String>,
    /// Only to this, likewise; `:PORT` may follow
    #[arg(long, value_name = "DST[:PORT]")]
    to: Option<String>,
    /// Only requests for this path
    #[arg(long)]
    path: Option<String>,
    /// Only requests with this method
    #[arg(long)]
    method: Option<String>,
    /// Only what was refused or failed
    #[arg(long)]
    refused: bool,
    /// End after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    lasting: Option<Duration>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Namespace of names that carry none
    #[arg(long, short, default_value = "default", value_parser = namespace_name)]
    namespace: String,
    #[command(flatten)]
    which: WhichMesh,
}

/// Whom and what the records are asked for.
struct Asked {
    query: Query,
    nodes: BTreeSet<String>,
}

/// Carries it out. Errors: nobody of a name is there, or there is no proxy to ask.
pub(crate) async fn run(args: &Tap) -> anyhow::Result<ExitCode> {
    let mesh = Place::find(&args.which).await?;
    let Asked { mut query, nodes } = asked(args, &mesh).await?;
    let began = Instant::now();
    let mut proxies = mesh.proxies(&nodes).await?;
    anyhow::ensure!(!proxies.is_empty(), "no ztunnel and no waypoint runs where they could see it");
    note(&format!("looking at {} tunnels and waypoints; Ctrl-C ends it", proxies.len()));
    let (mut seen, mut looked, mut before) = (Seen::default(), Instant::now(), Instant::now());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while args.lasting.is_none_or(|lasting| began.elapsed() < lasting) {
        ticks.tick().await;
        if looked.elapsed() > LOOK {
            // Those that came meanwhile; while nobody can say who is there, those that were are asked.
            proxies = mesh.proxies(&nodes).await.unwrap_or(proxies);
            looked = Instant::now();
        }
        // What one of them was slow to tell is asked for once more.
        query.since = Some(before.elapsed() + EVERY * 4);
        before = Instant::now();
        let mut new = Vec::new();
        for (by, answer) in place::answers(&proxies, &format!("/decisions?{query}")).await {
            match answer {
                Ok(answer) => new.extend(seen.take(&by, answer)),
                Err(error) => seen.failed(&by, &format!("{error:#}")),
            }
        }
        new.sort_by_key(|told| told.at_us);
        for told in new.iter().filter(|told| !args.refused || told.refused || !told.error.is_empty()) {
            line(&if args.json { serde_json::to_string(told)? } else { row(told) });
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn asked(args: &Tap, place: &Place) -> anyhow::Result<Asked> {
    let mut query = Query { path: args.path.clone(), method: args.method.clone(), limit: MOST_ANSWERS, ..Query::all() };
    let mut nodes = BTreeSet::new();
    if let Some(from) = &args.from {
        let end: End = who::find(place, from, &args.namespace, Role::Source).await?;
        query.sources.clone_from(&end.terms);
        nodes.extend(end.nodes());
    }
    if let Some(to) = &args.to {
        let (name, port) = who::port_of(to)?;
        let end: End = who::find(place, name, &args.namespace, Role::Destination).await?;
        query.destinations.clone_from(&end.terms);
        query.port = port;
        nodes.extend(end.nodes());
    }
    // Where only one end is named, the other one may be anywhere.
    if args.from.is_none() || args.to.is_none() {
        nodes.clear();
    }
    Ok(Asked { query, nodes })
}

/// Up to when each proxy's records were shown, by its own clock.
#[derive(Debug, Default)]
struct Seen {
    until_us: BTreeMap<String, u64>,
    failing: BTreeSet<String>,
}

impl Seen {
    /// What of an answer is new. What is there when somebody is asked first is not.
    fn take(&mut self, by: &str, answer: Answer) -> Vec<Told> {
        if self.failing.remove(by) {
            note(&format!("{by} answers again"));
        }
        let is_full = answer.decisions.len() >= MOST_ANSWERS;
        let newest = answer.decisions.iter().filter(|told| !told.live).map(|told| told.at_us).max();
        let Some(until) = self.until_us.get_mut(by) else {
            let until = newest.map_or(answer.now_us, |newest| newest.max(answer.now_us));
            self.until_us.insert(by.to_owned(), until);
            if !answer.is_on {
                note(&format!("{by} keeps no records (DECISION_RECORDS_MEMORY is 0), so nothing of it is shown"));
            }
            return Vec::new();
        };
        let before = *until;
        *until = newest.map_or(before, |newest| newest.max(before));
        let new: Vec<Told> = answer
            .decisions
            .into_iter()
            .filter(|told| !told.live && told.at_us > before)
            .map(|told| Told { by: by.to_owned(), ..told })
            .collect();
        if is_full && new.len() >= MOST_ANSWERS {
            note(&format!("{by} has decided more than {MOST_ANSWERS} times since; only the last are shown"));
        }
        new
    }

    /// One has not answered: said once, until it does.
    fn failed(&mut self, by: &str, error: &str) {
        if self.failing.insert(by.to_owned()) {
            note(&format!("{by} has not answered: {error}"));
        }
    }
}

/// One connection or request.
fn row(told: &Told) -> String {
    let at = story::timestamp(told.at_us).map(|time| time.strftime("%H:%M:%S%.3f").to_string());
    let hop = match told.hop {
        Hop::Outbound => "out",
        Hop::Inbound => "in",
        Hop::Connection => "tcp",
        Hop::Request => "http",
    };
    let outcome = match (told.refused, told.error.is_empty()) {
        (true, _) => "REFUSED",
        (false, false) => "failed",
        (false, true) => "ok",
    };
    let source = story::source(told);
    let mut text = format!("{} {} {hop} {source} → {}", at.unwrap_or_default(), told.by, story::destination(told));
    if told.hop == Hop::Request {
        let _ = write!(text, " {} {}{}", told.method, told.host, told.path);
        let _ = told.status.map_or(Ok(()), |status| write!(text, " {status}"));
    }
    let _ = write!(text, " {outcome}");
    if !matches!(told.flags.as_str(), "" | "-") {
        let _ = write!(text, " {}", told.flags);
    }
    let _ = write!(text, " {:.1}ms {}B in {}B out", told.total_us as f64 / 1000.0, told.received, told.sent);
    if outcome != "ok" {
        let why = if told.because.is_empty() { &told.error } else { &told.because };
        let _ = write!(text, " [{}: {why}]", told.reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(now_us: u64, at: &[(u64, bool)]) -> Answer {
        let decisions = at.iter().map(|(at_us, live)| Told { at_us: *at_us, live: *live, ..Told::default() }).collect();
        Answer { now_us, is_on: true, decisions, ..Answer::default() }
    }

    #[test]
    fn each_record_is_shown_once_and_none_from_before() {
        let mut seen = Seen::default();
        let times = |told: Vec<Told>| told.into_iter().map(|told| told.at_us).collect::<Vec<_>>();
        assert!(seen.take("a", answer(100, &[(90, false), (100, true)])).is_empty(), "from before");
        assert_eq!(
            times(seen.take("a", answer(200, &[(150, false), (140, false), (90, false), (200, true)]))),
            [150, 140]
        );
        assert_eq!(times(seen.take("a", answer(300, &[(250, false), (150, false)]))), [250]);
        assert!(seen.take("b", answer(400, &[])).is_empty());
        assert_eq!(times(seen.take("b", answer(500, &[(450, false)]))), [450], "each has its own clock");
    }

    #[test]
    fn a_line_says_who_asked_whom_for_what_and_why_not() {
        let told = Told {
            by: "shop/waypoint-1".to_owned(),
            hop: Hop::Request,
            refused: true,
            reason: "DENIED_BY".to_owned(),
            because: "denied by rule 0 of policy shop/no".to_owned(),
            flags: "DENY".to_owned(),
            status: Some(403),
            method: "GET".to_owned(),
            host: "web".to_owned(),
            path: "/admin".to_owned(),
            total_us: 1500,
            source: stillmesh_records::Source { workload: "K//Pod/shop/page".to_owned(), ..Default::default() },
            destination: stillmesh_records::Destination {
                service: "shop/web.shop.svc.cluster.local".to_owned(),
                ..Default::default()
            },
            ..Told::default()
        };
        let row = row(&told);
        assert_eq!(
            row,
            "00:00:00.000 shop/waypoint-1 http shop/page → service web.shop.svc.cluster.local GET web/admin 403 REFUSED DENY \
             1.5ms 0B in 0B out [DENIED_BY: denied by rule 0 of policy shop/no]"
        );
    }
}
