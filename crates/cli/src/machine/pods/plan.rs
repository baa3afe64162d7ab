//! What a pod's manifest asks of this machine: checked, with everything that has no effect here named. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::Value;

use super::probe::ProbePlan;

/// The built-in image: answers with its own name, what it was sent, and by whom.
pub const ECHO_IMAGE: &str = "stillmesh/echo";
/// Image of the mesh's own pods; not accepted in manifests.
pub const SYSTEM_IMAGE: &str = "stillmesh/system";

/// A pod as this machine runs it.
#[derive(Clone, Debug)]
pub struct PodPlan {
    /// Its service account.
    pub service_account: String,
    /// The node asked for by name or by the label `kubernetes.io/hostname`.
    pub node: Option<String>,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// Host name inside.
    pub hostname: String,
    /// Further lines for `/etc/hosts`: address and names.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// When containers are started again.
    pub restart: Restart,
    /// How long containers may take to end.
    pub grace: Duration,
    /// Run one after the other before the others; sidecars among them stay.
    pub init: Vec<ContainerPlan>,
    /// Run together.
    pub containers: Vec<ContainerPlan>,
}

/// When a container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    Always,
    /// After a failure.
    OnFailure,
    /// Never.
    Never,
}

/// What a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// `command` and `args` of the manifest, not yet expanded.
    Argv(Vec<String>),
    /// This executable with these arguments.
    Own(Vec<String>),
}

/// A container as this machine runs it.
#[derive(Clone, Debug)]
pub struct ContainerPlan {
    /// Its name.
    pub name: String,
    /// What it runs.
    pub program: Program,
    /// As written: environment, working directory, ports.
    pub written: Container,
    /// Whether it is a sidecar: among the init containers, but not waited for to end.
    pub sidecar: bool,
    /// Takes traffic while good.
    pub readiness: Option<ProbePlan>,
    /// Is killed when bad.
    pub liveness: Option<ProbePlan>,
    /// The others wait until it is good.
    pub startup: Option<ProbePlan>,
    /// Run before the signal to end.
    pub pre_stop: Option<Vec<String>>,
}

/// Something about a pod that its writer has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Where, for example `spec.containers[0].image`.
    pub path: String,
    /// What.
    pub message: String,
    /// What is accepted, or what to do.
    pub hint: String,
}

/// Who wrote a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A user.
    User,
    /// The machine itself.
    System,
}

/// Reads a pod. Errors are all that keep it from running. `prefix` is where its spec is in the manifest.
pub fn plan(pod: &Pod, prefix: &str, origin: Origin) -> Result<PodPlan, Vec<Remark>> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let Some(spec) = &pod.spec else {
        return Err(vec![remark(prefix, "a pod needs a spec with containers", "")]);
    };
    let mut errors = Vec::new();
    refuse_users(spec, prefix, &mut errors);
    let restart = match spec.restart_policy.as_deref() {
        None | Some("Always") => Restart::Always,
        Some("OnFailure") => Restart::OnFailure,
        Some("Never") => Restart::Never,
        Some(other) => {
            let path = format!("{prefix}.restartPolicy");
            errors.push(remark(&path, &format!("unknown value {other:?}"), "accepted are Always, OnFailure, Never"));
            Restart::Always
        }
    };
    if spec.containers.is_empty() {
        errors.push(remark(&format!("{prefix}.containers"), "a pod needs a container", ""));
    }
    let mut read = |list: &[Container], field: &str, init: bool| -> Vec<ContainerPlan> {
        let place = |index: usize| format!("{prefix}.{field}[{index}]");
        let plans = list
            .iter()
            .enumerate()
            .map(|(index, written)| container(written, &place(index), init, origin, &mut errors));
        plans.collect()
    };
    let init = read(spec.init_containers.as_deref().unwrap_or_default(), "initContainers", true);
    let containers = read(&spec.containers, "containers", false);
    if !errors.is_empty() {
        return Err(errors);
    }
    let selector = spec.node_selector.as_ref().and_then(|labels| labels.get("kubernetes.io/hostname"));
    let aliases = spec.host_aliases.iter().flatten();
    Ok(PodPlan {
        service_account: spec
            .service_account_name
            .clone()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
        node: spec.node_name.as_ref().or(selector).cloned(),
        host_network: spec.host_network == Some(true),
        hostname: hostname(spec, &name),
        host_aliases: aliases.map(|alias| (alias.ip.clone(), alias.hostnames.clone().unwrap_or_default())).collect(),
        restart,
        grace: Duration::from_secs(
            spec.termination_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(30),
        ),
        init,
        containers,
    })
}

/// A pod's host name: what it asks for, or its own name as far as the kernel takes it.
pub fn hostname(spec: &PodSpec, name: &str) -> String {
    let wanted = spec.hostname.as_deref().filter(|wanted| !wanted.is_empty()).unwrap_or(name);
    wanted.get(..wanted.len().min(63)).unwrap_or(wanted).trim_end_matches(['-', '.']).to_owned()
}

/// Only one uid is mapped in a user namespace that an ordinary user makes: a manifest that asks for another one would
/// not get what it relies on.
fn refuse_users(spec: &PodSpec, prefix: &str, errors: &mut Vec<Remark>) {
    let mut refuse = |path: String, set: bool| {
        if set {
            errors.push(remark(
                &path,
                "programs run here as the one user who runs `up`; another uid or gid cannot be given",
                "leave it out of the manifests for `up`",
            ));
        }
    };
    if let Some(context) = &spec.security_context {
        refuse(format!("{prefix}.securityContext.runAsUser"), context.run_as_user.is_some());
        refuse(format!("{prefix}.securityContext.runAsGroup"), context.run_as_group.is_some());
        refuse(format!("{prefix}.securityContext.fsGroup"), context.fs_group.is_some());
    }
    let init = spec.init_containers.iter().flatten().enumerate().map(|(index, one)| ("initContainers", index, one));
    for (list, index, one) in
        init.chain(spec.containers.iter().enumerate().map(|(index, one)| ("containers", index, one)))
    {
        if let Some(context) = &one.security_context {
            refuse(format!("{prefix}.{list}[{index}].securityContext.runAsUser"), context.run_as_user.is_some());
            refuse(format!("{prefix}.{list}[{index}].securityContext.runAsGroup"), context.run_as_group.is_some());
        }
    }
}

fn container(written: &Container, place: &str, init: bool, origin: Origin, errors: &mut Vec<Remark>) -> ContainerPlan {
    let command = written.command.clone().unwrap_or_default();
    let args = written.args.clone().unwrap_or_default();
    let image = written.image.as_deref().unwrap_or_default();
    let bare = image.split([':', '@']).next().unwrap_or_default();
    let program = if !command.is_empty() {
        Program::Argv(command.into_iter().chain(args).collect())
    } else if bare == ECHO_IMAGE {
        Program::Own(std::iter::once("echo".to_owned()).chain(echo_arguments(written, args)).collect())
    } else if bare == SYSTEM_IMAGE && origin == Origin::System {
        Program::Own(args)
    } else {
        let message = format!("image {image:?} cannot be run: images are not pulled here");
        let hint = format!("give `command` (a program of this machine), or use the built-in image {ECHO_IMAGE}");
        errors.push(remark(&format!("{place}.image"), &message, &hint));
        Program::Argv(Vec::new())
    };
    let ports = written.ports.as_deref().unwrap_or_default();
    let mut probe = |probe: &Option<k8s_openapi::api::core::v1::Probe>, field: &str| {
        let plan = ProbePlan::read(probe.as_ref()?, ports);
        plan.map_err(|error| errors.push(remark(&format!("{place}.{field}"), &error, ""))).ok()
    };
    let readiness = probe(&written.readiness_probe, "readinessProbe");
    let liveness = probe(&written.liveness_probe, "livenessProbe");
    let startup = probe(&written.startup_probe, "startupProbe");
    let hook = written.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    ContainerPlan {
        name: written.name.clone(),
        program,
        sidecar: init && written.restart_policy.as_deref() == Some("Always"),
        readiness,
        liveness,
        startup,
        pre_stop: hook.and_then(|hook| hook.exec.as_ref()).and_then(|exec| exec.command.clone()),
        written: written.clone(),
    }
}

/// The echo server listens on the ports that its container declares, unless its arguments say otherwise.
fn echo_arguments(written: &Container, args: Vec<String>) -> Vec<String> {
    let declared: Vec<String> = written
        .ports
        .iter()
        .flatten()
        .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
        .map(|port| port.container_port.to_string())
        .collect();
    if args.is_empty() && !declared.is_empty() { vec!["--port".to_owned(), declared.join(",")] } else { args }
}

fn remark(path: &str, message: &str, hint: &str) -> Remark {
    Remark { path: path.to_owned(), message: message.to_owned(), hint: hint.to_owned() }
}

/// Fields of a pod's spec that have an effect here; `[]` stands for any place in a list, a last `*` for all below.
const USED: &[&str] = &[
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "serviceAccountName",
    "serviceAccount",
    "nodeName",
    "nodeSelector.kubernetes.io/hostname",
    "hostNetwork",
    "hostname",
    "subdomain",
    "hostAliases.*",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "securityContext.fsGroup",
    "{}.name",
    "{}.image",
    "{}.command",
    "{}.args",
    "{}.workingDir",
    "{}.env.[].name",
    "{}.env.[].value",
    "{}.env.[].valueFrom.configMapKeyRef.*",
    "{}.env.[].valueFrom.secretKeyRef.*",
    "{}.env.[].valueFrom.fieldRef.*",
    "{}.envFrom.*",
    "{}.ports.*",
    "{}.restartPolicy",
    "{}.readinessProbe.*",
    "{}.livenessProbe.*",
    "{}.startupProbe.*",
    "{}.lifecycle.preStop.exec.*",
    "{}.securityContext.runAsUser",
    "{}.securityContext.runAsGroup",
];

/// The fields of a pod's spec that have no effect here, topmost first.
pub fn ignored(spec: &PodSpec, prefix: &str) -> Vec<String> {
    let Ok(value) = serde_json::to_value(spec) else { return Vec::new() };
    let used: Vec<Vec<&str>> = USED
        .iter()
        .flat_map(|path| match path.strip_prefix("{}.") {
            Some(rest) => vec![
                ["containers", "[]"].into_iter().chain(split(rest)).collect::<Vec<_>>(),
                ["initContainers", "[]"].into_iter().chain(split(rest)).collect(),
            ],
            None => vec![split(path)],
        })
        .collect();
    let mut found = Vec::new();
    walk(&value, &used.iter().map(Vec::as_slice).collect::<Vec<_>>(), prefix, &mut found);
    found
}

/// Splits a path at dots, but for a label's name at its end.
fn split(path: &'static str) -> Vec<&'static str> {
    match path.split_once("nodeSelector.") {
        Some((_, label)) => vec!["nodeSelector", label],
        None => path.split('.').collect(),
    }
}

fn walk(value: &Value, used: &[&[&str]], place: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                let below = narrowed(used, name);
                let place = format!("{place}.{name}");
                if below.is_empty() {
                    found.push(place);
                } else if !below.iter().any(|rest| rest.is_empty() || *rest == ["*"]) {
                    walk(inner, &below, &place, found);
                }
            }
        }
        Value::Array(items) => {
            let below = narrowed(used, "[]");
            for (index, inner) in items.iter().enumerate() {
                walk(inner, &below, &format!("{place}[{index}]"), found);
            }
        }
        _ => {}
    }
}

fn narrowed<'a>(used: &[&'a [&'a str]], step: &str) -> Vec<&'a [&'a str]> {
    used.iter()
        .filter_map(|path| path.split_first().filter(|(first, _)| **first == step).map(|(_, rest)| rest))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}))
            .unwrap()
    }

    fn refused(spec: Value) -> Vec<String> {
        let errors = plan(&pod(spec), "spec", Origin::User).unwrap_err();
        errors.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_program_is_command_then_args() {
        let plan = plan(
            &pod(json!({"containers": [{"name": "c", "image": "nginx", "command": ["a"], "args": ["b", "c"]}]})),
            "spec",
            Origin::User,
        )
        .unwrap();
        assert_eq!(plan.containers[0].program, Program::Argv(vec!["a".into(), "b".into(), "c".into()]));
        assert_eq!(
            (plan.grace.as_secs(), plan.restart, plan.service_account.as_str()),
            (30, Restart::Always, "default")
        );
        assert_eq!(plan.hostname, "web");
    }

    #[test]
    fn a_host_name_is_no_longer_than_the_kernel_takes() {
        let long = format!("{}-b", "a".repeat(62));
        assert_eq!(hostname(&PodSpec::default(), &long), "a".repeat(62));
        let named = PodSpec { hostname: Some("db".to_owned()), ..PodSpec::default() };
        assert_eq!(hostname(&named, "db-2"), "db");
    }

    #[test]
    fn the_echo_image_listens_on_the_declared_ports() {
        let plan = plan(&pod(json!({"containers": [{"name": "c", "image": "stillmesh/echo:1", "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 81}]}]})), "spec", Origin::User).unwrap();
        assert_eq!(plan.containers[0].program, Program::Own(vec!["echo".into(), "--port".into(), "80,81".into()]));
    }

    #[test]
    fn an_image_without_a_command_is_refused_and_so_are_other_users() {
        assert_eq!(refused(json!({"containers": [{"name": "c", "image": "nginx"}]})), ["spec.containers[0].image"]);
        assert_eq!(
            refused(json!({"containers": [{"name": "c", "image": "stillmesh/system", "args": ["controller"]}]})),
            ["spec.containers[0].image"]
        );
        let context = json!({"runAsUser": 1000, "fsGroup": 5});
        assert_eq!(
            refused(
                json!({"securityContext": context, "containers": [{"name": "c", "command": ["x"], "securityContext": {"runAsUser": 0}}]})
            ),
            [
                "spec.securityContext.runAsUser",
                "spec.securityContext.fsGroup",
                "spec.containers[0].securityContext.runAsUser"
            ]
        );
    }

    #[test]
    fn a_bad_probe_is_refused_where_it_stands() {
        let spec =
            json!({"containers": [{"name": "c", "command": ["x"], "livenessProbe": {"httpGet": {"port": "none"}}}]});
        assert_eq!(refused(spec), ["spec.containers[0].livenessProbe"]);
    }

    #[test]
    fn fields_without_effect_are_named_once_and_topmost() {
        let spec = json!({
            "tolerations": [{"key": "a"}], "restartPolicy": "Never", "nodeSelector": {"kubernetes.io/hostname": "node1", "disk": "ssd"},
            "securityContext": {"runAsNonRoot": true},
            "containers": [{"name": "c", "image": "x", "command": ["y"], "resources": {"limits": {"cpu": "1"}}, "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
                "lifecycle": {"preStop": {"exec": {"command": ["z"]}}, "postStart": {"exec": {"command": ["z"]}}},
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        });
        let mut found = ignored(pod(spec).spec.as_ref().unwrap(), "spec");
        found.sort();
        assert_eq!(
            found,
            [
                "spec.containers[0].lifecycle.postStart",
                "spec.containers[0].resources",
                "spec.containers[0].volumeMounts",
                "spec.nodeSelector.disk",
                "spec.securityContext.runAsNonRoot",
                "spec.tolerations",
            ]
        );
    }
}
