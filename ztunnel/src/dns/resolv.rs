//! ztunnel's own resolvers and search domains, from `/etc/resolv.conf` (resolv.conf(5)). The parser is pure.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolv {
    /// Name servers, at most three.
    pub servers: Vec<SocketAddr>,
    /// Search domains.
    pub search: Vec<String>,
}

impl Resolv {
    /// Where it is.
    pub const PATH: &'static str = "/etc/resolv.conf";

    /// Reads the file; one that is not there is empty.
    pub fn read(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "no resolvers: names outside the mesh cannot be resolved");
                Self::default()
            }
        }
    }

    /// Understands the file's text; what it does not know it leaves out.
    pub fn parse(text: &str) -> Self {
        const MOST_SERVERS: usize = 3;
        let mut resolv = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if resolv.servers.len() < MOST_SERVERS => {
                    let address = words.next().and_then(|word| word.split('%').next()?.parse::<IpAddr>().ok());
                    resolv.servers.extend(address.map(|address| SocketAddr::new(address, 53)));
                }
                Some("search" | "domain") => resolv.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_the_last_search_line_are_read() {
        let resolv = Resolv::parse(
            "# a comment\nsearch old\nnameserver 10.96.0.10\nnameserver fd00:96::a # second\nnameserver nonsense\n\
             search shop.svc.cluster.local svc.cluster.local\noptions ndots:5\n",
        );
        let servers: Vec<_> = resolv.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.96.0.10:53", "[fd00:96::a]:53"]);
        assert_eq!(resolv.search, ["shop.svc.cluster.local", "svc.cluster.local"]);
    }
}
