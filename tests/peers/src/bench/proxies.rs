//! The two proxies, each a process of its own, with the same routes and policies: both take HBONE (mutual TLS, CONNECT) and
//! send requests to the backend in clear. Envoy as Istio sets it up for a waypoint: a listener that ends HBONE, and an
//! internal one for each service.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use stillmesh_core::model::{Identity, TrustDomain};
use stillmesh_waypoint_tests::{Client, WAYPOINT, World};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

use super::load::Connection;
use crate::differential::envoy;
use crate::differential::table::Table;

/// The port of tunnels.
pub const HBONE: u16 = 15008;
/// Envoy's address.
const ENVOY: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 1);
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether access logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// A line of each request.
    On,
    /// Nothing.
    Off,
}

/// A proxy that runs.
pub struct Proxy {
    /// What it is called in reports.
    pub name: &'static str,
    /// Its process.
    pub pid: u32,
    /// A client of its.
    pub client: Arc<Client>,
    /// Another one, that means harm.
    pub evil: Arc<Client>,
    child: Child,
    input: Option<ChildStdin>,
    output: Option<Lines<BufReader<ChildStdout>>>,
}

impl Proxy {
    async fn start(
        name: &'static str,
        mut command: Command,
        clients: [Client; 2],
        probe: SocketAddr,
    ) -> anyhow::Result<Self> {
        let [client, evil] = clients;
        let child = command.kill_on_drop(true).spawn();
        let mut child = child.with_context(|| format!("{name} does not start"))?;
        let pid = child.id().with_context(|| format!("{name} ended"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().map(|output| BufReader::new(output).lines());
        let begin = Instant::now();
        loop {
            let tried = async { Connection::open(&client, probe).await?.get("/r0/x").await };
            match tried.await {
                Ok((200, _)) => break,
                other if begin.elapsed() > PATIENCE => anyhow::bail!("{name} does not serve: {other:?}"),
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
        Ok(Self { name, pid, client: Arc::new(client), evil: Arc::new(evil), child, input, output })
    }

    /// Writes a line to its standard input, and waits until it has written the same.
    pub async fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("no standard input")?;
        input
            .write_all(format!("{line}\n").as_bytes())
            .await
            .with_context(|| format!("{} does not listen", self.name))?;
        let output = self.output.as_mut().context("no standard output")?;
        let told = timeout(PATIENCE, output.next_line()).await.context("no word of it")??;
        ensure!(told.as_deref() == Some(line), "{}: {told:?} instead of {line}", self.name);
        Ok(())
    }

    /// Ends it.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("{} does not end", self.name))
    }
}

/// Starts a waypoint, with further environment.
pub async fn waypoint(
    program: &Path,
    arguments: &[&str],
    world: &World,
    probe: SocketAddr,
    port: u16,
    more: &[(&str, &str)],
) -> anyhow::Result<Proxy> {
    let hbone = SocketAddr::from((WAYPOINT, port));
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("RUST_LOG", "info").envs(world.environment(WAYPOINT, more));
    command.env("HBONE_ADDRESS", hbone.to_string()).stderr(Stdio::null());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Proxy::start("waypoint", command, [world.client_of(hbone, "page", 1), world.client_of(hbone, "evil", 3)], probe)
        .await
}

/// Starts Envoy. `services` are tables with the addresses that CONNECTs name; the last one's routes come from `folder`, as they
/// are written there.
pub async fn envoy(
    program: &Path,
    folder: &Path,
    world: &World,
    services: &[(Table, SocketAddr)],
    backend: SocketAddr,
    log: Log,
) -> anyhow::Result<Proxy> {
    certificate(folder, world)?;
    let hbone = SocketAddr::from((ENVOY, HBONE));
    let config = folder.join("envoy.json");
    std::fs::write(&config, serde_json::to_string(&bootstrap(folder, services, backend, log)?)?)?;
    let mut command = Command::new(program);
    command.args(["--log-level", "error", "--disable-hot-restart", "--concurrency"]);
    command.arg(std::thread::available_parallelism()?.to_string()).arg("--config-path").arg(&config);
    command.stderr(std::fs::File::create(folder.join("envoy.log"))?).stdin(Stdio::null()).stdout(Stdio::null());
    let probe = services.first().context("a service")?.1;
    let started =
        Proxy::start("Envoy", command, [world.client_of(hbone, "page", 2), world.client_of(hbone, "evil", 4)], probe)
            .await;
    started.with_context(|| std::fs::read_to_string(folder.join("envoy.log")).unwrap_or_default())
}

/// Writes a certificate of the waypoint's identity, its key, and the root.
fn certificate(folder: &Path, world: &World) -> anyhow::Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
    let identity = Identity::new(TrustDomain::default(), "gate", "w");
    let issuer = &world.control.issuer;
    let mut chain = issuer.issue(&request, &identity, Some(Duration::from_secs(3600)), SystemTime::now())?;
    let root = chain.pop().context("a root")?;
    for (name, text) in [("chain.pem", chain.concat()), ("key.pem", key.serialize_pem()), ("root.pem", root)] {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// Envoy's file of the routes that change, with another name until it is whole.
pub fn write_routes(folder: &Path, table: &Table, version: usize) -> anyhow::Result<()> {
    let routes = json!({
        "version_info": version.to_string(),
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": table.service,
            "virtual_hosts": envoy::virtual_hosts(table),
        }],
    });
    std::fs::write(folder.join("routes.new"), serde_json::to_string(&routes)?)?;
    std::fs::rename(folder.join("routes.new"), folder.join("routes.json"))?;
    Ok(())
}

fn bootstrap(folder: &Path, services: &[(Table, SocketAddr)], backend: SocketAddr, log: Log) -> anyhow::Result<Value> {
    let file = |name: &str| json!({"filename": folder.join(name)});
    let to_nowhere = json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/null",
        },
    }]);
    let (mut listeners, mut clusters, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    clusters.push(envoy::cluster("one", &backend.ip().to_string(), backend.port()));
    for (index, (table, address)) in services.iter().enumerate() {
        let mut http = envoy::http(table);
        let config = &mut http["typed_config"];
        if log == Log::On {
            config["access_log"] = to_nowhere.clone();
        }
        config["codec_type"] = "AUTO".into();
        config["internal_address_config"] = json!({"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]});
        if index + 1 == services.len() {
            write_routes(folder, table, 0)?;
            config["rds"] = json!({
                "route_config_name": table.service,
                "config_source": {"path_config_source": {
                    "path": folder.join("routes.json"),
                    "watched_directory": {"path": folder},
                }},
            });
            config.as_object_mut().context("an object")?.remove("route_config");
        }
        let name = &table.service;
        listeners.push(json!({"name": name, "internal_listener": {}, "filter_chains": [{"filters": [http]}]}));
        let endpoint = json!({"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": name}}}});
        clusters.push(json!({
            "name": format!("internal-{name}"),
            "load_assignment": {"cluster_name": format!("internal-{name}"), "endpoints": [{"lb_endpoints": [endpoint]}]},
        }));
        let authority = json!({"name": ":authority", "string_match": {"exact": address.to_string()}});
        let upgrade = json!([{"upgrade_type": "CONNECT", "connect_config": {}}]);
        routes.push(json!({
            "match": {"connect_matcher": {}, "headers": [authority]},
            "route": {"cluster": format!("internal-{name}"), "upgrade_configs": upgrade, "timeout": "0s"},
        }));
    }
    let tls = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificates": [{"certificate_chain": file("chain.pem"), "private_key": file("key.pem")}],
                "validation_context": {"trusted_ca": file("root.pem")},
            },
        },
    });
    let terminate = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "hbone",
            "codec_type": "HTTP2",
            "http2_protocol_options": {"allow_connect": true},
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "stream_idle_timeout": "0s",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "http_filters": [envoy::router()],
        },
    });
    listeners.push(json!({
        "name": "hbone",
        "address": envoy::socket(&ENVOY.to_string(), HBONE),
        "filter_chains": [{"transport_socket": tls, "filters": [terminate]}],
    }));
    let mut all = envoy::bootstrap(&listeners, &clusters);
    all["node"] = json!({"id": "bench", "cluster": "bench"});
    all["bootstrap_extensions"] = json!([{
        "name": "envoy.bootstrap.internal_listener",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"},
    }]);
    Ok(all)
}
