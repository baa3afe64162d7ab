//! How a pod is, and how that is written in its status as Kubernetes has it. Pure but for the time passed in.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::log::Log;

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Not running; the reason is one of Kubernetes' words.
    Waiting {
        /// For example `CrashLoopBackOff`.
        reason: &'static str,
        /// More about it.
        message: String,
    },
    /// Running since then.
    Running {
        /// Start.
        since: Time,
    },
    /// Ended, and will not be started again.
    Ended {
        /// Exit code.
        code: u8,
        /// End.
        at: Time,
        /// The probe that asked for it.
        probe: Option<&'static str>,
    },
}

impl Doing {
    /// Before the first start.
    fn first(init: bool) -> Self {
        let reason = if init { "PodInitializing" } else { "ContainerCreating" };
        Self::Waiting { reason, message: String::new() }
    }
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct ContainerRecord {
    /// Its name.
    pub name: String,
    /// As written.
    pub image: String,
    /// Among the init containers.
    pub init: bool,
    /// Stays while the others run.
    pub sidecar: bool,
    /// What it is doing.
    pub doing: Doing,
    /// Takes traffic.
    pub ready: bool,
    /// Its startup probe, if any, has succeeded.
    pub started: bool,
    /// How often it was started again.
    pub restarts: i32,
    /// How it ended the last time.
    pub last: Option<Doing>,
    /// Its first process, while running.
    pub pid: Option<u32>,
    /// Its environment, since it was first started.
    pub env: Vec<(String, String)>,
    /// What it prints.
    pub log: Log,
}

impl ContainerRecord {
    /// Before its first start.
    pub fn new(name: &str, image: &str, init: bool, sidecar: bool, log: Log) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            init,
            sidecar,
            doing: Doing::first(init),
            ready: false,
            started: false,
            restarts: 0,
            last: None,
            pid: None,
            env: Vec::new(),
            log,
        }
    }

    fn status(&self) -> ContainerStatus {
        ContainerStatus {
            name: self.name.clone(),
            image: self.image.clone(),
            ready: self.ready,
            started: Some(self.started),
            restart_count: self.restarts,
            state: Some(state(&self.doing)),
            last_state: self.last.as_ref().map(state),
            ..ContainerStatus::default()
        }
    }
}

fn state(doing: &Doing) -> ContainerState {
    match doing {
        Doing::Waiting { reason, message } => ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some((*reason).to_owned()),
                message: Some(message.clone()).filter(|text| !text.is_empty()),
            }),
            ..ContainerState::default()
        },
        Doing::Running { since } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(since.clone()) }),
            ..ContainerState::default()
        },
        Doing::Ended { code, at, probe } => ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: i32::from(*code),
                finished_at: Some(at.clone()),
                message: probe.map(|probe| format!("its {probe} probe failed")),
                reason: Some(if *code == 0 { "Completed" } else { "Error" }.to_owned()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        },
    }
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all of its containers have been started.
    Pending,
    /// They have.
    Running,
    /// All ended well and stay so.
    Succeeded,
    /// One ended badly and stays so.
    Failed,
}

impl Phase {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// How a pod is.
#[derive(Clone, Debug)]
pub struct PodRecordStatus {
    /// How far it is.
    pub phase: Phase,
    /// Its containers, init containers first.
    pub containers: Vec<ContainerRecord>,
    /// Its init containers have done their work.
    pub initialized: bool,
    /// Its network is there.
    pub networked: bool,
    /// Why it does not come up, where there is something to say.
    pub message: String,
    /// When it was made.
    pub since: Time,
    /// When its readiness last changed, and to what.
    pub ready: (bool, Time),
}

impl PodRecordStatus {
    /// Whether every container takes traffic.
    pub fn all_ready(&self) -> bool {
        self.phase == Phase::Running
            && self.networked
            && self.containers.iter().filter(|one| !one.init || one.sidecar).all(|one| one.ready)
    }

    /// Notes a change of readiness. What was in the way is over then.
    pub fn settle(&mut self, now: &Time) {
        let ready = self.all_ready();
        if ready {
            self.message.clear();
        }
        if ready != self.ready.0 {
            self.ready = (ready, now.clone());
        }
    }

    /// The pod's namespaces are gone, and with them whatever ran. What is not to run again counts as killed.
    pub fn lost(&mut self, why: String, never_again: bool, now: &Time) {
        self.message = why;
        self.networked = false;
        self.initialized = false;
        for one in &mut self.containers {
            if let Doing::Running { .. } = one.doing {
                let killed = Doing::Ended { code: 137, at: now.clone(), probe: None };
                one.last = Some(killed.clone());
                if never_again && !one.init {
                    one.doing = killed;
                } else {
                    one.restarts += 1;
                    one.doing = Doing::first(one.init);
                }
            }
            (one.ready, one.started, one.pid) = (false, false, None);
        }
    }

    /// As Kubernetes writes it. `addresses` are the pod's, `host` the node's.
    pub fn write(&self, addresses: &[String], host: &[String]) -> PodStatus {
        let (init, main): (Vec<_>, Vec<_>) = self.containers.iter().partition(|one| one.init);
        let statuses = |list: Vec<&ContainerRecord>| {
            Some(list.into_iter().map(ContainerRecord::status).collect::<Vec<_>>()).filter(|list| !list.is_empty())
        };
        let condition = |type_: &str, holds: bool, at: &Time, reason: &str| PodCondition {
            type_: type_.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            last_transition_time: Some(at.clone()),
            reason: Some(reason.to_owned()).filter(|reason| !holds && !reason.is_empty()),
            message: Some(self.message.clone()).filter(|text| !holds && !text.is_empty()),
            ..PodCondition::default()
        };
        let shown = if self.networked { addresses } else { &[] };
        PodStatus {
            phase: Some(self.phase.as_str().to_owned()),
            conditions: Some(vec![
                condition("PodScheduled", true, &self.since, ""),
                condition("Initialized", self.initialized, &self.since, "ContainersNotInitialized"),
                condition("ContainersReady", self.ready.0, &self.ready.1, "ContainersNotReady"),
                condition("Ready", self.ready.0, &self.ready.1, "ContainersNotReady"),
            ]),
            pod_ip: shown.first().cloned(),
            pod_ips: Some(shown.iter().map(|ip| PodIP { ip: ip.clone() }).collect::<Vec<_>>())
                .filter(|list| !list.is_empty()),
            host_ip: host.first().cloned(),
            host_ips: Some(host.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
            start_time: Some(self.since.clone()),
            message: Some(self.message.clone()).filter(|text| !text.is_empty()),
            init_container_statuses: statuses(init),
            container_statuses: statuses(main),
            ..PodStatus::default()
        }
    }

    /// Why it is not ready, for people.
    pub fn why(&self) -> String {
        if !self.message.is_empty() {
            return self.message.clone();
        }
        let waiting = self.containers.iter().find_map(|one| match &one.doing {
            Doing::Waiting { reason, message } if *reason != "PodInitializing" => Some((one, *reason, message)),
            _ => None,
        });
        match waiting {
            _ if self.phase == Phase::Failed => "has failed".to_owned(),
            Some((one, reason, message)) if message.is_empty() => format!("container {}: {reason}", one.name),
            Some((one, reason, message)) => format!("container {}: {reason}: {message}", one.name),
            None if !self.networked => "has no network yet".to_owned(),
            None if !self.initialized => "its init containers run".to_owned(),
            None => "its readiness probes have not succeeded".to_owned(),
        }
    }

    /// Whether something is wrong with it, beyond being on its way.
    pub fn in_trouble(&self) -> bool {
        let bad = |one: &ContainerRecord| matches!(&one.doing, Doing::Waiting { reason, .. } if !matches!(*reason, "PodInitializing" | "ContainerCreating"));
        !self.message.is_empty() || self.phase == Phase::Failed || self.containers.iter().any(bad)
    }
}
