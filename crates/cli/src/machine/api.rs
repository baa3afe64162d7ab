//! What the runner answers: to the other commands over the control socket, and to the mesh's own parts over the
//! write-back socket.
//!
//! Commands that run programs (`exec`, `capture`) take the connection over: the runner says one byte, gets the caller's
//! standard descriptors, and answers with one line of JSON ([`Ended`]). A caller that goes away ends its program.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stillmesh_k8s::{Kind, ObjectKey, parse};
use stillmesh_runtime::accept::{Peer, Stream};
use stillmesh_runtime::admin::Limits;
use stillmesh_runtime::admin::{Raw, Request, Response, Server};
use stillmesh_runtime::sys::fds;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::bootstrap::step;
use super::control::may_command;
use super::pods::container::{ContainerSpec, Running, Stdio3};
use super::pods::log::Log;
use super::pods::worker::node_home;
use super::receipts;
use super::reconcile::Reconciler;
use super::state::Machine;
use crate::capture::Capture;

/// How long a caller may take to hand over its descriptors.
const HANDOVER: Duration = Duration::from_secs(5);
/// The byte that asks for them.
pub const READY: u8 = b'+';
/// Name of the protocol in the upgrade.
pub const PROTOCOL: &str = "stillmesh-exec";

/// A command to run in a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container; the first one when absent.
    pub container: Option<String>,
    /// Command and arguments.
    pub argv: Vec<String>,
}

/// The end of an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndRequest {
    /// Who ends it.
    pub by: String,
}

/// A capture on a node's link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaptureRequest {
    /// The node.
    pub node: String,
    /// What to capture.
    pub capture: Capture,
}

/// What the capturing process gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaptureSpec {
    /// Network namespace to enter.
    pub netns: PathBuf,
    /// What to capture.
    pub capture: Capture,
}

/// How a program ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// With this exit code.
    Code(u8),
    /// It could not be run.
    Error(String),
}

/// What handlers share.
pub struct Api {
    /// The loop's state.
    pub reconciler: Arc<Mutex<Reconciler>>,
    /// The machine.
    pub machine: Arc<Machine>,
    /// Ends the machine.
    pub stop: tokio_util::sync::CancellationToken,
}

type Answer = Result<Response, Response>;

/// The server of the control socket.
pub fn control(api: &Arc<Api>) -> Server {
    let limits = Limits { connections: 1024, handler: Duration::from_secs(600), ..Limits::default() };
    let server = Server::new("control").limits(limits);
    let server = route(server, api, Method::GET, "/status", |api, _| async move {
        Ok(Response::json(StatusCode::OK, &api.reconciler.lock().await.summary()))
    });
    let server = route(server, api, Method::GET, "/objects/{kind}", |api, request| async move {
        let kind = Kind::named(request.param("kind"))
            .ok_or_else(|| refuse(StatusCode::NOT_FOUND, &format!("no kind is named {:?}", request.param("kind"))))?;
        Ok(Response::json(StatusCode::OK, &api.reconciler.lock().await.list(kind, request.query("namespace"))))
    });
    let server = route(server, api, Method::GET, "/receipts", |api, _| async move {
        let page = receipts::page(&api, "/debug/receipts").await;
        let page = page.map_err(|error| refuse(StatusCode::SERVICE_UNAVAILABLE, &format!("{error:#}")))?;
        Ok(Response::json(StatusCode::OK, &page))
    });
    let server = route(server, api, Method::GET, "/logs/{namespace}/{pod}", logs);
    let server = route(server, api, Method::POST, "/exec", exec);
    let server = route(server, api, Method::POST, "/capture", capture);
    let server = route(server, api, Method::POST, "/orders", |api, request| async move {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        let mut found = parse::documents("a command", &text);
        let placed = match (found.objects.pop(), found.findings.first()) {
            (Some(placed), None) if is_order(placed.object.kind()) => placed,
            (_, Some(finding)) => return Err(refuse(StatusCode::BAD_REQUEST, &finding.to_string())),
            _ => return Err(refuse(StatusCode::BAD_REQUEST, "no order is written there")),
        };
        let done = api.reconciler.lock().await.order(placed);
        done.map_err(|why| refuse(StatusCode::CONFLICT, &why))?;
        api.machine.changed.notify_one();
        Ok(Response::empty(StatusCode::CREATED))
    });
    let server = route(server, api, Method::POST, "/orders/{kind}/{namespace}/{name}/end", |api, request| async move {
        let (key, end) = (order_key(&request)?, request.json::<EndRequest>()?);
        let done = api.reconciler.lock().await.end_order(&key, &end.by);
        done.map_err(|why| refuse(StatusCode::CONFLICT, &why))?;
        api.machine.changed.notify_one();
        Ok(Response::empty(StatusCode::NO_CONTENT))
    });
    route(server, api, Method::POST, "/stop", |api, _| async move {
        api.stop.cancel();
        Ok(Response::empty(StatusCode::ACCEPTED))
    })
}

/// The server of the write-back socket.
pub fn write_back(api: &Arc<Api>) -> Server {
    let server = Server::new("write-back");
    let server = route(server, api, Method::PATCH, "/pods/{namespace}/{name}/annotations", |api, request| async move {
        let changes: BTreeMap<String, Option<String>> = request.json()?;
        let (namespace, name) = (request.param("namespace"), request.param("name"));
        let done = api.reconciler.lock().await.annotate(namespace, name, changes);
        done.ok_or_else(|| refuse(StatusCode::NOT_FOUND, &format!("there is no pod {namespace}/{name}")))?;
        api.machine.changed.notify_one();
        Ok(Response::empty(StatusCode::NO_CONTENT))
    });
    let server = route(server, api, Method::DELETE, "/orders/{kind}/{namespace}/{name}", |api, request| async move {
        api.reconciler.lock().await.forget_order(&order_key(&request)?);
        api.machine.changed.notify_one();
        Ok(Response::empty(StatusCode::NO_CONTENT))
    });
    route(server, api, Method::PATCH, "/status/{kind}/{namespace}/{name}", |api, request| async move {
        let status: Value = request.json()?;
        let kind = Kind::named(request.param("kind")).ok_or_else(|| refuse(StatusCode::NOT_FOUND, "no such kind"))?;
        let key = ObjectKey::new(kind, request.param("namespace"), request.param("name"));
        let done = api.reconciler.lock().await.set_status(key.clone(), status);
        done.ok_or_else(|| refuse(StatusCode::NOT_FOUND, &format!("there is no {key}")))?;
        api.machine.changed.notify_one();
        Ok(Response::empty(StatusCode::NO_CONTENT))
    })
}

fn route<F, T>(server: Server, api: &Arc<Api>, method: Method, path: &str, handler: F) -> Server
where
    F: Fn(Arc<Api>, Request) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Answer> + Send + 'static,
{
    let api = Arc::clone(api);
    server.route(method, path, move |request: Request| {
        let (api, handler) = (Arc::clone(&api), handler.clone());
        async move {
            if !matches!(request.peer, Peer::Unix { uid, .. } if may_command(uid)) {
                return refuse(StatusCode::FORBIDDEN, "only the user who started the mesh may command it");
            }
            handler(api, request).await.unwrap_or_else(|refusal| refusal)
        }
    })
}

fn is_order(kind: Kind) -> bool {
    matches!(kind, Kind::Bypass | Kind::Quarantine)
}

/// The order that a path names.
fn order_key(request: &Request) -> Result<ObjectKey, Response> {
    let kind = Kind::named(request.param("kind")).filter(|kind| is_order(*kind));
    let kind = kind.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "no such kind of order"))?;
    Ok(ObjectKey::new(kind, request.param("namespace"), request.param("name")))
}

fn refuse(status: StatusCode, why: &str) -> Response {
    Response::text(status, format!("{why}\n"))
}

/// The container of a pod that is meant: its log, its first process while it runs, its environment.
struct Meant {
    log: Log,
    pid: Option<u32>,
    env: Vec<(String, String)>,
    directory: Option<String>,
    system: bool,
}

async fn container(api: &Api, namespace: &str, pod: &str, name: Option<&str>) -> Result<Meant, Response> {
    let reconciler = api.reconciler.lock().await;
    let handle = reconciler
        .pod(namespace, pod)
        .ok_or_else(|| refuse(StatusCode::NOT_FOUND, &format!("there is no pod {pod:?} in namespace {namespace:?}")))?;
    let status = handle.status.lock();
    let plans = handle.pod.plan.init.iter().chain(&handle.pod.plan.containers);
    let found = status.containers.iter().zip(plans).find(|(one, _)| match name {
        Some(name) => one.name == name,
        None => !one.init,
    });
    let (one, plan) = found.ok_or_else(|| {
        let names: Vec<&str> = status.containers.iter().map(|one| one.name.as_str()).collect();
        let name = name.unwrap_or_default();
        let why = format!("pod {namespace}/{pod} has no container {name:?}; it has {}", names.join(", "));
        refuse(StatusCode::NOT_FOUND, &why)
    })?;
    let directory = plan.written.working_dir.clone();
    Ok(Meant { log: one.log.clone(), pid: one.pid, env: one.env.clone(), directory, system: handle.pod.system })
}

async fn logs(api: Arc<Api>, request: Request) -> Answer {
    let (namespace, pod) = (request.param("namespace"), request.param("pod"));
    let log = container(&api, namespace, pod, request.query("container")).await?.log;
    let follow = request.query("follow") == Some("true");
    let (response, chunks) = Response::stream(StatusCode::OK, "text/plain; charset=utf-8");
    api.machine.tasks.spawn("logs", async move {
        let mut more = log.watch();
        let mut place = 0;
        loop {
            let ended = more.borrow_and_update().ended;
            // A file that cannot be read ends the answer, like a reader that is gone.
            let Ok((bytes, end)) = log.read_from(place) else { return };
            let moved = end != place;
            place = end;
            if !bytes.is_empty() && chunks.send(bytes.into()).await.is_err() {
                return;
            }
            if moved {
                continue;
            }
            if !follow || ended {
                return;
            }
            tokio::select! {
                changed = more.changed() => if changed.is_err() { return },
                () = chunks.closed() => return,
            }
        }
    });
    Ok(response)
}

async fn exec(api: Arc<Api>, request: Request) -> Answer {
    let ExecRequest { namespace, pod, container: name, argv } = request.json()?;
    let meant = container(&api, &namespace, &pod, name.as_deref()).await?;
    let pid = meant.pid.ok_or_else(|| {
        refuse(StatusCode::CONFLICT, &format!("the container of pod {namespace}/{pod} does not run now"))
    })?;
    let spec = ContainerSpec {
        enter: pid,
        join: true,
        directory: Some(meant.directory.unwrap_or_else(|| "/".to_owned())),
        argv,
        own: Vec::new(),
        env: meant.env,
        privileged: meant.system,
    };
    Ok(Response::takeover(PROTOCOL, move |raw| async move {
        serve(raw, async |stdio| Running::start(&spec, stdio).await.map(Program::Container)).await;
    }))
}

async fn capture(api: Arc<Api>, request: Request) -> Answer {
    let CaptureRequest { node, capture } = request.json()?;
    let found = api.machine.nodes.iter().find(|one| one.name == node).ok_or_else(|| {
        let names: Vec<&str> = api.machine.nodes.iter().map(|node| node.name.as_str()).collect();
        refuse(StatusCode::NOT_FOUND, &format!("there is no node {node:?}; the nodes are {}", names.join(", ")))
    })?;
    let spec = CaptureSpec { netns: node_home(found).join("netns"), capture };
    Ok(Response::takeover(PROTOCOL, move |raw| async move {
        serve(raw, async |stdio: Stdio3| {
            let (mut command, _specification) = step("capture", &node, &spec)?.split();
            command.stdin(stdio.stdin).stdout(stdio.stdout).stderr(stdio.stderr).kill_on_drop(true);
            Ok(Program::Child(command.spawn().context("starting the capture")?))
        })
        .await;
    }))
}

/// A program that runs for a caller. Dropping it kills it.
enum Program {
    Container(Running),
    Child(tokio::process::Child),
}

impl Program {
    async fn ended(&mut self) -> u8 {
        match self {
            Self::Container(running) => running.ended().await,
            Self::Child(child) => {
                let code = child.wait().await.ok().and_then(|status| status.code());
                code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
            }
        }
    }
}

/// Takes the caller's descriptors, runs the program with them, answers how it ended.
async fn serve(raw: Raw, start: impl AsyncFnOnce(Stdio3) -> anyhow::Result<Program>) {
    let Stream::Unix(mut stream) = raw.stream else { return };
    // A caller that is gone needs no answer.
    let _ = answered(&mut stream, start).await;
}

async fn answered(
    stream: &mut UnixStream,
    start: impl AsyncFnOnce(Stdio3) -> anyhow::Result<Program>,
) -> anyhow::Result<()> {
    stream.write_u8(READY).await?;
    let mut byte = [0u8; 1];
    let (_, descriptors) = tokio::time::timeout(HANDOVER, fds::recv(stream, &mut byte)).await??;
    let three: [OwnedFd; 3] = descriptors
        .try_into()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "three descriptors are needed"))?;
    let ended = match start(Stdio3::from(three)).await {
        Ok(mut program) => {
            let mut rest = [0u8; 1];
            tokio::select! {
                code = program.ended() => Ended::Code(code),
                // Nothing more is ever sent: the caller is gone.
                _ = stream.read(&mut rest) => return Ok(()),
            }
        }
        Err(error) => Ended::Error(format!("{error:#}")),
    };
    let mut line = serde_json::to_vec(&ended)?;
    line.push(b'\n');
    Ok(stream.write_all(&line).await?)
}
