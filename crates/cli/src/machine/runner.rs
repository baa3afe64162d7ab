//! The runner: process 2 of a machine. API server, scheduler, kubelet, primary CNI and kube-proxy of one machine, as a
//! single loop over `Reconciler`.
//!
//! It runs on one thread: its children ask to be killed when the thread that made them ends.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use stillmesh_netlink::nft::Batch;
use stillmesh_objects::Source;
use stillmesh_objects::directory::{DirectorySource, Options};
use stillmesh_runtime::admin::Server;
use stillmesh_runtime::sys::unix;
use stillmesh_runtime::{Backoff, drain, telemetry};
use tokio::net::UnixListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::api::{self, Api};
use super::bootstrap::{MachineSpec, ROOT, take_listener, until_told};
use super::network::{self, Node};
use super::pods::worker::node_home;
use super::reconcile::{LAST, Reconciler};
use super::report::Reporter;
use super::state::Machine;
use super::{init, proxy, receipts};

/// How often the controller is asked for what it has to say.
const ASK: Duration = Duration::from_millis(500);
/// First and longest wait after a pass that could not do everything.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Runs a machine to its end.
pub fn main(spec: &MachineSpec) -> anyhow::Result<ExitCode> {
    init::unblock_signals();
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    telemetry::init("up")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(spec))?;
    Ok(ExitCode::SUCCESS)
}

async fn run(spec: &MachineSpec) -> anyhow::Result<()> {
    let (listener, lifeline) = take_listener().await?;
    let mut source = DirectorySource::open(&spec.dir, Options::default())
        .with_context(|| format!("reading the manifests in {}", spec.dir.display()))?;
    let machine = Machine::new(prepare(spec.nodes).await?);
    let reporter = Reporter::new(&spec.name, spec.quiet);
    let reconciler = Reconciler::new(Arc::clone(&machine), reporter, &spec.secret_ttl, spec.ztunnel.as_ref())?;
    let api = Arc::new(Api {
        reconciler: Arc::new(Mutex::new(reconciler)),
        machine: Arc::clone(&machine),
        stop: CancellationToken::new(),
    });
    listener.set_nonblocking(true)?;
    let (_trigger, watch) = drain::channel();
    let serve = |server: Server, listener: UnixListener| server.serve(listener, watch.clone());
    machine.tasks.spawn("control", serve(api::control(&api), UnixListener::from_std(listener)?));
    let socket = unix::listen(&Path::new(ROOT).join("api.sock"), 0o600).context("listening for write-back")?;
    machine.tasks.spawn("write-back", serve(api::write_back(&api), UnixListener::from_std(socket)?));
    machine.tasks.spawn("findings", ask_controller(Arc::clone(&api)));
    let stop = api.stop.clone();
    machine.tasks.spawn("lifeline", async move {
        until_told(lifeline).await;
        stop.cancel();
    });
    // A pass that fails is no reason to end what runs: it is said once, and tried again.
    let mut retry = Backoff::new(RETRY.0, RETRY.1);
    let mut again = None;
    loop {
        tokio::select! {
            () = api.stop.cancelled() => break,
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            update = source.next() => {
                let update = update.context("the directory of manifests cannot be read any more")?;
                api.reconciler.lock().await.take(update);
            }
            () = machine.changed.notified() => {}
        }
        let done = api.reconciler.lock().await.pass().await;
        again = (!done).then(|| retry.next(rand::random()));
        if done {
            retry.reset();
        }
    }
    machine.ending.cancel();
    api.reconciler.lock().await.end_all();
    // What has not ended by then is killed with the process namespace.
    let deadline = tokio::time::sleep(LAST);
    tokio::pin!(deadline);
    while !api.reconciler.lock().await.all_gone() {
        tokio::select! {
            () = machine.changed.notified() => {}
            () = &mut deadline => break,
        }
    }
    Ok(())
}

/// Nodes, their networks and directories, and their join tokens.
async fn prepare(count: u8) -> anyhow::Result<Vec<Node>> {
    let root = Path::new(ROOT);
    for name in ["nodes", "netns", "pods", "ca"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    let nodes = network::build(count, &root.join("nodes")).context("making the nodes and their networks")?;
    let mut tokens = BTreeMap::new();
    for node in &nodes {
        let home = node_home(node);
        std::fs::create_dir_all(home.join("agent"))?;
        let token = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let mut file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(home.join("token"))
            .with_context(|| format!("writing the join token of {}", node.name))?;
        std::io::Write::write_all(&mut file, token.as_bytes())?;
        tokens.insert(stillmesh_controller::token_digest(&token), node.name.clone());
        let mut batch = Batch::new();
        batch.replace_table(&proxy::base());
        let applied = node.thread.run(move || stillmesh_netlink::nft::apply(&batch)).await?;
        applied.with_context(|| format!("making the service table of {}", node.name))?;
    }
    std::fs::write(root.join("join-tokens.json"), serde_json::to_vec(&tokens)?)?;
    Ok(nodes)
}

/// Asks the controller now and then what it has to say about the objects together.
async fn ask_controller(api: Arc<Api>) {
    let mut last: Option<Vec<Value>> = None;
    loop {
        tokio::select! {
            () = api.stop.cancelled() => return,
            () = tokio::time::sleep(ASK) => {}
        }
        // A controller that is away has nothing to say for now.
        let Ok(findings) = receipts::page(&api, "/debug/findings").await else { continue };
        if last.as_ref() != Some(&findings) {
            api.reconciler.lock().await.tell(&findings);
            api.machine.changed.notify_one();
            last = Some(findings);
        }
    }
}
