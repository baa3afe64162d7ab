//! Rules for connections that are no HTTP, in the order in which they are asked.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::model::http::{HttpRoute, RouteKind};
use crate::model::stream::{ServerName, StreamMatch, StreamRule};

/// Rules in the order in which they are asked.
#[derive(Debug, Default)]
pub struct StreamTable {
    entries: Vec<StreamEntry>,
}

/// One name of a match of a rule, a match without names, or a rule without matches.
#[derive(Debug)]
pub struct StreamEntry {
    /// The route.
    pub route: Arc<HttpRoute>,
    /// Its rule, from 0.
    pub rule_index: usize,
    match_index: Option<usize>,
    name_index: Option<usize>,
}

impl StreamEntry {
    /// The rule. `None` cannot be: entries are made from the rules there are.
    pub fn rule(&self) -> Option<&StreamRule> {
        self.route.streams.get(self.rule_index)
    }

    fn matched(&self) -> Option<&StreamMatch> {
        self.rule()?.matches.get(self.match_index?)
    }

    /// The name that a client of TLS must ask for; `None`: TLS or not.
    pub fn server_name(&self) -> Option<&ServerName> {
        self.matched()?.server_names.get(self.name_index?)
    }

    /// Whether it says anything about connections to a port.
    pub fn is_for_port(&self, port: u16) -> bool {
        self.matched().and_then(|matched| matched.port).is_none_or(|wanted| wanted == port)
    }
}

impl StreamTable {
    pub(super) fn new(routes: impl Iterator<Item = Arc<HttpRoute>>) -> Self {
        let mut entries = Vec::new();
        for route in routes {
            for (rule_index, rule) in route.streams.iter().enumerate() {
                let entry = |match_index, name_index| {
                    let route = Arc::clone(&route);
                    StreamEntry { route, rule_index, match_index, name_index }
                };
                if rule.matches.is_empty() {
                    entries.push(entry(None, None));
                }
                for (index, matched) in rule.matches.iter().enumerate() {
                    if matched.server_names.is_empty() {
                        entries.push(entry(Some(index), None));
                    }
                    entries.extend((0..matched.server_names.len()).map(|name| entry(Some(index), Some(name))));
                }
            }
        }
        entries.sort_by(|one, other| standing(one).cmp(&standing(other)));
        Self { entries }
    }

    /// All entries, in order.
    pub fn entries(&self) -> &[StreamEntry] {
        &self.entries
    }
}

/// What asks for a name of TLS comes first. Of the Gateway API's routes whole names come before ends of names, long ends
/// before short ones, then the oldest object, the first by name, and the order in it. A VirtualService keeps its own order,
/// after those; of several the oldest comes first.
fn standing(entry: &StreamEntry) -> impl Ord + '_ {
    let route = &*entry.route;
    let is_virtual = route.key.kind == RouteKind::VirtualService;
    let name = entry.server_name().filter(|_| !is_virtual).map(ServerName::standing);
    let by_age = (route.created, &route.key.namespace, &route.key.name, route.key.kind);
    let by_place = (entry.rule_index, entry.match_index, entry.name_index);
    (entry.server_name().is_none(), is_virtual, Reverse(name), by_age, by_place)
}
