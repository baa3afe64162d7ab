//! Puts a [`RulePlan`] in place in the network namespace of the calling thread, and takes it out.
//!
//! Everything here is synchronous, may be repeated, and does nothing where the kernel already has what is asked.
//! Called from a thread that lives in the pod's namespace, never from the agent's own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use stillmesh_core::diagnose::{Diagnose, Fault};
use stillmesh_netlink::nft::{self, Batch, Expr, Field};
use stillmesh_netlink::route::{Route, RouteKind, RoutingRule, Rtnl};

use super::model::{self, Action, ChainKind, Family, Hook, Match, RulePlan};
use super::plan::{self, Facts, Ipv6};
use super::plan::{
    GUARD_TABLE, MANGLE_TABLE, NAT_TABLE, OUTPUT_CHAIN, RAW_TABLE, REPLY_MARK, REPLY_RULE_PRIORITY, REPLY_TABLE,
};

/// Rules or routes of a pod that could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {task} in the pod's network namespace")]
pub struct ApplyError {
    /// What was being done.
    task: &'static str,
    /// What the kernel said.
    #[source]
    source: stillmesh_netlink::Error,
}

impl Diagnose for ApplyError {
    fn code(&self) -> &'static str {
        "CNI001"
    }
    fn fault(&self) -> Fault {
        Fault::Internal
    }
    fn remedy(&self) -> &'static str {
        "check that the agent has CAP_NET_ADMIN in the pod's namespace and that the kernel has nf_tables with nat"
    }
}

/// Whether anything had to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel had it already.
    Unchanged,
    /// It was put in place.
    Changed,
}

/// What is in place in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whether IPv6 is usable there.
    pub ipv6: Ipv6,
    /// What of the capture rules is there.
    pub rules: FoundRules,
    /// Whether the guard is there.
    pub guard: bool,
}

/// What of a pod's capture rules is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundRules {
    /// None of our tables.
    Nothing,
    /// Exactly those of the plan in force.
    Capturing,
    /// Exactly those of a pod that leaves.
    Leaving,
    /// Redirects of ours that are not those wanted now: another version's, or for other facts.
    Different,
    /// Parts of ours that do not capture.
    Damaged,
}

/// Puts all of the plan in place. Tables go in one transaction, after the routes that they rely on.
pub fn install(plan: &RulePlan) -> Result<Outcome, ApplyError> {
    migrate_connections();
    let routes = install_routes(plan)?;
    let mut batch = Batch::new();
    let mut wrong = false;
    for table in lowered(plan) {
        if !nft::differences(&table).map_err(failed("read the rules"))?.is_empty() {
            wrong = true;
            batch.replace_table(&table);
        }
    }
    let kept: Vec<&str> = plan.tables.iter().map(|table| table.name).collect();
    if !kept.contains(&GUARD_TABLE) {
        for name in present()?.into_iter().filter(|name| !kept.contains(name)) {
            wrong = true;
            batch.delete_table(nft::Family::Inet, name);
        }
    }
    if wrong {
        nft::apply(&batch).map_err(failed("install the rules"))?;
    }
    Ok(if wrong || routes == Outcome::Changed { Outcome::Changed } else { Outcome::Unchanged })
}

/// Where two ztunnels listen on one port, connections that wait for the one that closes its listener go to the other:
/// without this the kernel resets them. A container may write to the host's proc only.
fn migrate_connections() {
    let written =
        ["/host/proc", "/proc"].map(|proc| std::fs::write(format!("{proc}/sys/net/ipv4/tcp_migrate_req"), "1"));
    if let [Err(_), Err(error)] = written {
        tracing::debug!(%error, "an upgrade of ztunnel that hands no listeners over may reset connections");
    }
}

/// Takes the capture rules and routes out, in one transaction; the guard stays. Nothing there is fine.
pub fn remove() -> Result<Outcome, ApplyError> {
    let found = present()?;
    if !found.is_empty() {
        let mut batch = Batch::new();
        for name in &found {
            batch.delete_table(nft::Family::Inet, name);
        }
        nft::apply(&batch).map_err(failed("remove the rules"))?;
    }
    let routes = remove_routes()?;
    Ok(if found.is_empty() { routes } else { Outcome::Changed })
}

/// Puts the guard up.
pub fn raise_guard(facts: &Facts) -> Result<Outcome, ApplyError> {
    install(&plan::guard(facts))
}

/// Takes the guard down. Not there is fine.
pub fn lower_guard() -> Result<Outcome, ApplyError> {
    if !has_table(GUARD_TABLE)? {
        return Ok(Outcome::Unchanged);
    }
    let mut batch = Batch::new();
    batch.delete_table(nft::Family::Inet, GUARD_TABLE);
    nft::apply(&batch).map_err(failed("take the guard down"))?;
    Ok(Outcome::Changed)
}

/// Looks at what is in place. `facts` as known so far; whether there is IPv6 is found out here.
pub fn inspect(facts: &Facts) -> Result<Found, ApplyError> {
    let facts = Facts { ipv6: ipv6(), ..facts.clone() };
    let rules = if matches(&plan::capture(&facts))? {
        FoundRules::Capturing
    } else if present()?.is_empty() {
        FoundRules::Nothing
    } else if matches(&plan::leave(&facts))? {
        FoundRules::Leaving
    } else if redirects()? {
        FoundRules::Different
    } else {
        FoundRules::Damaged
    };
    let guard = has_table(GUARD_TABLE)?;
    Ok(Found { ipv6: facts.ipv6, rules, guard })
}

/// How the kernel differs from the plan, one line each; nothing if it does not.
pub fn differences(plan: &RulePlan) -> Result<Vec<String>, ApplyError> {
    let mut lines = Vec::new();
    for table in lowered(plan) {
        lines.extend(nft::differences(&table).map_err(failed("read the rules"))?);
    }
    let mut rtnl = rtnl()?;
    let rules = rtnl.rules().map_err(failed("read the routing rules"))?;
    let routes = rtnl.routes(Some(REPLY_TABLE)).map_err(failed("read the routes"))?;
    for family in &plan.reply_routes {
        if !rules.contains(&reply_rule(*family)) {
            lines.push(format!("no routing rule for marked replies ({family:?})"));
        }
        if !routes.iter().any(|route| is_reply_route(route, *family)) {
            lines.push(format!("no local route for marked replies ({family:?})"));
        }
    }
    Ok(lines)
}

fn matches(plan: &RulePlan) -> Result<bool, ApplyError> {
    Ok(differences(plan)?.is_empty())
}

/// Whether IPv6 can be used in the calling thread's namespace (`/proc/sys/net` shows that of the reading thread).
fn ipv6() -> Ipv6 {
    match std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6") {
        Ok(text) if text.trim() == "1" => Ipv6::Off,
        Ok(_) => Ipv6::On,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ipv6::Off,
        // A masked /proc says nothing; rules for a family that is not used do no harm.
        Err(_) => Ipv6::On,
    }
}

/// Whether there are any rules in the chain that redirects what the pod opens.
fn redirects() -> Result<bool, ApplyError> {
    let rules = nft::list(nft::Family::Inet, NAT_TABLE).map_err(failed("read the rules"))?;
    Ok(["output", OUTPUT_CHAIN].iter().all(|chain| rules.iter().any(|rule| rule.chain == *chain)))
}

/// Names of our capture tables that are there.
fn present() -> Result<Vec<&'static str>, ApplyError> {
    let tables = nft::tables().map_err(failed("list the tables"))?;
    let there = |name: &&str| tables.iter().any(|table| table.family == nft::Family::Inet && table.name == *name);
    Ok([NAT_TABLE, MANGLE_TABLE, RAW_TABLE].into_iter().filter(there).collect())
}

fn has_table(name: &str) -> Result<bool, ApplyError> {
    let tables = nft::tables().map_err(failed("list the tables"))?;
    Ok(tables.iter().any(|table| table.family == nft::Family::Inet && table.name == name))
}

fn install_routes(plan: &RulePlan) -> Result<Outcome, ApplyError> {
    if plan.reply_routes.is_empty() {
        return Ok(Outcome::Unchanged);
    }
    let mut rtnl = rtnl()?;
    let loopback = loopback_index(&mut rtnl)?;
    let rules = rtnl.rules().map_err(failed("read the routing rules"))?;
    let routes = rtnl.routes(Some(REPLY_TABLE)).map_err(failed("read the routes"))?;
    let mut outcome = Outcome::Unchanged;
    for family in &plan.reply_routes {
        if !routes.iter().any(|route| is_reply_route(route, *family)) {
            let route = reply_route(*family).dev(loopback);
            rtnl.add_route(&route).map_err(failed("add the route for replies"))?;
            outcome = Outcome::Changed;
        }
        let rule = reply_rule(*family);
        if !rules.contains(&rule) {
            rtnl.add_rule(&rule).map_err(failed("add the routing rule for replies"))?;
            outcome = Outcome::Changed;
        }
    }
    Ok(outcome)
}

fn remove_routes() -> Result<Outcome, ApplyError> {
    let mut rtnl = rtnl()?;
    let mut outcome = Outcome::Unchanged;
    let rules = rtnl.rules().map_err(failed("read the routing rules"))?;
    let routes = rtnl.routes(Some(REPLY_TABLE)).map_err(failed("read the routes"))?;
    for family in [Family::V4, Family::V6] {
        let rule = reply_rule(family);
        if rules.contains(&rule) {
            rtnl.delete_rule(&rule).map_err(failed("delete the routing rule for replies"))?;
            outcome = Outcome::Changed;
        }
        for route in routes.iter().filter(|route| is_reply_route(route, family)) {
            rtnl.delete_route(route).map_err(failed("delete the route for replies"))?;
            outcome = Outcome::Changed;
        }
    }
    Ok(outcome)
}

fn rtnl() -> Result<Rtnl, ApplyError> {
    Rtnl::open().map_err(failed("open rtnetlink"))
}

/// Switches the loopback device on, which it is in every pod: a route needs one that is up.
pub fn loopback_up() -> Result<(), ApplyError> {
    rtnl()?.set_loopback_up().map_err(failed("switch the loopback device on"))
}

fn loopback_index(rtnl: &mut Rtnl) -> Result<u32, ApplyError> {
    let links = rtnl.links().map_err(failed("list the links"))?;
    // lo is the first device of every namespace.
    Ok(links.iter().find(|link| link.name == "lo").map_or(1, |link| link.index))
}

fn reply_rule(family: Family) -> RoutingRule {
    RoutingRule {
        ipv6: family == Family::V6,
        priority: REPLY_RULE_PRIORITY,
        mark: Some((REPLY_MARK.value, REPLY_MARK.mask)),
        table: REPLY_TABLE,
    }
}

fn reply_route(family: Family) -> Route {
    Route::to(everything(family)).local().table(REPLY_TABLE)
}

fn is_reply_route(route: &Route, family: Family) -> bool {
    route.table == REPLY_TABLE && route.kind == RouteKind::Local && route.destination == everything(family)
}

fn everything(family: Family) -> IpNet {
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new_assert(address, 0)
}

fn failed(task: &'static str) -> impl FnOnce(stillmesh_netlink::Error) -> ApplyError {
    move |source| ApplyError { task, source }
}

/// The plan in the terms of the encoder.
fn lowered(plan: &RulePlan) -> Vec<nft::Table> {
    plan.tables.iter().map(table).collect()
}

fn table(table: &model::Table) -> nft::Table {
    table.chains.iter().map(chain).fold(nft::Table::new(nft::Family::Inet, table.name), nft::Table::chain)
}

fn chain(chain: &model::Chain) -> nft::Chain {
    let lowered = match chain.base {
        None => nft::Chain::new(chain.name),
        Some(base) => {
            let kind = match base.kind {
                ChainKind::Filter => nft::Kind::Filter,
                ChainKind::Route => nft::Kind::Route,
                ChainKind::Nat => nft::Kind::Nat,
            };
            let hook = match base.hook {
                Hook::Prerouting => nft::Hook::Prerouting,
                Hook::Output => nft::Hook::Output,
            };
            nft::Chain::base(chain.name, kind, hook, base.priority)
        }
    };
    lowered.rules(chain.rules.iter().map(rule))
}

fn rule(rule: &model::Rule) -> nft::Rule {
    let udp = rule.matches.contains(&Match::Udp);
    let matches = rule.matches.iter().map(|condition| condition_expr(condition, udp));
    nft::Rule::new(matches.chain([nft::counter(), action(&rule.action)]))
}

/// SYN and ACK.
const SYN_ACK_MASK: u8 = 0x12;
const IPV4_FAMILY: u8 = 2;
const IPV6_FAMILY: u8 = 10;

fn condition_expr(condition: &Match, udp: bool) -> Expr {
    let source_port = if udp { Field::UdpSport } else { Field::TcpSport };
    let destination_port = if udp { Field::UdpDport } else { Field::TcpDport };
    match condition {
        Match::From(interface) => nft::eq(Field::IifName, interface.as_str()),
        Match::FromLoopback => nft::eq(Field::IifName, "lo"),
        Match::ToLoopback => nft::eq(Field::OifName, "lo"),
        Match::NotToLoopback => nft::ne(Field::OifName, "lo"),
        Match::Is(Family::V4) => nft::eq(Field::NfProto, IPV4_FAMILY),
        Match::Is(Family::V6) => nft::eq(Field::NfProto, IPV6_FAMILY),
        Match::Tcp => nft::eq(Field::L4Proto, nft::TCP),
        Match::Udp => nft::eq(Field::L4Proto, nft::UDP),
        Match::OpeningSyn => nft::syn_only(),
        Match::AnySyn => nft::masked_eq(Field::TcpFlags, SYN_ACK_MASK, nft::SYN),
        Match::SynAck => nft::masked_eq(Field::TcpFlags, SYN_ACK_MASK, SYN_ACK_MASK),
        Match::Source(address) => nft::eq(source_field(address), *address),
        Match::Destination(address) => nft::eq(destination_field(address), *address),
        Match::NotDestination(address) => nft::ne(destination_field(address), *address),
        Match::SourcePort(port) => nft::eq(source_port, *port),
        Match::DestinationPort(port) => nft::eq(destination_port, *port),
        Match::NotDestinationPort(port) => nft::ne(destination_port, *port),
        // Either value: a packet that no socket is there for does not come so far.
        Match::Served => nft::ne(Field::SocketTransparent, 2_u8),
        Match::Marked(mark) => nft::masked_eq(Field::MetaMark, mark.mask, mark.value),
        Match::NotMarked(mark) => nft::masked_ne(Field::MetaMark, mark.mask, mark.value),
        Match::ConnectionMarked(mark) => nft::masked_eq(Field::CtMark, mark.mask, mark.value),
        Match::ConnectionInvalid => nft::any_of(Field::CtState, Field::INVALID),
    }
}

fn source_field(address: &IpAddr) -> Field {
    if address.is_ipv4() { Field::IpSaddr } else { Field::Ip6Saddr }
}

fn destination_field(address: &IpAddr) -> Field {
    if address.is_ipv4() { Field::IpDaddr } else { Field::Ip6Daddr }
}

fn action(action: &Action) -> Expr {
    match action {
        Action::Accept => nft::accept(),
        Action::Drop => nft::drop(),
        Action::Reset => nft::reject_tcp_reset(),
        Action::Return => nft::ret(),
        Action::Jump(chain) => nft::jump(*chain),
        Action::Redirect(port) => nft::redirect(*port),
        Action::MarkConnection(mark) => nft::set_ct_mark(mark.value, mark.mask),
        Action::RestoreMark => Expr::SetMetaMark { source: nft::MarkSource::OtherMark },
        Action::Zone(zone) => nft::set_ct_zone(*zone),
    }
}
