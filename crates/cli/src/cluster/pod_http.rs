//! HTTP to a port of a pod, by the API server's port-forward: it reaches ports that only the pod itself can see.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};

use super::access::causes;

/// How long a whole exchange may take; a dump of ten thousand workloads is some tens of megabytes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Largest answer, in bytes.
const ANSWER_BYTES: usize = 256 << 20;

/// A port of a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodPort {
    /// Namespace of the pod.
    pub(crate) namespace: String,
    /// The pod.
    pub(crate) pod: String,
    /// The port.
    pub(crate) port: u16,
}

impl PodPort {
    /// Asks, and gives the body of a good answer. Errors say which pod, which port and which page.
    pub(crate) async fn ask(&self, client: &Client, method: Method, path: &str) -> anyhow::Result<Bytes> {
        self.ask_within(client, method, path, DEADLINE).await
    }

    /// Likewise, within so long.
    pub(crate) async fn ask_within(
        &self,
        client: &Client,
        method: Method,
        path: &str,
        deadline: Duration,
    ) -> anyhow::Result<Bytes> {
        let place = format!("pod {}/{} port {} {path}", self.namespace, self.pod, self.port);
        match tokio::time::timeout(deadline, self.exchange(client, method, path)).await {
            Ok(Ok((status, body))) if status.is_success() => Ok(body),
            Ok(Ok((status, body))) => {
                bail!("{place}: the answer is {status}: {}", String::from_utf8_lossy(&body).trim())
            }
            Ok(Err(error)) => Err(error.context(place)),
            Err(_) => bail!("{place}: no answer within {deadline:?}"),
        }
    }

    async fn exchange(&self, client: &Client, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let mut forward = pods.portforward(&self.pod, &[self.port]).await.map_err(|error| match error {
            kube::Error::Api(status) => anyhow!("{}", status.message),
            other => anyhow!("the port cannot be forwarded: {}", causes(&other)),
        })?;
        let stream = forward.take_stream(self.port).context("the port was not forwarded")?;
        let refused = forward.take_error(self.port);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, format!("localhost:{}", self.port))
            .body(Empty::<Bytes>::new())?;
        let answer = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| anyhow!("the answer breaks off: {error}"))?.to_bytes();
            anyhow::Ok((status, body))
        };
        let answer = async {
            tokio::pin!(answer);
            tokio::pin!(connection);
            tokio::select! {
                // What has been read counts, also where the connection ends with it.
                biased;
                answer = &mut answer => answer,
                ended = &mut connection => {
                    ended?;
                    answer.await
                }
            }
        };
        let answer = answer.await;
        if answer.is_err()
            && let Some(refused) = refused
            && let Ok(Some(why)) = tokio::time::timeout(Duration::from_secs(1), refused).await
        {
            forward.abort();
            bail!("{}", why.trim());
        }
        forward.abort();
        answer
    }
}
