//! Keeps one container of a pod running: start, probes, end, restart with back-off.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use stillmesh_runtime::Backoff;
use stillmesh_runtime::env::Reader;
use stillmesh_runtime::tasks::Task;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::container::{ContainerSpec, Running, Stdio3};
use super::env::{EnvError, variables};
use super::log::Log;
use super::lookup::PodLookup;
use super::plan::{ContainerPlan, Program, Restart};
use super::probe::{Action, ProbePlan, Schedule, Standing};
use super::status::{ContainerRecord, Doing, Phase};
use super::worker::{Worker, now};
use crate::machine::node_http;

/// Waits between restarts: the first and the longest. The very first restart is at once.
const CRASHED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// The same for parts of the mesh itself.
const CRASHED_SYSTEM: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A container that ran this long has a clean record.
const CALM: Duration = Duration::from_secs(600);
/// What is left of a grace period when the whole machine ends.
const LAST_GRACE: Duration = Duration::from_secs(2);
/// What a container gets after its signal when its hook has used up the grace period.
const HOOK_EXTRA: Duration = Duration::from_secs(2);
/// How long the last output of a container that has ended is waited for.
const DRAIN: Duration = Duration::from_secs(1);

/// When a probe is first tried after a start.
const FIRST_TRY: Duration = Duration::from_millis(50);

/// Why a container that runs is to end.
enum End {
    /// It did by itself.
    Itself(u8),
    /// A probe says so.
    Probe(&'static str),
    /// The pod ends.
    Told,
}

/// How a container ran.
struct Ran {
    code: u8,
    length: Duration,
    /// The probe that ended it.
    probe: Option<&'static str>,
}

impl Worker {
    /// Runs a container until it has ended for good; its exit code, or `None` where it was told to end before it ran.
    pub(super) async fn keep(
        &self,
        index: usize,
        plan: &ContainerPlan,
        sandbox: u32,
        stop: &CancellationToken,
    ) -> Option<u8> {
        let record = self.status.lock().containers.get(index).cloned()?;
        // It may have done its work in namespaces that were lost since.
        if let Doing::Ended { code, .. } = record.doing
            && self.is_main(index)
            && !self.runs_again(index, plan, code)
        {
            return Some(code);
        }
        record.log.set_ended(false);
        let code = self.keep_running(index, plan, sandbox, stop).await;
        record.log.set_ended(true);
        code
    }

    /// Whether a container that ended with this code is started again.
    fn runs_again(&self, index: usize, plan: &ContainerPlan, code: u8) -> bool {
        match self.pod.plan.restart {
            _ if plan.sidecar => true,
            // Init containers are repeated after a failure only.
            Restart::Always => code != 0 || self.is_main(index),
            Restart::OnFailure => code != 0,
            Restart::Never => false,
        }
    }

    async fn keep_running(
        &self,
        index: usize,
        plan: &ContainerPlan,
        sandbox: u32,
        stop: &CancellationToken,
    ) -> Option<u8> {
        let (first, longest) = if self.pod.system { CRASHED_SYSTEM } else { CRASHED };
        let mut backoff = Backoff::new(first, longest);
        let mut code = None;
        loop {
            if stop.is_cancelled() {
                return code;
            }
            match self.run_once(index, plan, sandbox, stop).await {
                Ok(Ran { code: ended, length, probe }) => {
                    code = Some(ended);
                    if length > CALM {
                        backoff.reset();
                    }
                    let doing = Doing::Ended { code: ended, at: now(), probe };
                    self.record(index, |one| {
                        one.ready = false;
                        one.started = false;
                        one.pid = None;
                        one.doing = doing.clone();
                    });
                    if !self.runs_again(index, plan, ended) || stop.is_cancelled() {
                        return code;
                    }
                    self.record(index, |one| {
                        one.last = Some(doing);
                        one.restarts += 1;
                    });
                    if backoff.tries() > 0 || self.restarted_before(index) {
                        let after = probe.map(|probe| format!(" after its {probe} probe failed")).unwrap_or_default();
                        self.record(index, |one| {
                            let message = format!("ended with exit code {ended}{after}; started again after a while");
                            one.doing = Doing::Waiting { reason: "CrashLoopBackOff", message };
                        });
                        let wait = tokio::time::sleep(backoff.next(rand::random()));
                        stop.run_until_cancelled(wait).await;
                    }
                }
                Err(error) => {
                    let reason =
                        if error.is::<EnvError>() { "CreateContainerConfigError" } else { "RunContainerError" };
                    let message = format!("{error:#}");
                    self.record(index, |one| one.doing = Doing::Waiting { reason, message });
                    tokio::select! {
                        () = stop.cancelled() => return code,
                        () = self.machine.admitted.notified() => {}
                        () = tokio::time::sleep(backoff.next(rand::random())) => {}
                    }
                }
            }
        }
    }

    fn is_main(&self, index: usize) -> bool {
        index >= self.pod.plan.init.len()
    }

    fn restarted_before(&self, index: usize) -> bool {
        self.status.lock().containers.get(index).is_some_and(|one| one.restarts > 1)
    }

    fn record(&self, index: usize, change: impl FnOnce(&mut ContainerRecord)) {
        self.change(|status| {
            if let Some(one) = status.containers.get_mut(index) {
                change(one);
            }
        });
    }

    /// Starts it, and returns how that went.
    async fn run_once(
        &self,
        index: usize,
        plan: &ContainerPlan,
        sandbox: u32,
        stop: &CancellationToken,
    ) -> anyhow::Result<Ran> {
        let spec = self.spec(plan, sandbox)?;
        let log = self.status.lock().containers.get(index).map(|one| one.log.clone()).context("no such container")?;
        let (stdio, mut drained) = outputs(&self.machine.tasks, log)?;
        let mut running = Running::start(&spec, stdio).await?;
        let began = Instant::now();
        let (pid, since) = (running.pid(), now());
        let no_startup = plan.startup.is_none();
        self.change(|status| {
            if let Some(one) = status.containers.get_mut(index) {
                one.doing = Doing::Running { since };
                one.pid = Some(pid);
                one.env.clone_from(&spec.env);
                one.started = no_startup;
                one.ready = no_startup && plan.readiness.is_none();
            }
            // The phase counts from the moment all have been started once.
            let waiting =
                |one: &ContainerRecord| matches!(one.doing, Doing::Waiting { .. }) && one.restarts == 0 && !one.init;
            if !status.containers.iter().any(waiting) {
                status.phase = Phase::Running;
            }
        });
        let end = tokio::select! {
            code = running.ended() => End::Itself(code),
            probe = self.probes(index, plan, pid) => End::Probe(probe),
            () = stop.cancelled() => End::Told,
        };
        let over = Instant::now() + self.pod.plan.grace;
        let mut probe = None;
        let code = match end {
            End::Itself(code) => code,
            End::Probe(which) => {
                probe = Some(which);
                self.change(|status| status.message = format!("container {} failed its {which} probe", plan.name));
                self.end(&mut running, plan, spec.env, over).await
            }
            End::Told => {
                self.record(index, |one| one.ready = false);
                let over = *self.told.get_or_init(|| over);
                self.end(&mut running, plan, spec.env, over).await
            }
        };
        let length = began.elapsed();
        // What it printed last belongs to its log before anybody hears that it has ended.
        let _ = tokio::time::timeout(DRAIN, drained.join()).await;
        Ok(Ran { code, length, probe })
    }

    /// Hook, signal, grace, kill.
    async fn end(
        &self,
        running: &mut Running,
        plan: &ContainerPlan,
        env: Vec<(String, String)>,
        mut over: Instant,
    ) -> u8 {
        if let Some(hook) = &plan.pre_stop {
            let spec = beside(running.pid(), plan, hook.clone(), env, self.pod.system);
            tokio::select! {
                _ = run_beside(&spec) => {}
                code = running.ended() => return code,
                () = self.patience(over) => over = Instant::now() + HOOK_EXTRA,
            }
        }
        running.signal(Signal::SIGTERM);
        tokio::select! {
            code = running.ended() => return code,
            () = self.patience(over) => {}
        }
        running.signal(Signal::SIGKILL);
        running.ended().await
    }

    /// Waits to the end of a grace period, or of what is left of it when the machine ends.
    async fn patience(&self, over: Instant) {
        tokio::select! {
            () = tokio::time::sleep_until(over) => {}
            () = async { self.machine.ending.cancelled().await; tokio::time::sleep(LAST_GRACE).await } => {}
        }
    }

    fn spec(&self, plan: &ContainerPlan, sandbox: u32) -> Result<ContainerSpec, EnvError> {
        let of_host = Reader::process();
        let inherited = |name: &str| of_host.string(name).map(|value| (name.to_owned(), value));
        let mut base: Vec<_> = ["PATH", "HOME", "LANG", "TZ"].into_iter().filter_map(inherited).collect();
        base.push(("HOSTNAME".to_owned(), self.pod.plan.hostname.clone()));
        let vars = variables(&plan.written, &base, &PodLookup(self))?;
        let (argv, own) = match &plan.program {
            Program::Argv(argv) => (argv.iter().map(|text| vars.expand(text)).collect(), Vec::new()),
            Program::Own(own) => (Vec::new(), own.iter().map(|text| vars.expand(text)).collect()),
        };
        let directory = directory(plan);
        Ok(ContainerSpec {
            enter: sandbox,
            join: false,
            directory,
            argv,
            own,
            env: vars.into_entries(),
            privileged: self.pod.system,
        })
    }

    /// Runs the container's probes. Returns only when one of them says that it has to end: which.
    async fn probes(&self, index: usize, plan: &ContainerPlan, pid: u32) -> &'static str {
        if let Some(startup) = &plan.startup {
            let good = self.probe_until(startup, plan, pid, index, Some).await;
            if !good {
                return "startup";
            }
            self.record(index, |one| {
                one.started = true;
                one.ready = plan.readiness.is_none();
            });
        }
        let readiness = async {
            match &plan.readiness {
                None => std::future::pending().await,
                Some(readiness) => {
                    self.probe_until(readiness, plan, pid, index, |good| {
                        self.record(index, |one| one.ready = good);
                        None::<()>
                    })
                    .await;
                }
            }
        };
        let liveness = async {
            match &plan.liveness {
                None => std::future::pending().await,
                Some(liveness) => {
                    self.probe_until(liveness, plan, pid, index, |good| (!good).then_some(())).await;
                }
            }
        };
        tokio::select! {
            () = readiness => "readiness",
            () = liveness => "liveness",
        }
    }

    /// Probes on schedule until `judge` has an answer to a change of standing.
    async fn probe_until<T>(
        &self,
        probe: &ProbePlan,
        plan: &ContainerPlan,
        pid: u32,
        index: usize,
        judge: impl Fn(bool) -> Option<T>,
    ) -> T {
        let Schedule { initial_delay, period, .. } = probe.schedule;
        tokio::time::sleep(initial_delay).await;
        let mut standing = Standing::default();
        // Between the scheduled tries, more of them look for the first success, so that nobody waits a whole period for
        // a program that has just been started; only the scheduled ones count as failures.
        let mut quick = Some(FIRST_TRY);
        let mut scheduled = Instant::now() + period;
        loop {
            let now = Instant::now();
            let left = scheduled.saturating_duration_since(now);
            tokio::time::sleep(quick.map_or(left, |quick| quick.min(left))).await;
            let good = self.probe(probe, plan, pid, index).await;
            let counts = Instant::now() >= scheduled;
            if counts {
                scheduled = Instant::now() + period;
            }
            quick = if good { None } else { quick.map(|quick| quick * 2) };
            if (good || counts)
                && let Some(changed) = standing.observe(good, &probe.schedule)
                && let Some(answer) = judge(changed)
            {
                return answer;
            }
        }
    }

    async fn probe(&self, probe: &ProbePlan, plan: &ContainerPlan, pid: u32, index: usize) -> bool {
        let within = tokio::time::timeout(probe.schedule.timeout, async {
            match &probe.action {
                Action::Http { port, path, host, headers } => {
                    let target = self.probe_target(*port)?;
                    let host = host.clone().unwrap_or_else(|| target.to_string());
                    let stream = node_http::connect(self.node()?, target, self.pod.addresses.is_some()).await?;
                    let status = node_http::status(stream, &host, path, headers).await?;
                    anyhow::ensure!((200..400).contains(&status), "status {status}");
                }
                Action::Tcp { port } => {
                    let target = self.probe_target(*port)?;
                    node_http::connect(self.node()?, target, self.pod.addresses.is_some()).await?;
                }
                Action::Exec { argv } => {
                    let env = self.status.lock().containers.get(index).map(|one| one.env.clone()).unwrap_or_default();
                    let code = run_beside(&beside(pid, plan, argv.clone(), env, self.pod.system)).await?;
                    anyhow::ensure!(code == 0, "exit code {code}");
                }
            }
            anyhow::Ok(())
        });
        matches!(within.await, Ok(Ok(())))
    }

    fn node(&self) -> anyhow::Result<&crate::machine::network::Node> {
        self.machine.nodes.get(self.pod.node).context("no such node")
    }

    fn probe_target(&self, port: u16) -> anyhow::Result<std::net::SocketAddr> {
        let ip = self.pod.ips(self.node()?).first().context("the pod has no address")?.parse()?;
        Ok(std::net::SocketAddr::new(ip, port))
    }
}

/// Where the container's programs start.
fn directory(plan: &ContainerPlan) -> Option<String> {
    Some(plan.written.working_dir.clone().unwrap_or_else(|| "/".to_owned()))
}

/// A command beside a container.
fn beside(
    pid: u32,
    plan: &ContainerPlan,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    privileged: bool,
) -> ContainerSpec {
    ContainerSpec { enter: pid, join: true, directory: directory(plan), argv, own: Vec::new(), env, privileged }
}

/// Runs a command beside a container to its end; its exit code.
async fn run_beside(spec: &ContainerSpec) -> anyhow::Result<u8> {
    let stdio = Stdio3 { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() };
    Ok(Running::start(spec, stdio).await?.ended().await)
}

/// Both outputs into the container's log, by a task that ends with the last of its writers.
fn outputs(tasks: &stillmesh_runtime::tasks::Tasks, log: Log) -> anyhow::Result<(Stdio3, Task<()>)> {
    let (sender, mut receiver) = pipe::pipe().context("making a pipe for the container's output")?;
    let out = sender.into_blocking_fd()?;
    let err = out.try_clone()?;
    let task = tasks.spawn("log", async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = receiver.read(&mut buffer).await {
            log.write(buffer.get(..count).unwrap_or_default());
        }
    });
    Ok((Stdio3 { stdin: Stdio::null(), stdout: out.into(), stderr: err.into() }, task))
}
