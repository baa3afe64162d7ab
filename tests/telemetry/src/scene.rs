//! What runs in the mesh, and what of its metrics is promised.

use std::path::Path;

/// Names that contracts 9.1 to 9.3 promise and that this mesh's traffic makes, as Prometheus stores them.
pub const PROMISED: [&str; 66] = [
    "istio_build",
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_received_bytes_total",
    "istio_tcp_sockets_open",
    "istio_dns_requests_total",
    "istio_xds_connection_terminations_total",
    "istio_xds_message_total",
    "istio_xds_message_bytes_total",
    "istio_crl_policy_rejections_total",
    "istio_crl_untracked_connections_total",
    "workload_manager_active_proxy_count",
    "workload_manager_pending_proxy_count",
    "workload_manager_proxies_started_total",
    "workload_manager_proxies_stopped_total",
    "process_open_fds",
    "process_max_fds",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_cpu_seconds_total",
    "tokio_num_workers",
    "tokio_num_alive_tasks",
    "tokio_global_queue_depth",
    "tokio_worker_total_busy_duration_seconds_total",
    "tokio_worker_park_count_total",
    "tokio_worker_park_unpark_count_total",
    "istio_requests_total",
    "istio_request_duration_milliseconds_bucket",
    "istio_request_duration_milliseconds_sum",
    "istio_request_duration_milliseconds_count",
    "istio_request_bytes_bucket",
    "istio_request_bytes_sum",
    "istio_response_bytes_bucket",
    "istio_response_bytes_sum",
    "pilot_xds",
    "pilot_xds_pushes",
    "pilot_xds_push_time_bucket",
    "pilot_xds_config_size_bytes_bucket",
    "pilot_push_triggers",
    "pilot_k8s_cfg_events",
    "pilot_k8s_reg_events",
    "pilot_proxy_convergence_time_bucket",
    "pilot_services",
    "pilot_virt_services",
    "pilot_info",
    "citadel_server_csr_count",
    "citadel_server_success_cert_issuance_count",
    "citadel_server_csr_parsing_err_count",
    "citadel_server_csr_sign_err_count",
    "citadel_server_authentication_failure_count",
    "citadel_server_id_extraction_err_count",
    "citadel_server_root_cert_expiry_timestamp",
    "citadel_server_root_cert_expiry_seconds",
    "citadel_server_cert_chain_expiry_timestamp",
    "citadel_server_cert_chain_expiry_seconds",
    "istiod_uptime_seconds",
    "istiod_managed_clusters",
    "ztunnel_connected",
    "nodeagent_reconcile_events_total",
    "istio_cni_plugin_requests_total",
    "stillmesh_series_held",
    "stillmesh_series_limit",
    "stillmesh_series_overflow_total",
    "stillmesh_ztunnel_certificate_expiry_timestamp_seconds",
    "stillmesh_waypoint_certificate_expiry_timestamp_seconds",
];

/// Nobody but the client may come to the endpoints themselves.
pub const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-strangers, namespace: shop}
spec:
  action: DENY
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/stranger]}}]}]
";

/// Requests are counted with the name that the client used and without its identity; their sizes are not.
pub const OVERRIDES: &str = "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: labels, namespace: istio-system}
spec:
  metrics:
  - providers: [{name: prometheus}]
    overrides:
    - match: {metric: REQUEST_COUNT}
      tagOverrides:
        request_host: {value: request.host}
        source_principal: {operation: REMOVE}
    - match: {metric: REQUEST_SIZE}
      disabled: true
";

/// Requests to `warm` take two seconds more.
pub const SLOW: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: warm, namespace: shop}
spec:
  hosts: [warm]
  http:
  - fault: {delay: {fixedDelay: 2s, percentage: {value: 100}}}
    route: [{destination: {host: warm}}]
";

/// Requests to `warm` fail.
pub const BROKEN: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: warm, namespace: shop}
spec:
  hosts: [warm]
  http:
  - fault: {abort: {httpStatus: 503, percentage: {value: 100}}}
    route: [{destination: {host: warm}}]
";

/// A shop with a waypoint, and a Prometheus beside it that is not in the mesh.
pub fn manifests(prometheus: &Path, dir: &Path) -> String {
    SHOP.to_owned()
        + &format!(
            "
---
apiVersion: v1
kind: Pod
metadata: {{name: prometheus, namespace: monitoring}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 5
  containers:
  - name: prometheus
    command: [{}, --config.file={dir}/prometheus.yaml, --storage.tsdb.path={dir}/data, '--web.listen-address=0.0.0.0:9090']
    readinessProbe: {{httpGet: {{path: /-/ready, port: 9090}}, periodSeconds: 1}}
",
            prometheus.display(),
            dir = dir.display()
        )
}

/// `direct` leads straight to the endpoint, `web` and `warm` by the waypoint.
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: monitoring}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec:
  gatewayClassName: stillmesh-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: stillmesh/echo, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: warm, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: direct, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{name: main, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: shop}
spec:
  nodeName: node1
  serviceAccountName: stranger
  terminationGracePeriodSeconds: 1
  containers: [{name: main, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: idle, namespace: shop}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  containers: [{name: main, command: [sleep, infinity]}]
";

/// A shop with a waypoint, and a collector beside it, started by a script `collector.sh` of this folder. Clients say what is traced;
/// the collector hears of `warm` over HTTP, of everything else over gRPC. Everything is logged.
pub fn collected(dir: &Path) -> String {
    SHOP.to_owned() + &COLLECTED.replace("DIR", &dir.display().to_string())
}

const COLLECTED: &str = "
---
apiVersion: v1
kind: Namespace
metadata: {name: observability, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: collector, namespace: observability, labels: {app: collector}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 5
  containers:
  - name: collector
    command: [sh, DIR/collector.sh]
    readinessProbe: {tcpSocket: {port: 4317}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: collector, namespace: observability}
spec:
  selector: {app: collector}
  ports: [{name: grpc-otlp, port: 4317}, {name: http-otlp, port: 4318}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: grpc
      opentelemetry: {service: collector.observability.svc.cluster.local, port: 4317}
    - name: http
      opentelemetry: {service: collector.observability.svc.cluster.local, port: 4318, http: {path: /v1/traces}}
    - name: logs
      envoyOtelAls:
        service: collector.observability.svc.cluster.local
        port: 4317
        logName: shop
        logFormat:
          labels: {path: '%REQ(:PATH)%', code: '%RESPONSE_CODE%'}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec:
  tracing:
  - providers: [{name: grpc}]
    randomSamplingPercentage: 0
    customTags:
      team: {literal: {value: shop}}
      tenant: {header: {name: x-tenant, defaultValue: none}}
  accessLogging:
  - providers: [{name: logs}]
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: warm, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: warm}]
  tracing:
  - providers: [{name: http}]
    randomSamplingPercentage: 0
";
