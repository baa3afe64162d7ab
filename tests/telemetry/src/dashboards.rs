//! Every query of every dashboard is asked as Grafana would ask it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::mesh::{Scraped, wait_for};

/// Metrics of what this mesh has none of: nobody checks objects before they are written, nothing speaks gRPC, nothing is refused but by
/// policy. Queries about them must parse, and give nothing.
const ABSENT: [&str; 6] = [
    "galley_validation_",
    "istio_request_messages_total",
    "istio_response_messages_total",
    "pilot_total_xds_rejects",
    "stillmesh_ztunnel_refused_total",
    "istio_dns_upstream_failures_total",
];

/// How long data may take to come: many scrapes.
const SCRAPES: Duration = Duration::from_secs(15);

/// Title, query.
type Query = (String, String);

/// Asks them all.
pub fn ask(mesh: &Scraped, deploy: &Path) -> Result<()> {
    let mut files: Vec<_> = fs::read_dir(deploy.join("telemetry/dashboards"))?.collect::<Result<_, _>>()?;
    files.sort_by_key(fs::DirEntry::path);
    ensure!(files.len() == 4, "{} dashboards", files.len());
    let mut problems = Vec::new();
    for file in files {
        let (queries, problem) = queries(&serde_json::from_slice(&fs::read(file.path())?)?);
        problems.extend(problem.into_iter().map(|problem| format!("{}: {problem}", file.path().display())));
        println!("ask   {} queries of {}", queries.len(), file.file_name().display());
        for (title, query) in queries {
            let may_be_empty = ABSENT.iter().any(|absent| query.contains(absent));
            let mut asked = mesh.query(&query);
            if !may_be_empty && asked.as_ref().is_ok_and(Vec::is_empty) {
                wait_for(SCRAPES, || {
                    asked = mesh.query(&query);
                    Ok(!asked.as_ref().is_ok_and(Vec::is_empty))
                })?;
            }
            match asked {
                Err(error) => problems.push(format!("{title}: {error}")),
                Ok(series) if series.is_empty() && !may_be_empty => problems.push(format!("{title}: no data: {query}")),
                Ok(_) => {}
            }
        }
    }
    ensure!(problems.is_empty(), "dashboards:\n{}", problems.join("\n"));
    Ok(())
}

/// The queries of a dashboard as they are asked, and what is wrong with it.
fn queries(dashboard: &Value) -> (Vec<Query>, Vec<String>) {
    let (mut queries, mut problems, mut ids) = (Vec::new(), Vec::new(), BTreeSet::new());
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let variables: Vec<String> = list(&dashboard["templating"]["list"])
        .iter()
        .filter_map(|one| one["name"].as_str().map(str::to_owned))
        .collect();
    for panel in list(&dashboard["panels"]) {
        let title = panel["title"].as_str().unwrap_or_default().to_owned();
        if !ids.insert(panel["id"].as_u64()) || list(&panel["targets"]).is_empty() {
            problems.push(format!("{title}: its id is another's, or it asks nothing"));
        }
        for target in list(&panel["targets"]) {
            let mut query = target["expr"].as_str().unwrap_or_default().replace("$__rate_interval", "1m");
            for variable in &variables {
                query = query.replace(&format!("${variable}"), ".*");
            }
            if query.is_empty() || query.contains('$') {
                problems.push(format!("{title}: a variable that is not there: {query}"));
            }
            queries.push((title.clone(), query));
        }
    }
    (queries, problems)
}
