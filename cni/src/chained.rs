//! The CNI plugin: called by the container runtime after the pod has its network and before its first process.
//!
//! It decides by the runtime's arguments alone where the mesh must never be in the way (excluded namespaces, the
//! mesh's own), and asks the node agent for all others. While the agent cannot be asked, what is known and believed on
//! disk counts: pods of the mesh do not start, all others do. It starts for every pod of the node, so it has no client
//! of the Kubernetes API and one thread.

pub mod spec;

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;
use stillmesh_runtime::admin::client::{Answer, Client, ClientError};
use stillmesh_runtime::env::Reader;
use tokio::time::{Instant, sleep};

use crate::config::PLUGIN_SOCKET;
use crate::install::conflist::PLUGIN;
use crate::known::{self, Because};
use crate::plugin::{DEADLINE, Event};
use spec::{Code, Command, Configuration, Failure, PodArgs};

/// The largest configuration that is read.
const INPUT_BYTES: u64 = 4 << 20;
const ANSWER_BYTES: usize = 64 * 1024;
/// How long a pod of the mesh waits for an agent that is being replaced; the kubelet tries again after that.
const PATIENCE: Duration = Duration::from_secs(3);
const TRY_EVERY: Duration = Duration::from_millis(100);

/// Whether this process was started as the plugin: under its name, or with `CNI_COMMAND` and no arguments.
pub fn is_called(mut arguments: impl Iterator<Item = std::ffi::OsString>, reader: &Reader) -> bool {
    let program = arguments.next().map(PathBuf::from).unwrap_or_default();
    program.file_name().is_some_and(|name| name == PLUGIN)
        || arguments.next().is_none() && reader.string("CNI_COMMAND").is_some()
}

/// Does what the environment asks and answers on standard output.
pub fn main(reader: &Reader) -> ExitCode {
    let mut input = Vec::new();
    let read = io::stdin().lock().take(INPUT_BYTES).read_to_end(&mut input);
    let call = Call { reader, input: &input };
    let (version, done) = match read {
        Ok(_) => call.answer(),
        Err(error) => (String::new(), Err(Failure::new(Code::Io, format!("standard input cannot be read: {error}")))),
    };
    let (text, code) = match done {
        Ok(answer) => (answer.map(|answer| answer.to_string()).unwrap_or_default(), ExitCode::SUCCESS),
        Err(failure) => (failure.json(&version).to_string(), ExitCode::FAILURE),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Call<'a> {
    reader: &'a Reader,
    input: &'a [u8],
}

/// What is printed, if anything.
type Done = Result<Option<Value>, Failure>;

impl Call<'_> {
    /// The answer and the version that it is written in.
    fn answer(&self) -> (String, Done) {
        let command = match Command::of(&self.reader.string("CNI_COMMAND").unwrap_or_default()) {
            Ok(command) => command,
            Err(failure) => return (spec::VERSIONS[0].to_owned(), Err(failure)),
        };
        if command == Command::Version {
            let asked: Value = serde_json::from_slice(self.input).unwrap_or_default();
            let asked = asked.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
            return (asked.to_owned(), Ok(Some(spec::versions(asked))));
        }
        match Configuration::read(self.input) {
            Ok(configuration) => {
                let done = match command {
                    Command::Add => self.add(&configuration),
                    Command::Check => configuration.previous().map(|_| None),
                    // There is nothing of the plugin's to take away, and it can always add: pods outside of the mesh
                    // need no agent, and a node that is not ready could not start one.
                    Command::Del | Command::Gc | Command::Status | Command::Version => Ok(None),
                };
                (configuration.version().to_owned(), done)
            }
            Err(failure) => (spec::VERSIONS[0].to_owned(), Err(failure)),
        }
    }

    fn add(&self, configuration: &Configuration) -> Done {
        let previous = configuration.previous()?;
        let netns = self.reader.string("CNI_NETNS").ok_or_else(|| {
            Failure::new(Code::InvalidEnvironment, "CNI_NETNS is not set: the pod has no network namespace")
        })?;
        let unchanged = Some(previous.clone());
        let Some(pod) = PodArgs::read(&self.reader.string("CNI_ARGS").unwrap_or_default()) else {
            return Ok(unchanged);
        };
        let excluded = configuration.exclude_namespaces.contains(&pod.namespace);
        if excluded || pod.namespace == configuration.pod_namespace {
            return Ok(unchanged);
        }
        let event = Event {
            netns: netns.into(),
            pod_name: pod.name.clone(),
            pod_namespace: pod.namespace.clone(),
            ips: Some(spec::addresses(previous)),
            pod_uid: pod.uid.clone(),
            agent_decides: true,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Code::Io, format!("no runtime: {error}")))?;
        runtime.block_on(ask(configuration, &pod, &event))?;
        Ok(unchanged)
    }
}

/// Returns when the pod may start.
async fn ask(configuration: &Configuration, pod: &PodArgs, event: &Event) -> Result<(), Failure> {
    let body = serde_json::to_vec(event)
        .map_err(|error| Failure::new(Code::InvalidEnvironment, format!("the event cannot be written: {error}")))?;
    let client = Client::unix(configuration.cni_agent_run_dir.join(PLUGIN_SOCKET));
    let client = client.deadline(DEADLINE).body_bytes(ANSWER_BYTES);
    let patience = Instant::now() + PATIENCE;
    loop {
        let error = match client.request(Method::POST, "/cmdadd", body.clone()).await {
            Ok(answer) => return judge(pod, &answer),
            Err(error) => error,
        };
        let Some(because) = known::believed(&configuration.state_dir, &pod.namespace, &pod.name) else {
            return Ok(());
        };
        // Not there now, but perhaps in a moment; an agent that does not answer has had its time.
        if !matches!(error, ClientError::Connect { .. }) || Instant::now() >= patience {
            return Err(unprotected(configuration, pod, because, &error));
        }
        sleep(TRY_EVERY).await;
    }
}

fn judge(pod: &PodArgs, answer: &Answer) -> Result<(), Failure> {
    if answer.status == StatusCode::OK {
        return Ok(());
    }
    let message = format!("pod {}/{} is not captured by the mesh: {}", pod.namespace, pod.name, answer.text().trim());
    let details = "the kubelet tries again; see the log of the node agent, and whether this node's ztunnel is ready";
    Err(Failure { code: Code::NotCaptured, message, details: details.to_owned() })
}

fn unprotected(configuration: &Configuration, pod: &PodArgs, because: Because, error: &ClientError) -> Failure {
    let reason = match because {
        Because::Namespace => format!("namespace {} is in the mesh", pod.namespace),
        Because::Pod => "a pod of this name is in the mesh".to_owned(),
        Because::Unreadable => {
            format!("what is known of the mesh in {} cannot be read", configuration.state_dir.display())
        }
    };
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    let (namespace, name) = (&pod.namespace, &pod.name);
    let message = format!(
        "pod {namespace}/{name} does not start without the mesh: {reason}, and this node's agent cannot be asked ({error}{source})"
    );
    let details = format!(
        "the kubelet tries again; see kubectl -n {} get pods -l app={PLUGIN} -o wide. To start pods of this node without \
         the mesh, take the entry {PLUGIN} out of its CNI configuration",
        configuration.pod_namespace
    );
    Failure { code: Code::TryAgainLater, message, details }
}

#[cfg(test)]
mod tests;
