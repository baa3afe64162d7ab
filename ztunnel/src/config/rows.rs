//! One row per key: what is read, in which unit, with which default, and what it means.

/// A key of the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The variable's name.
    pub key: &'static str,
    /// What is accepted.
    pub accepts: &'static str,
    /// What an absent key means.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

macro_rules! rows {
    ($($key:literal, $accepts:literal, $default:literal, $meaning:literal;)*) => {
        /// Every key that is read.
        pub const ROWS: &[Row] = &[$(Row { key: $key, accepts: $accepts, default: $default, meaning: $meaning }),*];
    };
}

rows! {
    "XDS_ADDRESS", "host:port", "https://istiod.istio-system.svc:15012", "control plane";
    "CA_ADDRESS", "host:port", "as XDS_ADDRESS", "certificate authority";
    "XDS_ROOT_CA", "file or PEM", "./var/run/secrets/istio/root-cert.pem", "what the control plane's certificate is checked against";
    "CA_ROOT_CA", "file or PEM", "as XDS_ROOT_CA", "what the authority's certificate is checked against";
    "ALT_XDS_HOSTNAME", "DNS name", "", "name in the control plane's certificate, if not its host";
    "ALT_CA_HOSTNAME", "DNS name", "", "name in the authority's certificate, if not its host";
    "AUTH_TOKEN", "file or token", "./var/run/secrets/tokens/istio-token", "how this node proves itself; a file is read for every request";
    "XDS_HEADER_*", "text", "", "further metadata of xDS calls";
    "CA_HEADER_*", "text", "", "further metadata of CA calls";
    "ISTIO_META_CLUSTER_ID", "text", "as CLUSTER_ID", "id of the Kubernetes cluster";
    "CLUSTER_ID", "text", "Kubernetes", "id of the Kubernetes cluster";
    "CLUSTER_DOMAIN", "DNS name", "cluster.local", "DNS domain of the cluster";
    "TRUST_DOMAIN", "trust domain", "cluster.local", "trust domain of ztunnel's own identity";
    "NETWORK", "text", "", "network that this node is on";
    "NODE_NAME", "text", "", "name of the Kubernetes node";
    "POD_NAME", "text", "", "name of ztunnel's own pod";
    "POD_NAMESPACE", "text", "istio-system", "its namespace";
    "SERVICE_ACCOUNT", "text", "ztunnel", "its account";
    "INSTANCE_IP", "IP address", "", "its address";
    "INPOD_UDS", "path", "/var/run/ztunnel/ztunnel.sock", "where the node agent hands pods over";
    "HANDOVER_SOCKET", "path, or none", "handover.sock beside INPOD_UDS", "where listeners pass to the next ztunnel at an upgrade";
    "PROBES_SOCKET", "path, or none", "probes.sock beside INPOD_UDS", "where the node agent says which connections are the kubelet's probes";
    "INPOD_PORT_REUSE", "true or false", "true", "whether listeners set SO_REUSEPORT, for upgrades beside a foreign ztunnel";
    "PACKET_MARK", "1 to 4294967295", "1337", "mark of ztunnel's own sockets";
    "ENABLE_ORIG_SRC", "true or false", "tried", "whether the source address is kept when delivering";
    "SECRET_TTL", "seconds or 24h", "24h", "life asked for certificates";
    "DNS_CAPTURE", "true or false", "true", "whether the DNS proxy runs";
    "DNS_PROXY_ADDR", "ip:port", "localhost:15053", "where it listens inside a pod";
    "PREFERED_SERVICE_NAMESPACE", "namespace", "", "whose services win DNS answers among equals";
    "ENABLE_PROXY", "true or false", "true", "whether pods are served at all";
    "IPV6_ENABLED", "true or false", "true", "whether IPv6 is used";
    "HTTP2_STREAM_WINDOW_SIZE", "65535 to 2147483647", "4194304", "ceiling of a stream's window, bytes";
    "HTTP2_CONNECTION_WINDOW_SIZE", "65535 to 2147483647", "16777216", "ceiling of a connection's window, bytes";
    "HTTP2_FRAME_SIZE", "16384 to 16777215", "1048576", "longest frame, bytes";
    "HBONE_MEMORY_LIMIT", "16Mi to 64Gi, or bytes", "256Mi", "what all tunnels may hold together; new streams are refused from half of it on";
    "POOL_MAX_STREAMS_PER_CONNECTION", "1 to 65535", "100", "streams of one pooled connection";
    "POOL_UNUSED_RELEASE_TIMEOUT", "duration", "5m", "when an unused pooled connection is closed";
    "KEEPALIVE_ENABLED", "true or false", "true", "TCP keepalive";
    "KEEPALIVE_TIME", "duration", "180s", "idle time before the first probe";
    "KEEPALIVE_INTERVAL", "duration", "180s", "time between probes";
    "KEEPALIVE_RETRIES", "1 to 127", "9", "probes before giving up";
    "CONNECTION_TERMINATION_DEADLINE", "duration", "from the next", "how long open connections may go on after SIGTERM";
    "TERMINATION_GRACE_PERIOD_SECONDS", "seconds", "", "the pod's grace period: less 5 s (less 1 s up to 10 s), at least 1 s";
    "ZTUNNEL_WORKER_THREADS", "number, 0 for all cores, or NN%", "max(2, cores/4)", "threads that carry connections";
    "ZTUNNEL_CPU_LIMIT", "number", "", "cores that this process may use, instead of those seen";
    "LOCALHOST_APP_TUNNEL", "true or false", "true", "whether application tunnels are reached at loopback";
    "ENABLE_RESPONSE_BAGGAGE", "true or false", "true", "whether the 200 describes the destination";
    "UNKNOWN_POLICIES", "refuse or allow", "refuse; allow under a foreign control plane", "what a workload's policy that has not arrived means";
    "MAX_CONNECTIONS_PER_POD", "1 to 1048576", "16384", "open connections of one pod; more are refused";
    "MAX_HANDSHAKES", "1 to 65536", "1024", "TLS handshakes at a time on this node; more are refused";
    "MAX_DNS_IN_FLIGHT", "1 to 65536", "1024", "DNS queries at a time of one pod; more are refused";
    "POD_DRAIN", "duration", "60s; 0s under a foreign node agent", "how long a pod's connections may go on after it left the mesh";
    "ADMIN_ADDRESS", "ip:port", "127.0.0.1:15000", "admin port";
    "STATS_ADDRESS", "ip:port", "[::]:15020", "metrics port";
    "METRICS_MAX_SERIES", "100 to 1000000", "5000", "label sets of one metric; more are counted under `overflow`";
    "READINESS_ADDRESS", "ip:port", "[::]:15021", "readiness port";
    "ISTIO_META_ISTIO_VERSION", "text", "this version", "version shown in metrics";
    "DECISION_RECORDS_MEMORY", "0, or 256Ki to 1Gi, or bytes", "16Mi", "what records of decisions may take, for stillmesh why; 0 keeps none";
    "FLOWS_MEMORY", "0, or 256Ki to 1Gi, or bytes", "8Mi", "what the table of flows may take, for stillmesh flows; 0 keeps none";
    "FLOWS_PATH", "path, or none", "flows.json beside INPOD_UDS", "where flows are kept across restarts";
    "HOP_SPANS_COLLECTOR", "host:port", "", "who is told a span of each connection, over OTLP (gRPC, in clear text); nobody where it is absent";
    "HOP_SPANS_PERCENT", "0 to 100", "100", "of how many connections; both ends tell of the same ones";
    "CRL_PATH", "path", "", "PEM file of certificate revocation lists, read again when it changes";
    "LOCAL_XDS", "", "", "not supported: a control plane is needed";
    "LOCAL_XDS_PATH", "", "", "not supported: a control plane is needed";
    "FAKE_CA", "", "", "not supported: a certificate authority is needed";
    "XDS_ON_DEMAND", "", "", "not supported: everything is subscribed";
    "TLS12_ENABLED", "", "", "not supported: TLS 1.3 only";
    "COMPLIANCE_POLICY", "", "", "not supported";
    "PROXY_MODE", "shared", "shared", "dedicated is not supported";
    "ISTIO_META_*", "text", "", "further metadata of this node for the control plane";
}
