//! The log's levels, shown and set at the admin port as ztunnel's are (contract 9.5).

use http::StatusCode;
use stillmesh_runtime::admin::{Request, Response};
use stillmesh_runtime::telemetry::Levels;

/// The answer to `POST /logging`. `levels`: `None` where somebody else owns the log.
pub fn answer(levels: Option<&Levels>, request: &Request) -> Response {
    let Some(levels) = levels else {
        return Response::text(StatusCode::NOT_IMPLEMENTED, "the log belongs to another part of this process\n");
    };
    let asked = match request.query.first() {
        None => None,
        Some((key, value)) if key == "level" && value.is_empty() => None,
        Some((key, value)) if key == "level" => Some(value.clone()),
        Some((key, _)) if key == "reset" => Some("info".to_owned()),
        Some(_) => Some(filter(request)),
    };
    if let Some(filter) = asked
        && let Err(error) = levels.set(&filter)
    {
        let text = format!("Invalid level provided: {error}\nusage: POST /logging[?level=info | mod=lvl,… | reset]\n");
        return Response::text(StatusCode::BAD_REQUEST, text);
    }
    Response::text(StatusCode::OK, format!("current log level is {}\n", levels.current()))
}

/// `mod=lvl,mod=lvl`, as the query parser saw it.
fn filter(request: &Request) -> String {
    let part = |(key, value): &(String, String)| {
        if value.is_empty() { key.clone() } else { format!("{key}={value}") }
    };
    request.query.iter().map(part).collect::<Vec<_>>().join(",")
}
