//! What to change when an operation is refused. Pure but for [`Facts::gather`], which reads what the kernel tells
//! everybody.

/// What the host says of itself that tells one cause of a refusal from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Root's privileges over mounts and networks: no user namespace is needed.
    pub privileged: bool,
    /// `kernel.unprivileged_userns_clone` (Debian's and others' patch).
    pub unprivileged_userns_clone: Option<i64>,
    /// `user.max_user_namespaces`.
    pub max_user_namespaces: Option<i64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` (Ubuntu 23.10 and later).
    pub apparmor_restricts: Option<i64>,
    /// A seccomp filter is on this process.
    pub seccomp: bool,
    /// In a container of Docker, Podman or Kubernetes.
    pub container: bool,
}

impl Facts {
    /// Reads them.
    pub fn gather() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default().to_owned()
        };
        let capabilities = u64::from_str_radix(&field("CapEff:"), 16).unwrap_or(0);
        let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse().ok();
        let exists = |path: &str| std::path::Path::new(path).exists();
        Self {
            privileged: nix::unistd::geteuid().is_root() && NEEDED.iter().all(|bit| capabilities & (1 << bit) != 0),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            seccomp: field("Seccomp:") == "2",
            container: exists("/.dockerenv")
                || exists("/run/.containerenv")
                || exists("/var/run/secrets/kubernetes.io/serviceaccount"),
        }
    }
}

/// CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW.
const NEEDED: [u32; 3] = [21, 12, 13];

const EPERM: i32 = 1;
const ENOSPC: i32 = 28;
const ENOSYS: i32 = 38;
const EROFS: i32 = 30;
const EACCES: i32 = 13;

const DOCKER: &str = "in a container: docker run --privileged …, or at least\n  --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined --cap-add SYS_ADMIN --cap-add NET_ADMIN";

/// What mends a refusal: one line per thing to try, the likeliest first.
pub fn remedy(id: &str, errno: Option<i32>, error: &str, facts: &Facts) -> String {
    match id {
        "user-namespace" => user_namespace(errno, facts),
        "id-maps" | "network-namespace" | "mount-namespace" | "host-name-namespace" | "ipc-namespace"
        | "process-namespace" | "private-mounts" | "tmpfs" | "bind-mount" | "host-name" | "namespace-file" => {
            privilege(id, errno, facts)
        }
        "fresh-proc" => {
            "parts of /proc are masked or read-only, so the kernel gives no new one to a user namespace\n\
             in a container: docker run --security-opt systempaths=unconfined … (podman: --security-opt unmask=ALL; Kubernetes: procMount: Unmasked)\n\
             else unmount what covers /proc: findmnt -R /proc"
                .to_owned()
        }
        "forwarding" => match errno {
            Some(EROFS | EACCES | EPERM) => format!(
                "/proc/sys is read-only\n{}",
                if facts.container {
                    "in a container: docker run --security-opt systempaths=unconfined …, or --privileged"
                } else {
                    "mount -o remount,rw /proc/sys"
                }
            ),
            _ => "the kernel has no IPv4 forwarding here".to_owned(),
        },
        "veth" if errno == Some(ENOSPC) => privilege(id, errno, facts),
        "veth" => module(errno, facts, "veth"),
        "bridge" => module(errno, facts, "bridge"),
        "nftables" => module(errno, facts, "nf_tables"),
        "nft-nat" => module(errno, facts, "nft_chain_nat"),
        "nft-redirect" => module(errno, facts, "nft_redir"),
        "nft-dnat" => module(errno, facts, "nft_nat"),
        "nft-masquerade" => module(errno, facts, "nft_masq"),
        "nft-conntrack" => module(errno, facts, "nft_ct nf_conntrack"),
        "nft-reject" => module(errno, facts, "nft_reject_inet nft_reject"),
        "policy-routing" => "the kernel needs CONFIG_IP_MULTIPLE_TABLES".to_owned(),
        "packet-socket" => module(errno, facts, "af_packet"),
        "transparent" => privilege(id, errno, facts),
        "ipv6" => "IPv6 is off; the mesh runs with IPv4 alone. To have it: sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0 (or no ipv6.disable=1 on the kernel's command line)".to_owned(),
        _ => error.to_owned(),
    }
}

fn user_namespace(errno: Option<i32>, facts: &Facts) -> String {
    let mut lines = Vec::new();
    if facts.unprivileged_userns_clone == Some(0) {
        lines.push("sysctl -w kernel.unprivileged_userns_clone=1".to_owned());
    }
    if facts.max_user_namespaces == Some(0) || errno == Some(ENOSPC) {
        lines.push("sysctl -w user.max_user_namespaces=15000".to_owned());
    }
    if facts.seccomp && errno == Some(EPERM) && lines.is_empty() {
        lines.push(SECCOMP.to_owned());
        lines.push(DOCKER.to_owned());
    }
    if facts.apparmor_restricts.is_some_and(|value| value != 0) {
        lines.push(APPARMOR.to_owned());
    }
    if lines.is_empty() && errno == Some(ENOSYS) {
        lines.push("the kernel is built without CONFIG_USER_NS".to_owned());
    }
    if lines.is_empty() {
        lines.push("a security module or container engine refuses user namespaces".to_owned());
        lines.push(DOCKER.to_owned());
    }
    lines.push("or run it as root, which needs no user namespace".to_owned());
    lines.join("\n")
}

const SECCOMP: &str = "a seccomp filter refuses it, as the default profiles of container engines do";

const APPARMOR: &str = "AppArmor grants user namespaces without capabilities to programs that have no profile:\n  sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n  or, for this program alone, /etc/apparmor.d/stillmesh: abi <abi/4.0>, profile stillmesh /**/stillmesh flags=(unconfined) { userns, }  then apparmor_parser -r /etc/apparmor.d/stillmesh";

fn privilege(id: &str, errno: Option<i32>, facts: &Facts) -> String {
    if errno == Some(ENOSPC)
        && let Some(kind) = limited(id)
    {
        return format!("sysctl -w user.max_{kind}_namespaces=15000");
    }
    if errno == Some(ENOSYS) || errno == Some(22) {
        return "the kernel is built without it".to_owned();
    }
    let mut lines = Vec::new();
    if facts.seccomp && errno == Some(EPERM) {
        lines.push(SECCOMP);
    }
    if !facts.privileged && facts.apparmor_restricts.is_some_and(|value| value != 0) {
        lines.push(APPARMOR);
    }
    if facts.seccomp || facts.container || lines.is_empty() {
        lines.push(DOCKER);
    }
    if !facts.privileged {
        lines.push("or run it as root");
    }
    lines.join("\n")
}

/// The kind of namespace that an operation makes, as its limit is named.
fn limited(id: &str) -> Option<&'static str> {
    match id {
        // A pod's namespace, beside the mesh's own.
        "network-namespace" | "namespace-file" | "veth" => Some("net"),
        "mount-namespace" => Some("mnt"),
        "host-name-namespace" => Some("uts"),
        "ipc-namespace" => Some("ipc"),
        "process-namespace" => Some("pid"),
        _ => None,
    }
}

/// A feature of the kernel that may be a module nobody has loaded: a user namespace may not load it itself.
fn module(errno: Option<i32>, facts: &Facts, modules: &str) -> String {
    let load = format!(
        "modprobe -a {modules}   (as root, on the host; to keep it: echo {modules} | tr ' ' '\\n' > /etc/modules-load.d/stillmesh.conf)"
    );
    match errno {
        Some(EPERM) => format!("{}\n{load}", privilege("", errno, facts)),
        _ => load,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_that_is_off_is_the_one_named() {
        let off = |facts: Facts| user_namespace(Some(EPERM), &facts);
        assert!(
            off(Facts { unprivileged_userns_clone: Some(0), ..Facts::default() })
                .contains("unprivileged_userns_clone=1")
        );
        assert!(off(Facts { max_user_namespaces: Some(0), ..Facts::default() }).contains("max_user_namespaces=15000"));
        assert!(off(Facts { apparmor_restricts: Some(1), ..Facts::default() }).contains("/etc/apparmor.d/stillmesh"));
        assert!(off(Facts { seccomp: true, ..Facts::default() }).contains("seccomp=unconfined"));
    }

    #[test]
    fn apparmor_is_named_only_where_it_restricts() {
        let refused = |facts: Facts| remedy("private-mounts", Some(EPERM), "", &facts);
        assert!(!refused(Facts::default()).contains("AppArmor"));
        assert!(!refused(Facts { apparmor_restricts: Some(0), ..Facts::default() }).contains("AppArmor"));
        assert!(refused(Facts { apparmor_restricts: Some(1), ..Facts::default() }).contains("AppArmor"));
        let both = Facts { apparmor_restricts: Some(1), seccomp: true, ..Facts::default() };
        for text in [refused(both.clone()), user_namespace(Some(EPERM), &both)] {
            assert!(text.contains("AppArmor") && text.contains("seccomp=unconfined"), "{text}");
        }
    }

    #[test]
    fn a_limit_that_is_reached_by_a_pods_namespace_is_named() {
        for id in ["namespace-file", "veth"] {
            let text = remedy(id, Some(ENOSPC), "", &Facts::default());
            assert_eq!(text, "sysctl -w user.max_net_namespaces=15000");
        }
    }

    #[test]
    fn every_operation_has_a_remedy() {
        for operation in super::super::OPERATIONS {
            for errno in [None, Some(EPERM), Some(ENOSPC), Some(2), Some(EROFS)] {
                assert!(!remedy(operation.id, errno, "x", &Facts::default()).is_empty(), "{}", operation.id);
            }
        }
    }

    #[test]
    fn a_missing_kernel_module_is_named_for_modprobe() {
        assert!(remedy("nft-nat", Some(2), "", &Facts::default()).contains("modprobe -a nft_chain_nat"));
    }
}
