//! Clients that nobody here wrote, through a waypoint: h2load (nghttp2), httpx with its HTTP/2, and gRPC's own implementation,
//! as server too. What they check is in `clients/`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use stillmesh_core::fixtures::service_key;
use stillmesh_core::model::access::{Attachment, PathPattern, RequestAction, Wanted};
use stillmesh_core::model::http::{
    Forward, HttpRoute, PathMatch, PathRewrite, Pattern, Redirect, RedirectPort, Respond, RouteAction, RouteKey,
    RouteKind, RouteParent, RouteRule,
};
use stillmesh_core::model::{AppProtocol, StringMatch};
use stillmesh_core::snapshot::Change;
use stillmesh_waypoint_tests::routes::{forward, path, rule, to};
use stillmesh_waypoint_tests::{World, access};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::listener::{Way, listen};

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A Python that has the clients.
    #[arg(long)]
    python: PathBuf,
    /// The folder that their scripts are in.
    #[arg(long)]
    scripts: PathBuf,
    /// nghttp2's load generator.
    #[arg(long)]
    h2load: PathBuf,
}

/// How long one client may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Requests that h2load makes in each way.
const REQUESTS: usize = 2000;

/// Runs every client.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut world = World::new().await;
    let [web, calls] = ["web", "calls"].map(|name| world.workload(name));
    let web_address = world.service("web", "10.1.0.1", wire(AppProtocol::Http1), &[&web]);
    let calls_address = world.service("calls", "10.1.0.2", wire(AppProtocol::Grpc), &[&calls]);
    world.service("gone", "10.1.0.3", wire(AppProtocol::Grpc), &[]);
    let _app = world.endpoint(&web).await.app("web").await;
    let calls_tunnel = world.endpoint(&calls).await;
    let script = args.scripts.join("rpc.py");
    let _server = serve(&args.python, &script, SocketAddr::new(calls_tunnel.address, 8080)).await?;
    world.control.store.publish(changes()?);
    world.start(&[]).await;
    let client = Arc::new(world.client("page", 1));
    let web = listen(client.clone(), Way::Connect(web_address), &world.tasks).await.to_string();
    let calls = listen(client, Way::Connect(calls_address), &world.tasks).await.to_string();

    let script = |name: &str, more: &[&str]| {
        let mut command = Command::new(&args.python);
        command.arg(args.scripts.join(name)).args(more);
        command
    };
    println!("{}", said(script("web.py", &[&web])).await.context("httpx")?.trim());
    println!("{}", said(script("rpc.py", &["ask", &calls])).await.context("gRPC")?.trim());
    for (what, way) in [("HTTP/2", &["-m", "20"][..]), ("HTTP/1.1", &["--h1"])] {
        let mut command = Command::new(&args.h2load);
        command.args(["-n", &REQUESTS.to_string(), "-c", "10"]).args(way).arg(format!("http://{web}/name"));
        let text = said(command).await.context("h2load")?;
        let line = text.lines().find(|line| line.starts_with("requests:")).context("h2load's result")?;
        let all = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
        ensure!(line.contains(&all), "h2load, {what}: {line}");
        println!("h2load: {what}, {line}");
    }
    Ok(())
}

/// As numbered on the wire.
fn wire(protocol: AppProtocol) -> i32 {
    match protocol {
        AppProtocol::Grpc => 3,
        _ => 1,
    }
}

/// What a command prints; it must succeed in time.
async fn said(mut command: Command) -> anyhow::Result<String> {
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE, run).await.context("it does not end")?.context("it does not start")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// Starts gRPC's server and waits until it serves.
async fn serve(python: &Path, script: &Path, at: SocketAddr) -> anyhow::Result<Child> {
    let mut command = Command::new(python);
    command.arg(script).args(["serve", &at.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("gRPC's server does not start")?;
    let mut lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    match timeout(PATIENCE, lines.next_line()).await.context("gRPC's server is silent")?? {
        Some(_) => Ok(child),
        None => bail!("gRPC's server ended"),
    }
}

/// Routes and policies that the clients ask for.
fn changes() -> anyhow::Result<Vec<Change>> {
    let moved = Redirect {
        scheme: None,
        host: None,
        port: RedirectPort::OfRequest,
        path: Some(PathRewrite::Prefix("/name".into())),
        status: 308,
    };
    let patient =
        Forward { backends: vec![to("web", 1)], timeout: Some(Duration::from_millis(500)), ..Forward::default() };
    let web = vec![
        rule(path("/moved"), RouteAction::Redirect(moved)),
        rule(path("/own"), RouteAction::Respond(Respond { status: 200, body: "own words".into() })),
        rule(path("/wait"), RouteAction::Forward(patient)),
        rule(Vec::new(), forward(vec![to("web", 1)])),
    ];
    let mut known = path("/");
    known[0].path = Some(PathMatch::Regex(Pattern::new("/test.Echo/(Unary|Both|Up|Down|Fails|Sleeps|WasCancelled)")?));
    let calls = vec![
        rule(known, forward(vec![to("calls", 1)])),
        rule(path("/test.Echo/Down/Endpoint"), forward(vec![to("gone", 1)])),
    ];
    Ok(vec![route("web", web), route("calls", calls), denied("web", "/denied"), denied("calls", "/test.Echo/Denied")])
}

fn route(service: &str, rules: Vec<RouteRule>) -> Change {
    Change::Route(Arc::new(HttpRoute {
        key: RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: service.into() },
        parents: vec![RouteParent { service: service_key(&format!("shop/{service}")), port: None }],
        consumer: None,
        created: 0,
        streams: Vec::new(),
        rules,
    }))
}

fn denied(service: &str, path: &str) -> Change {
    let path = Wanted::Path(vec![PathPattern::Text(StringMatch::Exact(path.into()))]);
    let mut policy = access::policy(&format!("shop/{service}"), RequestAction::Deny, vec![access::of(path)]);
    policy.attached = Attachment::To(vec![service_key(&format!("shop/{service}"))]);
    access::published(policy)
}
