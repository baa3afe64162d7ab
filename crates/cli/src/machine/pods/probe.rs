//! What a probe's results mean. Pure: results in, changes out; who runs the probe is elsewhere.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerPort, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// When and how often to probe, and how many results count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Wait before the first try.
    pub initial_delay: Duration,
    /// Between tries.
    pub period: Duration,
    /// A try takes no longer.
    pub timeout: Duration,
    /// Successes in a row that make it good.
    pub success_threshold: u32,
    /// Failures in a row that make it bad.
    pub failure_threshold: u32,
}

/// What to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// GET; a status from 200 to 399 is good.
    Http {
        /// Port.
        port: u16,
        /// Path with query.
        path: String,
        /// Host header; the pod's address when absent.
        host: Option<String>,
        /// Headers.
        headers: Vec<(String, String)>,
    },
    /// A connection is good.
    Tcp {
        /// Port.
        port: u16,
    },
    /// Exit code 0 is good.
    Exec {
        /// Command and arguments.
        argv: Vec<String>,
    },
}

/// A probe of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbePlan {
    /// When.
    pub schedule: Schedule,
    /// What.
    pub action: Action,
}

impl ProbePlan {
    /// Reads the probe of a manifest with the defaults of Kubernetes. The error says what is wrong, for the writer.
    pub fn read(probe: &Probe, ports: &[ContainerPort]) -> Result<Self, String> {
        let seconds = |value: Option<i32>, default: u64, least: u64| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default).max(least))
        };
        let count =
            |value: Option<i32>, default| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default).max(1);
        let schedule = Schedule {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
        };
        let action = if let Some(http) = &probe.http_get {
            if http.scheme.as_deref().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
                return Err("only scheme HTTP is accepted in httpGet".to_owned());
            }
            let path = http.path.as_deref().unwrap_or("/");
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            let headers = http.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
            Action::Http { port: port(&http.port, ports)?, path, host: http.host.clone(), headers: headers.collect() }
        } else if let Some(tcp) = &probe.tcp_socket {
            Action::Tcp { port: port(&tcp.port, ports)? }
        } else if let Some(exec) = &probe.exec {
            let argv = exec.command.clone().unwrap_or_default();
            if argv.is_empty() {
                return Err("exec needs a command".to_owned());
            }
            Action::Exec { argv }
        } else {
            return Err("one of httpGet, tcpSocket and exec is needed".to_owned());
        };
        Ok(Self { schedule, action })
    }
}

fn port(port: &IntOrString, ports: &[ContainerPort]) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match ports.iter().find(|port| port.name.as_deref() == Some(name.as_str())) {
            Some(port) => port.container_port,
            None => name.parse().map_err(|_| format!("the container has no port named {name:?}"))?,
        },
    };
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{number} is no port; accepted are 1 to 65535"))
}

/// What the results so far say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    said: Option<bool>,
    last: Option<bool>,
    row: u32,
}

impl Standing {
    /// Takes a result. `Some` when a threshold is reached and the standing was another, or unknown.
    pub fn observe(&mut self, success: bool, schedule: &Schedule) -> Option<bool> {
        if self.last == Some(success) {
            self.row = self.row.saturating_add(1);
        } else {
            (self.last, self.row) = (Some(success), 1);
        }
        let needed = if success { schedule.success_threshold } else { schedule.failure_threshold };
        if self.row < needed || self.said == Some(success) {
            return None;
        }
        self.said = Some(success);
        self.said
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(probe: serde_json::Value) -> Result<ProbePlan, String> {
        let ports: Vec<ContainerPort> =
            serde_json::from_value(json!([{"name": "web", "containerPort": 8080}])).unwrap();
        ProbePlan::read(&serde_json::from_value(probe).unwrap(), &ports)
    }

    #[test]
    fn defaults_are_those_of_kubernetes() {
        let plan = plan(json!({"httpGet": {"port": "web"}})).unwrap();
        assert_eq!(plan.action, Action::Http { port: 8080, path: "/".to_owned(), host: None, headers: Vec::new() });
        let Schedule { initial_delay, period, timeout, success_threshold, failure_threshold } = plan.schedule;
        assert_eq!((initial_delay.as_secs(), period.as_secs(), timeout.as_secs()), (0, 10, 1));
        assert_eq!((success_threshold, failure_threshold), (1, 3));
    }

    #[test]
    fn ports_that_do_not_exist_are_refused() {
        assert!(plan(json!({"tcpSocket": {"port": "admin"}})).unwrap_err().contains("no port named \"admin\""));
        assert!(plan(json!({"tcpSocket": {"port": 80800}})).unwrap_err().contains("1 to 65535"));
        assert!(plan(json!({"exec": {"command": []}})).is_err());
        assert!(plan(json!({})).is_err());
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let schedule =
            plan(json!({"tcpSocket": {"port": 1}, "successThreshold": 2, "failureThreshold": 3})).unwrap().schedule;
        let mut standing = Standing::default();
        let results = [true, false, true, true, true, false, false, true, false, false, false, false, false, false];
        let said: Vec<_> = results.iter().map(|result| standing.observe(*result, &schedule)).collect();
        let mut expected = vec![None; results.len()];
        expected[3] = Some(true);
        expected[10] = Some(false);
        assert_eq!(said, expected);
    }
}
