//! `stillmesh top`: who is asked how often, how well and how fast, right now: what tunnels and waypoints count, read twice, and
//! the difference. Exact, not sampled; the same counters as a Prometheus scrapes.
//!
//! Success is an answer that is no 5xx, and in gRPC none of the statuses by which a server says that it failed: 2 UNKNOWN, 4
//! DEADLINE_EXCEEDED, 13 INTERNAL, 14 UNAVAILABLE, 15 DATA_LOSS. Who is denied is no failure of the service and no success of the client:
//! they are told apart, and success is of the others.

mod exposition;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde::Serialize;
use stillmesh_proxy::labels::Text;
use tokio::time::{Instant, sleep};

use crate::cluster::args::{WhichMesh, duration, namespace_name};
use crate::output::{aligned, line, note};
use crate::why::place::{self, Place, Proxy, STATS};
use exposition::Sample;

/// `stillmesh top`.
#[derive(Debug, Args)]
#[command(
    after_help = "SUCCESS: of the requests that were not denied, those answered without a 5xx, for gRPC without status 2, 4, 13, 14 or 15. DENIED/S: answered 401 \
    or 403 (gRPC 7 or 16). FAILED/S: connections that were not opened, refused ones among them. OUTSIDE/S: connections in clear text \
    of nobody that the mesh knows and that were let in, not in CONN/S: kubelets' probes, programs of nodes, load balancers.\n\n\
    Exit code: 0, or 1 when nobody has answered or there is no such namespace."
)]
pub(crate) struct Top {
    /// Only what is in this namespace; everything when absent
    #[arg(value_name = "NAMESPACE", value_parser = namespace_name)]
    of: Option<String>,
    /// How long is counted
    #[arg(long, default_value = "5s", value_parser = duration)]
    interval: Duration,
    /// What a row is
    #[arg(long, value_enum, default_value = "service")]
    by: By,
    /// Rows at most, the busiest first
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: WhichMesh,
}

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// What is for one service.
    Service,
    /// What one workload serves.
    Workload,
    /// What one workload asks of one service.
    Edge,
}

/// What was counted of one row.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counts {
    requests: f64,
    failed_requests: f64,
    denied_requests: f64,
    /// Requests by the upper bound of their duration, milliseconds; each bound has those below it too.
    within_ms: BTreeMap<u64, f64>,
    connections: f64,
    /// In clear text, of nobody that is known.
    from_outside: f64,
    failed_connections: f64,
    received: f64,
    sent: f64,
}

/// One row as it is told. Rates are per second.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    of: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    requests: f64,
    /// Share of the requests without an error among those that were not denied, 0 to 1; none where there are none.
    success: Option<f64>,
    denied: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    connections: f64,
    failed_connections: f64,
    outside_connections: f64,
    received_bytes: f64,
    sent_bytes: f64,
}

/// Carries it out. Errors: there is no proxy to ask, or none answers.
pub(crate) async fn run(args: &Top) -> anyhow::Result<ExitCode> {
    let mesh = Place::find(&args.which).await?;
    if let Some(namespace) = &args.of {
        mesh.must_have_namespace(namespace).await?;
    }
    let proxies = mesh.proxies(&BTreeSet::new()).await?;
    anyhow::ensure!(!proxies.is_empty(), "no ztunnel and no waypoint runs here");
    let before = read(&proxies).await;
    let began = Instant::now();
    sleep(args.interval).await;
    let after = read(&proxies).await;
    let seconds = began.elapsed().as_secs_f64();
    let mut counted: BTreeMap<(String, Option<String>), Counts> = BTreeMap::new();
    let mut answered = 0;
    for (by, now) in after {
        let now = match now {
            Ok(now) => now,
            Err(error) => {
                note(&format!("{by} has not answered, so its part is missing: {error:#}"));
                continue;
            }
        };
        answered += 1;
        // One that is new meanwhile has counted from 0 on.
        let then = before.get(&by).and_then(|then| then.as_ref().ok());
        count(args, &now, then.map_or(&[][..], Vec::as_slice), &mut counted);
    }
    anyhow::ensure!(answered > 0, "no tunnel and no waypoint has answered");
    let mut rows: Vec<Row> =
        counted.into_iter().map(|((of, from), counts)| counts.row(of, from, seconds)).filter(Row::is_busy).collect();
    rows.sort_by(|one, other| {
        let outside = other.outside_connections.total_cmp(&one.outside_connections);
        other.weight().total_cmp(&one.weight()).then(outside).then_with(|| one.of.cmp(&other.of))
    });
    let whole = rows.len();
    rows.truncate(usize::from(args.limit));
    if args.json {
        line(&serde_json::to_string_pretty(&rows)?);
    } else if rows.is_empty() {
        note(&format!("nothing has passed within {:?}", args.interval));
    } else {
        line(&aligned(&table(&rows, args.by)));
        if whole > rows.len() {
            note(&format!("{} more; --limit shows them", whole - rows.len()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn read(proxies: &[Proxy]) -> BTreeMap<String, anyhow::Result<Vec<Sample>>> {
    let samples = |page: Bytes| exposition::samples(&String::from_utf8_lossy(&page));
    let pages = place::pages(proxies, STATS, "/metrics").await;
    pages.into_iter().map(|(by, page)| (by, page.map(samples))).collect()
}

/// Adds what one proxy has counted between two looks.
fn count(args: &Top, now: &[Sample], then: &[Sample], counted: &mut BTreeMap<(String, Option<String>), Counts>) {
    let before: BTreeMap<&str, f64> = then.iter().map(|sample| (sample.series.as_str(), sample.value)).collect();
    for sample in now {
        let Some(add) = place_of(sample) else { continue };
        let namespace = sample.label("destination_workload_namespace");
        if args
            .of
            .as_deref()
            .is_some_and(|wanted| wanted != namespace && wanted != sample.label("destination_service_namespace"))
        {
            continue;
        }
        let then = before.get(sample.series.as_str()).copied().unwrap_or(0.0);
        // One that started anew counts from 0 on.
        let grown = if sample.value >= then { sample.value - then } else { sample.value };
        if grown > 0.0 {
            add(counted.entry(key(sample, args.by)).or_default(), sample, grown);
        }
    }
}

/// How a sample counts, if it does. Each connection and request once: where it arrives, and where it failed to.
fn place_of(sample: &Sample) -> Option<fn(&mut Counts, &Sample, f64)> {
    let at_end = sample.label("reporter") == "destination";
    let is_request = sample.label("reporter") == "waypoint";
    Some(match sample.name.as_str() {
        "istio_requests_total" if is_request => |counts, sample, grown| {
            counts.requests += grown;
            let code: u16 = sample.label("response_code").parse().unwrap_or(0);
            match sample.label("grpc_response_status") {
                // PERMISSION_DENIED and UNAUTHENTICATED.
                "7" | "16" => counts.denied_requests += grown,
                _ if matches!(code, 401 | 403) => counts.denied_requests += grown,
                "2" | "4" | "13" | "14" | "15" => counts.failed_requests += grown,
                _ if (1..500).contains(&code) => {}
                _ => counts.failed_requests += grown,
            }
        },
        "istio_request_duration_milliseconds_bucket" if is_request => |counts, sample, grown| {
            let bound = sample
                .label("le")
                .parse::<f64>()
                .map_or(u64::MAX, |bound| if bound.is_finite() { (bound * 1000.0) as u64 } else { u64::MAX });
            *counts.within_ms.entry(bound).or_default() += grown;
        },
        "istio_tcp_connections_opened_total" if at_end && is_from_outside(sample) => {
            |counts, _, grown| counts.from_outside += grown
        }
        "istio_tcp_connections_opened_total" if at_end => |counts, _, grown| counts.connections += grown,
        "istio_tcp_connections_failed_total" => |counts, _, grown| counts.failed_connections += grown,
        "istio_tcp_received_bytes_total" if at_end => |counts, _, grown| counts.received += grown,
        "istio_tcp_sent_bytes_total" if at_end => |counts, _, grown| counts.sent += grown,
        _ => return None,
    })
}

/// Whether it came in clear text from an address that is no workload's, as kubelets' probes do.
fn is_from_outside(sample: &Sample) -> bool {
    sample.label("connection_security_policy") != "mutual_tls" && sample.label("source_workload") == Text::UNKNOWN
}

fn key(sample: &Sample, by: By) -> (String, Option<String>) {
    let of = |name: &str, namespace: &str| match (sample.label(namespace), sample.label(name)) {
        ("" | "unknown", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    let workload = || of("destination_workload", "destination_workload_namespace");
    let service = || match sample.label("destination_service_name") {
        // What was dialled by its address belongs to no service.
        "" | "unknown" => workload(),
        _ => of("destination_service_name", "destination_service_namespace"),
    };
    match by {
        By::Service => (service(), None),
        By::Workload => (workload(), None),
        By::Edge => (service(), Some(of("source_workload", "source_workload_namespace"))),
    }
}

impl Counts {
    fn row(self, of: String, from: Option<String>, seconds: f64) -> Row {
        let rate = |count: f64| count / seconds.max(0.001);
        let let_in = self.requests - self.denied_requests;
        Row {
            of,
            from,
            requests: rate(self.requests),
            success: (let_in > 0.0).then(|| 1.0 - self.failed_requests / let_in),
            denied: rate(self.denied_requests),
            p50_ms: self.quantile(0.5),
            p99_ms: self.quantile(0.99),
            connections: rate(self.connections),
            failed_connections: rate(self.failed_connections),
            outside_connections: rate(self.from_outside),
            received_bytes: rate(self.received),
            sent_bytes: rate(self.sent),
        }
    }

    /// As Prometheus' `histogram_quantile` has it: evenly spread within a bucket. Milliseconds.
    fn quantile(&self, share: f64) -> Option<f64> {
        let all = *self.within_ms.values().next_back()?;
        let rank = all * share;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, within) in &self.within_ms {
            let upper = *bound as f64 / 1000.0;
            if *within >= rank && *within > below {
                let is_last = *bound == u64::MAX;
                return Some(if is_last { lower } else { lower + (upper - lower) * (rank - below) / (within - below) });
            }
            (lower, below) = (upper, *within);
        }
        None
    }
}

impl Row {
    fn is_busy(&self) -> bool {
        self.weight() + self.outside_connections > 0.0 || self.received_bytes + self.sent_bytes > 0.0
    }

    fn weight(&self) -> f64 {
        self.requests + self.connections + self.failed_connections
    }
}

fn table(rows: &[Row], by: By) -> Vec<Vec<String>> {
    let heads = ["REQ/S", "SUCCESS", "DENIED/S", "P50", "P99", "CONN/S", "FAILED/S", "OUTSIDE/S", "IN/S", "OUT/S"];
    let mut all: Vec<Vec<String>> = vec![heads.iter().map(|head| (*head).to_owned()).collect()];
    let milliseconds = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}ms"));
    for row in rows {
        all.push(vec![
            format!("{:.1}", row.requests),
            row.success.map_or("-".to_owned(), |share| format!("{:.2}%", share * 100.0)),
            format!("{:.1}", row.denied),
            milliseconds(row.p50_ms),
            milliseconds(row.p99_ms),
            format!("{:.1}", row.connections),
            format!("{:.1}", row.failed_connections),
            format!("{:.1}", row.outside_connections),
            bytes(row.received_bytes),
            bytes(row.sent_bytes),
        ]);
    }
    let name = |row: Option<&Row>| match (by, row) {
        (By::Service, None) => vec!["SERVICE".to_owned()],
        (By::Workload, None) => vec!["WORKLOAD".to_owned()],
        (By::Edge, None) => vec!["FROM".to_owned(), "SERVICE".to_owned()],
        (_, Some(row)) => row.from.iter().cloned().chain([row.of.clone()]).collect(),
    };
    let names = std::iter::once(None).chain(rows.iter().map(Some));
    all.into_iter().zip(names).map(|(cells, row)| name(row).into_iter().chain(cells).collect()).collect()
}

fn bytes(value: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let power =
        (0..units.len() - 1).take_while(|power| value >= 1024_f64.powi(i32::try_from(*power + 1).unwrap_or(0))).count();
    let scaled = value / 1024_f64.powi(i32::try_from(power).unwrap_or(0));
    format!("{scaled:.1}{}", units.get(power).unwrap_or(&"B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(by: By, of: Option<&str>) -> Top {
        Top {
            of: of.map(str::to_owned),
            interval: Duration::from_secs(1),
            by,
            limit: 20,
            json: false,
            which: WhichMesh::default(),
        }
    }

    const LABELS: &str = r#"source_workload="page",source_workload_namespace="shop",destination_workload="web-v1",destination_workload_namespace="shop",destination_service_name="web",destination_service_namespace="shop""#;

    fn page(requests: u32, errors: u32) -> Vec<Sample> {
        let all = requests + errors;
        exposition::samples(&format!(
            "# TYPE istio_requests counter\n\
             istio_requests_total{{reporter=\"waypoint\",{LABELS},response_code=\"200\",grpc_response_status=\"\"}} {requests}\n\
             istio_requests_total{{reporter=\"waypoint\",{LABELS},response_code=\"503\",grpc_response_status=\"\"}} {errors}\n\
             istio_request_duration_milliseconds_bucket{{reporter=\"waypoint\",{LABELS},le=\"1.0\"}} {requests}\n\
             istio_request_duration_milliseconds_bucket{{reporter=\"waypoint\",{LABELS},le=\"5.0\"}} {all}\n\
             istio_request_duration_milliseconds_bucket{{reporter=\"waypoint\",{LABELS},le=\"+Inf\"}} {all}\n\
             istio_tcp_connections_opened_total{{reporter=\"source\",{LABELS}}} 7\n\
             istio_tcp_connections_opened_total{{reporter=\"destination\",{LABELS}}} {all}\n"
        ))
    }

    fn counted(args: &Top, now: &[Sample], then: &[Sample]) -> BTreeMap<(String, Option<String>), Counts> {
        let mut counted = BTreeMap::new();
        count(args, now, then, &mut counted);
        counted
    }

    #[test]
    fn what_grew_is_told_once_by_service_workload_or_edge() {
        let (then, now) = (page(10, 0), page(100, 10));
        let by_service = counted(&args(By::Service, None), &now, &then);
        let counts = &by_service[&("shop/web".to_owned(), None)];
        assert_eq!((counts.requests, counts.failed_requests, counts.connections), (100.0, 10.0, 100.0));
        let row = counts.clone().row("shop/web".to_owned(), None, 2.0);
        assert_eq!((row.requests, row.success), (50.0, Some(0.9)));
        assert!(row.p50_ms.is_some_and(|p50| (0.5..0.6).contains(&p50)), "{row:?}");
        assert!(row.p99_ms.is_some_and(|p99| (4.0..5.0).contains(&p99)), "{row:?}");
        assert!(counted(&args(By::Workload, None), &now, &then).contains_key(&("shop/web-v1".to_owned(), None)));
        let edge = ("shop/web".to_owned(), Some("shop/page".to_owned()));
        assert!(counted(&args(By::Edge, Some("shop")), &now, &then).contains_key(&edge));
        assert!(counted(&args(By::Service, Some("other")), &now, &then).is_empty());
        assert!(counted(&args(By::Service, None), &now, &now).is_empty(), "nothing grew");
        let anew = counted(&args(By::Service, None), &page(3, 0), &now);
        assert_eq!(anew[&("shop/web".to_owned(), None)].requests, 3.0, "started anew");
    }

    fn row_of(page: &str) -> Row {
        let now = exposition::samples(page);
        let mut all = counted(&args(By::Service, None), &now, &[]);
        all.remove(&("shop/web".to_owned(), None)).unwrap().row("shop/web".to_owned(), None, 1.0)
    }

    #[test]
    fn who_is_denied_is_neither_a_success_nor_a_failure() {
        let line = |code: &str, grpc: &str, count: u32| {
            format!(
                "istio_requests_total{{reporter=\"waypoint\",{LABELS},response_code=\"{code}\",grpc_response_status=\"{grpc}\"}} {count}\n"
            )
        };
        let row = row_of(&line("403", "", 10));
        assert_eq!((row.requests, row.success, row.denied), (10.0, None, 10.0));
        let cells = &table(std::slice::from_ref(&row), By::Service)[1];
        assert_eq!(cells[..4], ["shop/web", "10.0", "-", "10.0"]);
        let all = [
            ("200", "", 6),
            ("404", "", 1),
            ("200", "0", 1),
            ("401", "", 2),
            ("200", "7", 3),
            ("200", "5", 2),
            ("500", "", 1),
            ("200", "13", 1),
            ("0", "", 2),
        ];
        let page: String = all.iter().map(|(code, grpc, count)| line(code, grpc, *count)).collect();
        let row = row_of(&page);
        assert_eq!((row.requests, row.denied), (19.0, 5.0));
        assert!(row.success.is_some_and(|share| (share - 10.0 / 14.0).abs() < 1e-9), "{row:?}");
    }

    #[test]
    fn what_probes_open_is_no_traffic_of_a_service() {
        let opened = |source: &str, security: &str, count: u32| {
            let labels = LABELS.replace("source_workload=\"page\"", &format!("source_workload=\"{source}\""));
            format!(
                "istio_tcp_connections_opened_total{{reporter=\"destination\",{labels},connection_security_policy=\"{security}\"}} {count}\n"
            )
        };
        let page =
            opened("unknown", "unknown", 5) + &opened("unknown", "mutual_tls", 1) + &opened("page", "unknown", 2);
        let row = row_of(&page);
        assert_eq!((row.connections, row.outside_connections, row.weight()), (3.0, 5.0, 3.0));
        assert!(row_of(&opened("unknown", "unknown", 5)).is_busy());
    }

    #[test]
    fn amounts_read_well() {
        assert_eq!(
            (bytes(0.0), bytes(1536.0), bytes(5e9)),
            ("0.0B".to_owned(), "1.5KiB".to_owned(), "4.7GiB".to_owned())
        );
    }
}
