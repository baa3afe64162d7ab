//! The `stillmesh` command: the parts of a mesh as subcommands of one executable.
//!
//! [`args`] is what can be typed; [`main`] carries it out. The one-machine mesh is [`machine`].

mod analyze;
pub mod args;
mod bench;
mod blocked;
mod bug_report;
mod capture;
mod cluster;
pub mod cluster_dns;
mod demo;
mod driver;
mod echo;
mod fill;
mod flows;
pub mod machine;
mod offline;
mod output;
mod policy;
mod proxy_config;
mod proxy_status;
mod shop;
mod simulate;
mod steer;
mod top;
mod why;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use clap_complete::Shell;
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::{drain, telemetry};

use args::{Cli, Command, Internal, ProxyKind};
use cluster::install::Mode;
use machine::pods::{container, sandbox};
use machine::{bootstrap, commands, precheck, runner};

/// How long open requests may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Reads the command line and carries it out. An error is printed with its causes; the exit code is then 1.
pub fn main() -> ExitCode {
    let reader = Reader::process();
    if stillmesh_cni::chained::is_called(std::env::args_os(), &reader) {
        return stillmesh_cni::chained::main(&reader);
    }
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            output::note(&format!("stillmesh: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn internal(step: Internal) -> anyhow::Result<ExitCode> {
    match step {
        Internal::Enter { spec, .. } => bootstrap::enter(&bootstrap::specification(spec)?),
        Internal::MachineInit { spec, .. } => bootstrap::machine_init(&bootstrap::specification(spec)?),
        Internal::Runner { spec, .. } => runner::main(&bootstrap::specification(spec)?),
        Internal::Capture { spec, .. } => capture::in_namespace(&bootstrap::specification(spec)?),
        Internal::Sandbox { spec, .. } => sandbox::hold(&bootstrap::specification(spec)?),
        Internal::Container { spec, .. } => container::enter(&bootstrap::specification(spec)?),
        Internal::Init { spec, .. } => container::init_step(&bootstrap::specification(spec)?),
        Internal::Run { spec, .. } => container::become_program(&bootstrap::specification(spec)?),
        Internal::Probe { what } => precheck::probe(&what),
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Ztunnel | Command::Proxy { kind: ProxyKind::Ztunnel } => stillmesh_ztunnel::main()?,
        Command::Proxy { kind: ProxyKind::Waypoint } => stillmesh_waypoint::main()?,
        Command::Controller { flags } => stillmesh_controller::main(flags)?,
        Command::Agent => agent()?,
        Command::ClusterDns => cluster_dns()?,
        Command::Echo(echo) => return echo::run(&echo),
        Command::Precheck(args) => return precheck::command(args.json),
        Command::Internal(step) => return internal(step),
        Command::Demo(demo) => demo.run()?,
        Command::Bench(bench) => return bench.run(),
        Command::BenchLoad(load) => load.run()?,
        Command::Shop(shop) => runtime()?.block_on(shop.run())?,
        Command::Up(args) => return bootstrap::up(&args),
        Command::Down(target) => return runtime()?.block_on(commands::down(&target)),
        Command::Status(args) => return runtime()?.block_on(status(&args)),
        Command::Get(args) => return runtime()?.block_on(commands::get(&args)),
        Command::Exec(args) => return runtime()?.block_on(commands::exec(&args)),
        Command::Logs(args) => return runtime()?.block_on(commands::logs(&args)),
        Command::Install(args) => return runtime()?.block_on(cluster::install::run(&args, Mode::Install)),
        Command::Upgrade(args) => return runtime()?.block_on(cluster::install::run(&args, Mode::Upgrade)),
        Command::Uninstall(args) => return runtime()?.block_on(cluster::uninstall::run(&args)),
        Command::Check(args) => return runtime()?.block_on(cluster::check::run(&args)),
        Command::Version(args) => return runtime()?.block_on(cluster::version::run(&args)),
        Command::Manifest(args) => return cluster::install::manifest(&args),
        Command::Waypoint(args) => return runtime()?.block_on(cluster::waypoint::run(&args)),
        Command::Zc(args) => return runtime()?.block_on(cluster::zc::run(&args)),
        Command::ProxyConfig(args) => return runtime()?.block_on(proxy_config::run(&args)),
        Command::ProxyStatus(args) => return runtime()?.block_on(proxy_status::run(&args)),
        Command::BugReport(args) => return runtime()?.block_on(bug_report::run(&args)),
        Command::Completion { shell } => completion(shell),
        Command::Bypass(args) => return runtime()?.block_on(steer::bypass(&args)),
        Command::Quarantine(args) => return runtime()?.block_on(steer::quarantine(&args)),
        Command::Tap(args) => return runtime()?.block_on(why::tap::run(&args)),
        Command::Top(args) => return runtime()?.block_on(top::run(&args)),
        Command::Flows(args) => return runtime()?.block_on(flows::run(&args)),
        Command::Policy(policy) => return Ok(runtime()?.block_on(policy::run(&policy))),
        Command::Analyze(args) => return Ok(runtime()?.block_on(analyze::run(&args))),
        Command::Simulate(args) => return Ok(runtime()?.block_on(simulate::run(&args))),
        Command::Why(args) => return runtime()?.block_on(why::run(&args)),
        Command::Capture(args) => return runtime()?.block_on(commands::capture(&args)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Of the mesh on this machine that is named or runs, else of the cluster; which one is said.
async fn status(args: &args::Status) -> anyhow::Result<ExitCode> {
    let running = machine::control::running();
    let here = args.name.is_some() || args.wait.is_some() || !running.is_empty();
    if here && !args.access.chosen() {
        return commands::status(args).await;
    }
    let of_cluster = cluster::status::run(&args.access, &args.mesh.mesh_namespace, args.json).await;
    if args.access.chosen() {
        return of_cluster;
    }
    of_cluster.context("no mesh runs on this machine (`stillmesh up DIR` starts one), and of a cluster")
}

/// What a shell completes by.
fn completion(shell: Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "stillmesh", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end());
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime does not start")
}

fn agent() -> anyhow::Result<()> {
    telemetry::init("agent")?;
    let config = stillmesh_cni::Config::from_env(Reader::process())?;
    runtime()?.block_on(drain::until_signalled(config.grace, |watch| stillmesh_cni::run(config, watch)))
}

fn cluster_dns() -> anyhow::Result<()> {
    telemetry::init("cluster-dns")?;
    let config = cluster_dns::Config::from_env(Reader::process())?;
    runtime()?.block_on(drain::until_signalled(GRACE, |watch| cluster_dns::run(config, watch)))
}
