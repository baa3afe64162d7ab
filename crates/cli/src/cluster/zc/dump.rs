//! A tunnel's `/config_dump`.

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::Value;

use super::source::Tunnel;

/// A dump. Its parts are read leniently: a real ztunnel leaves out what equals its default.
#[derive(Clone, Debug)]
pub(super) struct Dump {
    /// As it came.
    pub(super) whole: Value,
}

impl Dump {
    /// Asks a tunnel for its dump.
    pub(super) async fn read(tunnel: &Tunnel) -> anyhow::Result<Self> {
        Self::parse(&tunnel.ask(Method::GET, "/config_dump").await?).with_context(|| tunnel.to_string())
    }

    /// Reads a dump. Errors: it is none.
    pub(super) fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let whole: Value = serde_json::from_slice(text).context("this is not the JSON of a /config_dump")?;
        if !["workloads", "services", "policies", "certificates"].iter().any(|key| whole.get(key).is_some()) {
            bail!("this is no dump of a ztunnel: it has none of workloads, services, policies, certificates");
        }
        Ok(Self { whole })
    }

    /// A list of the dump. Some versions write maps.
    pub(super) fn list(&self, key: &str) -> Vec<&Value> {
        match self.whole.get(key) {
            Some(Value::Array(items)) => items.iter().collect(),
            Some(Value::Object(items)) => items.values().collect(),
            _ => Vec::new(),
        }
    }
}
