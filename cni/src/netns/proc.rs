//! Namespaces of running pods, found through their processes: `/proc/PID/ns/net` is the namespace, `/proc/PID/cgroup`
//! names the pod.
//!
//! One pass over the processes serves all pods that are looked for. It costs one `readlink` per process, and reads the
//! cgroup only of processes in namespaces that are not the node's own, until every pod is found.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use stillmesh_runtime::sys::netns::Netns;

use super::Locate;

/// Processes that one pass looks at, at most: the kernel's own limit of process numbers.
const MAX_PROCESSES: usize = 1 << 22;

/// A node's `/proc`.
#[derive(Clone, Debug)]
pub struct Processes {
    proc_dir: PathBuf,
}

impl Processes {
    /// Looks in `proc_dir`.
    pub fn new(proc_dir: impl Into<PathBuf>) -> Self {
        Self { proc_dir: proc_dir.into() }
    }

    /// For each pod its first process, where that is not on the node's network.
    fn pass(&self, uids: &HashSet<String>) -> io::Result<HashMap<String, PathBuf>> {
        let node = inode(&self.proc_dir.join("1")).ok();
        let mut found: HashMap<String, (u64, PathBuf)> = HashMap::new();
        for entry in fs::read_dir(&self.proc_dir)?.take(MAX_PROCESSES) {
            let process = entry?.path();
            let is_process = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
            if !process.file_name().and_then(|name| name.to_str()).is_some_and(is_process) {
                continue;
            }
            // Processes come and go while we look.
            let Ok(inode) = inode(&process) else { continue };
            if Some(inode) == node {
                continue;
            }
            let Some(uid) = read(&process.join("cgroup")).as_deref().and_then(pod_uid) else { continue };
            if !uids.contains(&uid) {
                continue;
            }
            // A container may hold further namespaces; that of the pod is the one of its first process.
            let Some(started) = read(&process.join("stat")).as_deref().and_then(start_time) else { continue };
            if found.get(&uid).is_none_or(|(first, _)| started < *first) {
                found.insert(uid, (started, process));
            }
        }
        Ok(found.into_iter().map(|(uid, (_, process))| (uid, process)).collect())
    }
}

impl Locate for Processes {
    fn locate(&self, uids: &HashSet<String>) -> HashMap<String, Netns> {
        if uids.is_empty() {
            return HashMap::new();
        }
        let processes = self.pass(uids).unwrap_or_else(|error| {
            tracing::warn!(path = %self.proc_dir.display(), %error, "processes cannot be listed (PROC_DIR)");
            HashMap::new()
        });
        let own = Netns::current().ok();
        let open = |(uid, process): (String, PathBuf)| match Netns::open(process.join("ns/net")) {
            Ok(netns) => (Some(&netns) != own.as_ref()).then_some((uid, netns)),
            Err(error) => {
                tracing::debug!(uid, %error, "a process ended while its namespace was opened");
                None
            }
        };
        processes.into_iter().filter_map(open).collect()
    }
}

/// The inode in `net:[4026531840]`.
fn inode(process: &Path) -> io::Result<u64> {
    let link = fs::read_link(process.join("ns/net"))?;
    let number = link.to_str().and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Field 22 of `/proc/PID/stat`; the second field is a name in brackets that may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The pod that a process belongs to, by its cgroups: `/kubepods/burstable/podUID/CONTAINER` with the cgroupfs driver,
/// `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope` with systemd's,
/// where hyphens of the UID are underscores; in version 1 once per controller. The outermost name counts: what is
/// deeper may be the container's own making.
pub fn pod_uid(cgroups: &str) -> Option<String> {
    cgroups.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        path.split('/').find_map(in_segment)
    })
}

fn in_segment(segment: &str) -> Option<String> {
    let mut rest = segment;
    let mut at_start = true;
    while let Some(place) = rest.find("pod") {
        let (before, after) = (rest.get(..place)?, rest.get(place + 3..)?);
        let begins = if before.is_empty() { at_start } else { before.ends_with('-') };
        if let Some(uid) = begins.then(|| leading_uid(after)).flatten() {
            return Some(uid);
        }
        (rest, at_start) = (after, false);
    }
    None
}

/// A UID of the API server's making (8-4-4-4-12 hexadecimal digits) or the hash that a static pod has.
fn leading_uid(text: &str) -> Option<String> {
    let end = text.find(['.', ':']).unwrap_or(text.len());
    let uid = text.get(..end)?.replace('_', "-");
    let hex = |part: &str, length: usize| part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = uid.split('-').collect();
    let known = match parts.as_slice() {
        [hash] => hex(hash, 32),
        [a, b, c, d, e] => [(a, 8), (b, 4), (c, 4), (d, 4), (e, 12)].iter().all(|(part, length)| hex(part, *length)),
        _ => false,
    };
    known.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b6e2c1a-93f4-4c55-a1d0-5f7e8d9c0b1a";

    #[test]
    fn every_form_of_a_pods_cgroup_names_the_pod() {
        let under = UID.replace('-', "_");
        for path in [
            format!("11:memory:/kubepods/burstable/pod{UID}/1f2e3d"),
            format!("3:cpu,cpuacct:/kubepods/pod{UID}/1f2e3d"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-1f.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{under}.slice/crio-1f2e.scope/container"),
            format!("0::/../../kubepods-besteffort-pod{under}.slice/cri-containerd-1f2e.scope"),
            format!("1:name=systemd:/kubepods-besteffort-pod{under}.slice:cri-containerd:1f2e"),
            format!(
                "1:name=systemd:/system.slice/containerd.service/kubepods-besteffort-pod{under}.slice:cri-containerd:1f"
            ),
            format!("0::/docker/77ab/kubelet/kubepods/besteffort/pod{UID}/1f2e"),
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice/cri-containerd-1f.scope"
            ),
        ] {
            assert_eq!(pod_uid(&path).as_deref(), Some(UID), "{path}");
        }
        let lines = format!("12:pids:/user.slice\n4:devices:/kubepods/pod{UID}/x\n0::/\n");
        assert_eq!(pod_uid(&lines).as_deref(), Some(UID));
        let static_pod = "0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/1f";
        assert_eq!(pod_uid(static_pod).as_deref(), Some("0123456789abcdef0123456789abcdef"));
    }

    #[test]
    fn what_only_looks_like_a_pod_is_none() {
        for path in [
            "0::/",
            "0::/system.slice/podman-1234.scope",
            "0::/kubepods.slice",
            "0::/kubepods/pod12",
            "0::/tripod0b6e2c1a-93f4-4c55-a1d0-5f7e8d9c0b1a",
            "0::/kubepods/pod0b6e2c1a-93f4-4c55-a1d0-5f7e8d9c0b1g/x",
            "",
        ] {
            assert_eq!(pod_uid(path), None, "{path}");
        }
    }

    #[test]
    fn a_container_cannot_pass_for_another_pod() {
        let other = "ffffffff-93f4-4c55-a1d0-5f7e8d9c0b1a";
        let path = format!("0::/kubepods/pod{UID}/1f2e/kubepods/pod{other}/x");
        assert_eq!(pod_uid(&path).as_deref(), Some(UID));
    }

    #[test]
    fn the_start_is_read_behind_any_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 4096 5";
        assert_eq!(start_time(stat), Some(98765));
        assert_eq!(start_time("42 (a"), None);
    }

    #[test]
    fn the_first_process_of_a_pod_has_its_namespace_and_the_nodes_own_is_none() {
        // Two processes of a pod in namespaces of their own, and one of another pod on the node's network.
        let other = "ffffffff-93f4-4c55-a1d0-5f7e8d9c0b1a";
        let directory = tempfile::tempdir().unwrap();
        let process = |pid: &str, link: &str, uid: &str, started: u64| {
            let path = directory.path().join(pid);
            fs::create_dir_all(path.join("ns")).unwrap();
            std::os::unix::fs::symlink(link, path.join("ns/net")).unwrap();
            fs::write(path.join("cgroup"), format!("0::/kubepods/pod{uid}/c\n")).unwrap();
            fs::write(path.join("stat"), format!("{pid} (x) S 1 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {started} 1"))
                .unwrap();
        };
        process("1", "net:[1]", "none", 1);
        process("20", "net:[7]", UID, 300);
        process("30", "net:[8]", UID, 200);
        process("40", "net:[1]", other, 100);
        fs::create_dir(directory.path().join("self")).unwrap();
        let processes = Processes::new(directory.path());
        let uids = [UID.to_owned(), other.to_owned(), "not-there".to_owned()].into();
        assert_eq!(processes.pass(&uids).unwrap(), [(UID.to_owned(), directory.path().join("30"))].into());
    }
}
