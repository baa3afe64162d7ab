//! Refusals to plant: in the thread that calls, or in the namespaces that the test is alone in.

use std::collections::BTreeMap;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::mount::{MsFlags, mount};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What this thread starts has no privileges, as an ordinary user's programs have none; but for the one without which
/// this user, who is 0 here, may not be mapped as 0 again (user_namespaces(7), "Defining user and group ID mappings").
pub fn no_capabilities() {
    let all = caps::runtime::thread_all_supported();
    for capability in all.into_iter().filter(|capability| *capability != Capability::CAP_SETFCAP) {
        caps::drop(None, CapSet::Bounding, capability).expect("to drop a capability");
    }
    caps::clear(None, CapSet::Inheritable).expect("to drop capabilities");
}

/// What the default profiles of container engines do about namespaces: making one is not permitted, by whichever call.
pub fn container_filter() {
    let namespaces = [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWNS, libc::CLONE_NEWPID];
    let with_flag = |flag: libc::c_int| {
        let flag = u64::try_from(flag).expect("a flag");
        rule(0, SeccompCmpOp::MaskedEq(flag), flag)
    };
    let refused = [
        (libc::SYS_unshare, Vec::new()),
        (libc::SYS_setns, Vec::new()),
        (libc::SYS_mount, Vec::new()),
        (libc::SYS_clone, namespaces.map(with_flag).to_vec()),
    ];
    filter(refused.into(), libc::EPERM);
    // Its flags are out of a filter's sight, so that libraries are to fall back to clone.
    filter([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS);
}

/// What a kernel that was started with `ipv6.disable=1` says.
pub fn no_ipv6() {
    let family = u64::try_from(libc::AF_INET6).expect("a family");
    filter([(libc::SYS_socket, vec![rule(0, SeccompCmpOp::Eq, family)])].into(), libc::EAFNOSUPPORT);
}

fn rule(argument: u8, compare: SeccompCmpOp, value: u64) -> SeccompRule {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value).expect("a condition");
    SeccompRule::new(vec![condition]).expect("a rule")
}

/// The calls that match fail with `errno`.
fn filter(calls: BTreeMap<libc::c_long, Vec<SeccompRule>>, errno: libc::c_int) {
    let errno = u32::try_from(errno).expect("a number");
    let arch = std::env::consts::ARCH.try_into().expect("an architecture with filters");
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, SeccompAction::Errno(errno), arch);
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    seccompiler::apply_filter(&program).expect("a filter is accepted");
}

/// Sets a limit of this user namespace, and returns what it was.
pub fn limit(name: &str, value: u64) -> u64 {
    let path = Path::new("/proc/sys/user").join(name);
    let before = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    std::fs::write(&path, value.to_string()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    before.trim().parse().expect("a number")
}

/// Makes what is under a path read-only.
pub fn read_only(path: &str) {
    bind(path, path);
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>).expect("to make it read-only");
}

/// Covers a file, as container engines do to what they do not want to be seen.
pub fn masked(path: &str) {
    bind("/dev/null", path);
}

fn bind(from: &str, over: &str) {
    mount(Some(from), over, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .unwrap_or_else(|error| panic!("to bind {from} over {over}: {error}"));
}
