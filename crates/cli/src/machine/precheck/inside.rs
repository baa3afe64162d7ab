//! The operations themselves, in processes that are thrown away: one that makes namespaces, and process 1 inside them.
//!
//! Each outcome is a line of JSON on standard output, said before the next operation is tried: a child that is killed
//! has said all before it.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getegid, geteuid};
use socket2::{Domain, Protocol, Socket, Type};
use stillmesh_netlink::nft::{
    self, Batch, Chain, Expr, Family, Field, Hook, Kind, NatTarget, Rule, Table, any_of, eq, masquerade, redirect,
    reject_tcp_reset, set_ct_mark,
};
use stillmesh_netlink::route::{LinkKind, Route, RoutingRule, Rtnl, Veth};
use stillmesh_runtime::sys::netns::Netns;

use super::{Line, Outcome};
use crate::machine::bootstrap::{mount_proc, mount_tmpfs};
use crate::machine::init;

/// Runs the operations of one process: `user` and `root` make namespaces (with and without a user namespace), `inside`
/// is process 1 in them.
pub fn probe(what: &str) -> anyhow::Result<ExitCode> {
    init::unblock_signals();
    set_pdeathsig(Signal::SIGKILL)?;
    if what == "inside" {
        inside();
        return Ok(ExitCode::SUCCESS);
    }
    if !outside(what == "user") {
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = std::process::Command::new(crate::machine::bootstrap::SELF);
    command.args(["internal", "probe", "inside"]);
    Ok(ExitCode::from(init::run(&mut command)?))
}

/// Whether all namespaces are there.
fn outside(user_namespace: bool) -> bool {
    if user_namespace {
        let (uid, gid) = (geteuid(), getegid());
        let maps = || -> anyhow::Result<()> {
            std::fs::write("/proc/self/setgroups", "deny")?;
            std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            Ok(std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?)
        };
        if !attempt("user-namespace", || Ok(unshare(CloneFlags::CLONE_NEWUSER)?)) || !attempt("id-maps", maps) {
            return false;
        }
        // The new credentials have cleared it.
        let _ = set_pdeathsig(Signal::SIGKILL);
    }
    let namespaces = [
        ("network-namespace", CloneFlags::CLONE_NEWNET),
        ("mount-namespace", CloneFlags::CLONE_NEWNS),
        ("host-name-namespace", CloneFlags::CLONE_NEWUTS),
        ("ipc-namespace", CloneFlags::CLONE_NEWIPC),
        ("process-namespace", CloneFlags::CLONE_NEWPID),
    ];
    let private = || Ok(mount::<str, str, str, str>(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?);
    namespaces.into_iter().all(|(id, flag)| attempt(id, || Ok(unshare(flag)?))) && attempt("private-mounts", private)
}

/// Everything inside the namespaces. What is refused does not keep the others from being tried.
fn inside() {
    attempt("fresh-proc", mount_proc);
    attempt("tmpfs", || mount_tmpfs("/run"));
    attempt("bind-mount", || {
        std::fs::write("/run/one", "1")?;
        std::fs::write("/run/other", "2")?;
        Ok(mount(Some("/run/one"), "/run/other", None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    });
    attempt("namespace-file", || Ok(Netns::create()?.bind_to(Path::new("/run/netns"))?));
    attempt("host-name", || Ok(nix::unistd::sethostname("stillmesh")?));
    attempt("veth", || {
        let other = Netns::create()?;
        let peer_netns = Some(other.as_fd());
        let veth = Veth { name: "v0", peer_name: "eth0", peer_netns, mtu: None, mac: None, peer_mac: None };
        Ok(Rtnl::open()?.add_veth(&veth)?)
    });
    attempt("bridge", || Ok(Rtnl::open()?.add_link("b0", LinkKind::Bridge)?));
    attempt("forwarding", || Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?));
    attempt("policy-routing", || {
        let mut rtnl = Rtnl::open()?;
        rtnl.set_loopback_up()?;
        rtnl.add_rule(&RoutingRule { ipv6: false, priority: 32764, mark: Some((0x111, 0xfff)), table: 100 })?;
        Ok(rtnl.add_route(&Route::to("0.0.0.0/0".parse()?).dev(1).local().table(100))?)
    });
    if attempt("nftables", || apply(Table::new(Family::Inet, "probe"))) {
        firewall();
    }
    attempt("transparent", || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_ip_transparent_v4(true)?;
        socket.set_mark(0x539)?;
        Ok(socket.bind(&std::net::SocketAddr::from((Ipv4Addr::new(198, 51, 100, 1), 0)).into())?)
    });
    attempt("packet-socket", || {
        Socket::new(Domain::PACKET, Type::RAW, None)?;
        Ok(())
    });
    attempt("ipv6", || {
        std::net::TcpListener::bind("[::1]:0")?;
        Ok(())
    });
}

fn firewall() {
    let nat = |hook, exprs: Vec<Expr>| {
        let chain = Chain::base("probe", Kind::Nat, hook, -100);
        Table::new(Family::Inet, "probe").chain(if exprs.is_empty() { chain } else { chain.rule(Rule::new(exprs)) })
    };
    let tcp = || eq(Field::L4Proto, nft::TCP);
    let dnat = || {
        let target = NatTarget::Address { ip: Ipv4Addr::new(10, 0, 0, 1).into(), port: Some(1) };
        vec![eq(Field::NfProto, 2u8), tcp(), Expr::Dnat(target)]
    };
    attempt("nft-nat", || apply(nat(Hook::Output, Vec::new())));
    attempt("nft-redirect", || apply(nat(Hook::Output, vec![tcp(), redirect(15001)])));
    attempt("nft-dnat", || apply(nat(Hook::Output, dnat())));
    attempt("nft-masquerade", || apply(nat(Hook::Postrouting, vec![masquerade()])));
    let filter = |exprs: Vec<Expr>| {
        let chain = Chain::base("probe", Kind::Filter, Hook::Output, 0).rule(Rule::new(exprs));
        Table::new(Family::Inet, "probe").chain(chain)
    };
    attempt("nft-conntrack", || apply(filter(vec![any_of(Field::CtState, Field::NEW), set_ct_mark(0x111, 0xfff)])));
    attempt("nft-reject", || apply(filter(vec![tcp(), reject_tcp_reset()])));
}

fn apply(table: Table) -> anyhow::Result<()> {
    let mut batch = Batch::new();
    batch.replace_table(&table);
    Ok(nft::apply(&batch)?)
}

/// Tries one operation and says how it went.
fn attempt(id: &str, operation: impl FnOnce() -> anyhow::Result<()>) -> bool {
    let outcome = match operation() {
        Ok(()) => Outcome::Works,
        Err(error) => Outcome::Refused { error: format!("{error:#}"), errno: errno(&error) },
    };
    let works = outcome == Outcome::Works;
    let line = Line { id: id.to_owned(), outcome };
    let mut out = std::io::stdout().lock();
    // Nobody reading means that nobody cares any more.
    let _ = serde_json::to_string(&line).map(|text| writeln!(out, "{text}").and_then(|()| out.flush()));
    works
}

/// The number of the first system error in the chain of causes.
fn errno(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        io.or_else(|| cause.downcast_ref::<nix::Error>().map(|errno| *errno as i32))
    })
}
