//! How the cluster is reached. Every error says which server, what is wrong, and what to look at.

use std::time::Duration;

use anyhow::anyhow;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::Client;
use stillmesh_cluster::Cluster;

use super::args::Access;

/// How long one exchange with the API server may take.
pub(crate) const EXCHANGE: Duration = Duration::from_secs(30);
/// How long the server may take to say that it is there.
const HELLO: Duration = Duration::from_secs(10);

/// A cluster that has answered.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    /// The cluster.
    pub(crate) cluster: Cluster,
    /// What its server says of itself.
    pub(crate) server: Info,
}

impl Reached {
    /// A client.
    pub(crate) fn client(&self) -> Client {
        self.cluster.client()
    }

    /// Where the server is.
    pub(crate) fn url(&self) -> &str {
        self.cluster.url().trim_end_matches('/')
    }
}

/// Connects, and asks the server for its version.
pub(crate) async fn reach(access: &Access) -> anyhow::Result<Reached> {
    if let Some(file) = &access.kubeconfig
        && !file.is_file()
    {
        return Err(anyhow!("there is no kubeconfig file {}", file.display()));
    }
    let cluster = if access.chosen() {
        Cluster::from_kubeconfig(access.kubeconfig.clone(), access.context.clone()).await?
    } else {
        Cluster::connect().await?
    };
    let client = cluster.client();
    let hello = tokio::time::timeout(HELLO, client.apiserver_version()).await;
    let url = cluster.url().trim_end_matches('/').to_owned();
    let whose = match (&access.kubeconfig, &access.context) {
        (Some(file), Some(context)) => format!("context {context:?} of {}", file.display()),
        (Some(file), None) => format!("the current context of {}", file.display()),
        (None, Some(context)) => format!("context {context:?} of your kubeconfig"),
        (None, None) => "the current context of your kubeconfig (`kubectl config current-context`)".to_owned(),
    };
    match hello {
        Ok(Ok(server)) => Ok(Reached { cluster, server }),
        Ok(Err(kube::Error::Api(status))) if status.code == 401 => Err(anyhow!(
            "the API server at {url} does not accept your credentials; log in again or choose another --context \
             (used: {whose})"
        )),
        // Whoever may not see the version may still see objects.
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Ok(Reached { cluster, server: Info::default() }),
        Ok(Err(error)) if is_of_clocks(&causes(&error)) => Err(anyhow!(
            "the API server at {url} cannot be trusted: {}; by this machine's clock it is {:.0}: set it by NTP if that is \
             wrong, else renew the API server's certificate",
            causes(&error),
            jiff::Timestamp::now()
        )),
        Ok(Err(error)) => Err(anyhow!(
            "the API server at {url} cannot be reached: {}; check that the cluster runs, that this machine gets \
             there (VPN, firewall, proxy), and that {whose} means this cluster",
            causes(&error)
        )),
        Err(_) => Err(anyhow!(
            "the API server at {url} has not answered within {HELLO:?}; check that the cluster runs, that this \
             machine gets there (VPN, firewall, proxy), and that {whose} means this cluster"
        )),
    }
}

/// Whether a server's certificate is of another time, in rustls's words.
fn is_of_clocks(causes: &str) -> bool {
    ["certificate not valid yet", "certificate expired"].iter().any(|words| causes.contains(words))
}

/// The server does not let the caller do something.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: you may not: {what}")]
pub(crate) struct Forbidden {
    doing: String,
    what: String,
}

/// An exchange with the server, within its time. The error says what was being done; [`Forbidden`] where that is it.
pub(crate) async fn within<T>(
    doing: &str,
    exchange: impl Future<Output = Result<T, kube::Error>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(EXCHANGE, exchange).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
            Err(Forbidden { doing: doing.to_owned(), what: one_line(&status.message) }.into())
        }
        Ok(Err(kube::Error::Api(status))) => Err(anyhow!("{doing}: {}", one_line(&status.message))),
        Ok(Err(error)) => Err(anyhow!("{doing}: {}", causes(&error))),
        Err(_) => Err(anyhow!("{doing}: the API server has not answered within {EXCHANGE:?}")),
    }
}

/// An error with its causes, each said once, in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    one_line(&text)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
