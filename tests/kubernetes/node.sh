# What a node is, for `cluster`, which sources this: its namespaces, root directory, links and components.
# shellcheck shell=bash

address4() { case $1 in cp) echo $NODES4.1 ;; n*) echo "$NODES4.1${1#n}" ;; esac; }
address6() { case $1 in cp) echo $NODES6:1 ;; n*) echo "$NODES6:1${1#n}" ;; esac; }
pods4() { echo "$PODS4.${1#n}.0/24"; }
pods6() { echo "$PODS6:${1#n}::/64"; }

start_time() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
# pid 1 of a node, as the machine sees it; empty when it is not the process that `spawn` started
pid_of() {
	local pid start
	[ -e "$STATE/$1/pid" ] || return 0
	read -r pid start < "$STATE/$1/pid" || return 0
	[ -n "$start" ] && [ "$(start_time "$pid")" = "$start" ] && echo "$pid" || true
}
nodes() { local d; for d in "$STATE"/n[0-9]*; do [ -e "$d/pid" ] && basename "$d"; done; true; }
in_ns() {
	local n=$1 p; shift
	p=$(pid_of "$n"); [ -n "$p" ] || die "$n is not running"
	nsenter -t "$p" -m -n -p -u -i -C -r -w -- "$@"
}

# The tunables that the kubelet sets are the whole machine's: kept, and put back by down.
SYSCTLS="vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes"
save_sysctls() {
	local s
	for s in $SYSCTLS; do [ -e "/proc/sys/$s" ] && echo "$s $(cat "/proc/sys/$s")"; done > "$STATE/sysctls"
}
restore_sysctls() {
	local s v
	[ -e "$STATE/sysctls" ] || return 0
	while read -r s v; do echo "$v" > "/proc/sys/$s"; done < "$STATE/sysctls"
	rm "$STATE/sysctls"
}

cgroups() { local d; for d in /sys/fs/cgroup/*/; do [ -e "$d/cgroup.procs" ] && echo "${d%/}"; done; }
cgroup_make() {
	local c d
	for c in $(cgroups); do
		for d in "$c/$CGROUP" "$c/$CGROUP/$1"; do
			mkdir -p "$d"
			[ -e "$d/cpuset.cpus" ] || continue
			cat "$(dirname "$d")/cpuset.cpus" > "$d/cpuset.cpus"; cat "$(dirname "$d")/cpuset.mems" > "$d/cpuset.mems"
		done
	done
}
cgroup_remove() { # of one node, or of all
	local c d i
	for i in $(seq 50); do
		for c in $(cgroups); do
			d=$c/$CGROUP${1:+/$1}
			[ ! -d "$d" ] || find "$d" -depth -type d -exec rmdir {} + 2>/dev/null || true
		done
		[ -n "$(find /sys/fs/cgroup/*/$CGROUP${1:+/$1} -maxdepth 0 2>/dev/null)" ] || return 0
		sleep 0.2
	done
	say "left: $(find /sys/fs/cgroup/*/$CGROUP${1:+/$1} -maxdepth 0)"
}

# Runs in the new namespaces as pid 1 and becomes the node's init script.
stage2() {
	local n=$1 r=$STATE/$1/root c d
	mount --make-rprivate /
	mkdir -p "$r"
	mount --bind "$r" "$r"
	cd "$r"
	mkdir -p usr etc var/lib var/log run tmp dev proc sys root opt/cni/bin opt/lab mnt srv home .old
	chmod 1777 tmp
	for d in bin sbin lib lib32 lib64 libx32; do [ -e "/$d" ] && [ ! -L "$d" ] && ln -s "usr/$d" "$d"; done
	[ -e etc/passwd ] || cp -a /etc/. etc/
	mkdir -p var/lib/kubelet var/lib/containerd var/lib/cni var/log/pods var/log/containers var/log/lab var/cache var/tmp etc/cni/net.d etc/kubernetes
	[ -e var/run ] || ln -s ../run var/run
	echo "$n" > etc/hostname; : > etc/resolv.conf
	printf '127.0.0.1 localhost\n::1 localhost\n%s %s\n%s %s\n' "$(address4 "$n")" "$n" "$(address6 "$n")" "$n" > etc/hosts
	cp -f /usr/lib/cni/* opt/cni/bin/
	mount --rbind /usr usr; mount -o remount,bind,ro usr
	mount -t tmpfs -o mode=755 tmpfs run
	mount --rbind /dev dev; mount --make-rslave dev
	mount -t proc proc proc
	mount -t sysfs sysfs sys
	mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
	for c in $(cgroups); do
		d=$(basename "$c"); mkdir -p "sys/fs/cgroup/$d"
		case $d in
		unified) mount -t cgroup2 cgroup2 sys/fs/cgroup/unified ;;
		systemd) mount -t cgroup -o none,name=systemd cgroup "sys/fs/cgroup/$d" ;;
		*) mount -t cgroup -o "$d" cgroup "sys/fs/cgroup/$d" ;;
		esac
	done
	mount --bind "$BIN" opt/lab
	mkdir -p run/netns run/lock run/lab
	pivot_root . .old
	umount -l /.old
	mount --make-rshared /
	cd /
	hostname "$n"
	echo 1 > /proc/sys/net/ipv4/ip_forward
	echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
	for d in all default; do echo 0 > "/proc/sys/net/ipv6/conf/$d/accept_dad"; done
	ip link set lo up
	exec /bin/bash /etc/kubernetes/init.sh
}

# Starts pid 1 of a node in new namespaces. Descriptor 9 is the machine's network namespace.
spawn() {
	local n=$1 c p= outer i
	mkdir -p "$STATE/$n/root/etc/kubernetes"
	cgroup_make "$n"
	(
		for c in $(cgroups); do echo "$BASHPID" > "$c/$CGROUP/$n/cgroup.procs"; done
		# Nothing of the caller's stays open in the node, locks least of all.
		for c in /proc/self/fd/*; do c=${c##*/}; [ "$c" -le 2 ] || [ "$c" = 255 ] || eval "exec $c>&-"; done
		exec 9< /proc/self/ns/net
		exec setsid unshare --mount --net --uts --ipc --cgroup --pid --fork --kill-child \
			env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
			K8SLAB_BIN="$BIN" K8SLAB_STATE="$STATE" "$here/cluster" __stage2 "$n"
	) </dev/null >"$STATE/$n/init.log" 2>&1 &
	outer=$!
	for i in $(seq 100); do
		# only unshare's own child counts: the shell before it forks too
		[ "$(cat "/proc/$outer/comm" 2>/dev/null)" != unshare ] || p=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null | tr -d ' ') || true
		[ -n "$p" ] && break; sleep 0.05
	done
	[ -n "$p" ] || die "$n did not start: $(cat "$STATE/$n/init.log")"
	echo "$p $(start_time "$p")" > "$STATE/$n/pid"
	disown "$outer" 2>/dev/null || true
}

# Ends pid 1: the kernel then ends every process in the node's pid namespace, and with them mounts, links and pods.
end_node() {
	local n=$1 p i
	p=$(pid_of "$n")
	[ -n "$p" ] || return 0
	kill -KILL "$p" 2>/dev/null || true
	for i in $(seq 150); do
		[ -e "/proc/$p" ] || [ -n "$(cat /sys/fs/cgroup/pids/"$CGROUP/$n"/cgroup.procs 2>/dev/null)" ] || return 0
		sleep 0.1
	done
	say "$n: pid $p is still there"
}

# The node's link to the bridge. Both ends are made inside the control plane's namespace: the machine's own is not touched.
wire() {
	local n=$1
	nsenter -t "$(pid_of cp)" -n sh -ec "
		ip link add v-$n type veth peer name eth0 netns $(pid_of "$n")
		ip link set v-$n master br0 up
		ip route replace $(pods4 "$n") via $(address4 "$n")
		ip route replace $(pods6 "$n") via $(address6 "$n")"
}

# Functions of every init script. A component is started again after it ends, unless `cluster stop` said otherwise.
supervisor='
run() { # run NAME COMMAND...
	local name=$1; shift
	( while :; do
		while [ -e "/run/lab/$name.stopped" ]; do sleep 0.2; done
		"$@" >>"/var/log/lab/$name.log" 2>&1 9<&- & echo $! > "/run/lab/$name.pid"
		wait $!; echo "[exit $?]" >>"/var/log/lab/$name.log"; sleep 1
	done ) &
}
K=/etc/kubernetes; B=/opt/lab/kube
'

control_plane_files() {
	local k=$STATE/cp/root/etc/kubernetes
	mkdir -p "$k"
	cp "$STATE"/pki/* "$k/"
	# What the mesh's own accounts ask for, so that a scenario can compare it with what they are allowed.
	cat > "$k/audit.yaml" <<-T
	apiVersion: audit.k8s.io/v1
	kind: Policy
	omitStages: [RequestReceived]
	rules:
	- {level: Metadata, userGroups: ["system:serviceaccounts:stillmesh-system"]}
	- {level: None}
	T
	cat > "$k/init.sh" <<-INIT
	$supervisor
	ip link add br0 type bridge; ip link set br0 up
	ip addr add $(address4 cp)/24 dev br0; ip addr add $(address6 cp)/64 dev br0
	mkdir -p /var/lib/etcd
	run etcd \$B etcd --name lab --data-dir /var/lib/etcd --unsafe-no-fsync --log-level warn \
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster lab=http://127.0.0.1:2380
	run kube-apiserver \$B kube-apiserver --etcd-servers http://127.0.0.1:2379 --secure-port 6443 --advertise-address $(address4 cp) \
		--service-cluster-ip-range $SERVICES --allow-privileged --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --enable-aggregator-routing \
		--tls-cert-file \$K/apiserver.crt --tls-private-key-file \$K/apiserver.key --client-ca-file \$K/ca.crt \
		--kubelet-client-certificate \$K/apiserver-kubelet-client.crt --kubelet-client-key \$K/apiserver-kubelet-client.key \
		--kubelet-preferred-address-types InternalIP --audit-policy-file \$K/audit.yaml --audit-log-path /var/log/lab/audit.log \
		--service-account-key-file \$K/sa.key --service-account-signing-key-file \$K/sa.key --service-account-issuer https://kubernetes.default.svc.cluster.local \
		--requestheader-client-ca-file \$K/front-proxy-ca.crt --requestheader-allowed-names front-proxy-client \
		--requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group --requestheader-extra-headers-prefix X-Remote-Extra- \
		--proxy-client-cert-file \$K/front-proxy-client.crt --proxy-client-key-file \$K/front-proxy-client.key
	run kube-controller-manager \$B kube-controller-manager --kubeconfig \$K/kcm.kubeconfig --authentication-kubeconfig \$K/kcm.kubeconfig --authorization-kubeconfig \$K/kcm.kubeconfig \
		--service-account-private-key-file \$K/sa.key --root-ca-file \$K/ca.crt --cluster-signing-cert-file \$K/ca.crt --cluster-signing-key-file \$K/ca.key \
		--use-service-account-credentials --leader-elect=false --allocate-node-cidrs=false --cluster-cidr $PODS4.0.0/16,$PODS6::/56 \
		--kube-api-qps 100 --kube-api-burst 200
	run kube-scheduler \$B kube-scheduler --kubeconfig \$K/scheduler.kubeconfig --authentication-kubeconfig \$K/scheduler.kubeconfig --authorization-kubeconfig \$K/scheduler.kubeconfig --leader-elect=false
	# the API server for the machine: listens in its network namespace (descriptor 9), on loopback only
	( while :; do \$B nsproxy -fd 9 -listen 127.0.0.1:$PORT -to 127.0.0.1:6443 >>/var/log/lab/nsproxy.log 2>&1; sleep 1; done ) &
	exec 9<&-
	while :; do wait -n || sleep 1; done
	INIT
}

node_files() {
	local n=$1 e=$STATE/$1/root/etc m
	mkdir -p "$e/kubernetes" "$e/cni/net.d"
	cp "$STATE/pki/kubelet-$n.kubeconfig" "$e/kubernetes/kubelet.kubeconfig"
	cp "$STATE/pki/proxy.kubeconfig" "$STATE/pki/ca.crt" "$e/kubernetes/"
	# CAP_SYS_RESOURCE may be missing on a machine that is itself confined: no negative OOM scores.
	cat > "$e/kubernetes/containerd.toml" <<-T
	version = 2
	root = "/var/lib/containerd"
	state = "/run/containerd"
	[grpc]
	  address = "/run/containerd/containerd.sock"
	[plugins."io.containerd.grpc.v1.cri"]
	  sandbox_image = "localhost/pause:1"
	  disable_apparmor = true
	  restrict_oom_score_adj = true
	  [plugins."io.containerd.grpc.v1.cri".cni]
	    bin_dir = "/opt/cni/bin"
	    conf_dir = "/etc/cni/net.d"
	  [plugins."io.containerd.grpc.v1.cri".containerd]
	    snapshotter = "overlayfs"
	    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
	      runtime_type = "io.containerd.runc.v2"
	T
	cat > "$e/kubernetes/kubelet.yaml" <<-T
	apiVersion: kubelet.config.k8s.io/v1beta1
	kind: KubeletConfiguration
	failCgroupV1: false
	failSwapOn: false
	cgroupDriver: cgroupfs
	containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
	clusterDNS: [$DNS]
	clusterDomain: cluster.local
	resolvConf: /etc/resolv.conf
	authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/kubernetes/ca.crt}}
	authorization: {mode: Webhook}
	evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
	imageGCHighThresholdPercent: 100
	imageGCLowThresholdPercent: 99
	nodeStatusUpdateFrequency: 5s
	syncFrequency: 10s
	registerWithTaints: []
	oomScoreAdj: 0
	shutdownGracePeriod: 0s
	maxPods: 240
	T
	cat > "$e/kubernetes/proxy.yaml" <<-T
	apiVersion: kubeproxy.config.k8s.io/v1alpha1
	kind: KubeProxyConfiguration
	clientConnection: {kubeconfig: /etc/kubernetes/proxy.kubeconfig}
	mode: $PROXY_MODE
	oomScoreAdj: 0
	clusterCIDR: $PODS4.0.0/16,$PODS6::/56
	detectLocalMode: ClusterCIDR
	conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
	nftables: {minSyncPeriod: 100ms, syncPeriod: 30s}
	iptables: {minSyncPeriod: 100ms, syncPeriod: 30s}
	T
	# The default route leads to the control plane, which drops: without one, connecting from the node to a Service
	# address fails before translation.
	cat > "$e/kubernetes/init.sh" <<-INIT
	$supervisor
	exec 9<&-
	for i in \$(seq 600); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.05; done
	ip link set eth0 up
	ip addr add $(address4 "$n")/24 dev eth0; ip addr add $(address6 "$n")/64 dev eth0
	ip route add default via $(address4 cp); ip route add default via $(address6 cp)
	$(for m in $(seq "$(cat "$STATE/count")"); do
		[ "n$m" = "$n" ] || echo "ip route add $(pods4 "n$m") via $(address4 "n$m"); ip route add $(pods6 "n$m") via $(address6 "n$m")"
	done)
	modprobe() { :; }
	run containerd containerd --config \$K/containerd.toml
	for i in \$(seq 100); do [ -S /run/containerd/containerd.sock ] && break; sleep 0.1; done
	for image in pause coredns; do ctr -n k8s.io images import /opt/lab/\$image.tar; done
	run kubelet \$B kubelet --config \$K/kubelet.yaml --kubeconfig \$K/kubelet.kubeconfig --hostname-override $n --node-ip $(address4 "$n"),$(address6 "$n") --root-dir /var/lib/kubelet --v 2
	run kube-proxy \$B kube-proxy --config \$K/proxy.yaml --hostname-override $n
	while :; do wait -n || sleep 1; done
	INIT
}

# The primary CNI's configuration, as that CNI writes it: whole, without what others chained into it.
conflist() {
	local f=$STATE/$1/root/etc/cni/net.d/10-lab.conflist
	cat > "$f.new" <<-T
	{"cniVersion": "0.4.0", "name": "lab", "plugins": [
	  {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false,
	   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(pods4 "$1")"}], [{"subnet": "$(pods6 "$1")"}]]}},
	  {"type": "portmap", "capabilities": {"portMappings": true}}
	]}
	T
	mv "$f.new" "$f"
}
