//! What a VirtualService does with connections that are no HTTP.

use std::collections::BTreeMap;

use stillmesh_core::model::stream::{StreamBackend, StreamMatch, StreamRule};

use super::action::weight;
use super::{MESH, Reader};
use crate::istio::virtual_service as written;
use crate::translate::route::References;
use crate::translate::stream_route::server_name;

impl<R: References> Reader<'_, R> {
    /// All its rules, those for TLS first.
    pub(super) fn streams(&mut self, spec: &written::VirtualServiceSpec) -> Result<Vec<StreamRule>, String> {
        let mut rules = Vec::new();
        for (at, rule) in spec.tls.iter().enumerate() {
            rules.extend(self.tls(rule).map_err(|why| format!("spec.tls[{at}]: {why}"))?);
        }
        for (at, rule) in spec.tcp.iter().enumerate() {
            rules.extend(self.tcp(rule).map_err(|why| format!("spec.tcp[{at}]: {why}"))?);
        }
        Ok(rules)
    }

    /// A rule for TLS; `None` where none of its matches can ever hold.
    pub(super) fn tls(&mut self, rule: &written::TlsRoute) -> Result<Option<StreamRule>, String> {
        let mut matches = Vec::new();
        for matched in &rule.matches {
            if matched.sni_hosts.is_empty() {
                return Err("match: sniHosts is missing".to_owned());
            }
            if !matched.destination_subnets.is_empty() {
                return Err("match: destinationSubnets is not supported".to_owned());
            }
            if self.holds(&matched.source_labels, &matched.source_namespace, &matched.gateways) {
                let names = matched.sni_hosts.iter().map(|name| server_name(name));
                let server_names = names.collect::<Result<_, _>>().map_err(|problem| problem.message)?;
                matches.push(StreamMatch { server_names, port: matched.port });
            }
        }
        if rule.matches.is_empty() {
            return Err("a match with sniHosts is needed".to_owned());
        }
        let backends = self.shares(&rule.route)?;
        Ok((!matches.is_empty()).then_some(StreamRule { name: None, matches, backends }))
    }

    /// A rule for TCP; `None` where none of its matches can ever hold.
    pub(super) fn tcp(&mut self, rule: &written::TcpRoute) -> Result<Option<StreamRule>, String> {
        let mut matches = Vec::new();
        for matched in &rule.matches {
            let unsupported = [
                ("destinationSubnets", !matched.destination_subnets.is_empty()),
                ("sourceSubnet", !matched.source_subnet.is_empty()),
            ];
            if let Some((field, _)) = unsupported.iter().find(|(_, is_there)| *is_there) {
                return Err(format!("match: {field} is not supported"));
            }
            if self.holds(&matched.source_labels, &matched.source_namespace, &matched.gateways) {
                matches.push(StreamMatch { server_names: Vec::new(), port: matched.port });
            }
        }
        let backends = self.shares(&rule.route)?;
        let is_never = matches.is_empty() && !rule.matches.is_empty();
        Ok((!is_never).then_some(StreamRule { name: None, matches, backends }))
    }

    /// Whether a match may ever hold at a waypoint; noted where not.
    fn holds(&mut self, labels: &BTreeMap<String, String>, namespace: &str, gateways: &[String]) -> bool {
        let elsewhere = !gateways.is_empty() && !gateways.iter().any(|gateway| gateway == MESH);
        let fields =
            [("sourceLabels", !labels.is_empty()), ("sourceNamespace", !namespace.is_empty()), ("gateways", elsewhere)];
        let never = fields.into_iter().find(|(_, is_there)| *is_there);
        if let Some((field, _)) = never {
            self.notes.insert(format!("a match with {field} never holds at a waypoint"));
        }
        never.is_none()
    }

    fn shares(&mut self, route: &[written::TcpDestination]) -> Result<Vec<StreamBackend>, String> {
        let shares = route.iter().map(|one| StreamBackend {
            backend: self.resolved_or(&one.destination, "refused"),
            weight: weight(one.weight, route.len() == 1),
        });
        let shares: Vec<StreamBackend> = shares.collect();
        if shares.iter().all(|one| one.weight == 0) {
            return Err("route: the weights add up to nothing".to_owned());
        }
        Ok(shares)
    }
}

#[cfg(test)]
mod tests;
