# What the scenarios are written with. `run` sources this, then one scenario, in a process of its own.
# shellcheck shell=bash
# Given by `run`: NODE1 NODE2 (names), OWN (1: our cluster, whose nodes can be entered), APP (test image), SYSTEM (namespace of the
# mesh), WORK (directory for files), FAILURES (file: what failed), SCENARIO, and KUBECONFIG.

NS=mesh-${SCENARIO//\//-}
checked=0 failed=0 noted=

k() { kubectl "$@"; }
cluster() { "$here/cluster" "$@"; }
now_ms() { date +%s%3N; }
log() { printf '     %s\n' "$*"; }

# check TEXT COMMAND...: one line with its time; what a failing command said follows.
check() { # its own names begin with _: commands see them
	local _text=$1 _began _said _code _t; shift
	_began=$(now_ms)
	_said=$("$@" 2>&1); _code=$?
	_t=$(($(now_ms) - _began))
	checked=$((checked + 1))
	if [ $_code = 0 ]; then
		printf 'ok   %s: %s (%d.%d s)%s\n' "$SCENARIO" "$_text" $((_t / 1000)) $((_t % 1000 / 100)) "${noted:+, $noted}"
	else
		failed=$((failed + 1))
		{
			printf 'FAIL %s: %s (%d.%d s)\n' "$SCENARIO" "$_text" $((_t / 1000)) $((_t % 1000 / 100))
			tail -n 15 <<<"$_said" | sed 's/^/     | /'
		} | tee -a "$FAILURES"
	fi
	noted=
	return $_code
}
# As check, where the rest makes no sense without it.
need() { check "$@" || finish; }
# A figure for the line of the next check.
note() { noted=$*; }
finish() {
	[ $failed = 0 ] || evidence
	undo
	echo "$checked $failed" > "$WORK/result"
	exit 0
}
# What a scenario has to put back beside its namespace; redefined there.
restore() { :; }
undo() {
	restore
	[ -n "${KEEP:-}" ] || k delete namespace -l mesh-test="$NS" --wait=false >/dev/null 2>&1
}

not() { ! "$@"; }
# says PATTERN COMMAND...
says() {
	local pattern=$1 said; shift
	said=$("$@" 2>&1); local code=$?
	grep -qE -- "$pattern" <<<"$said" || { echo "wanted /$pattern/ (exit $code): $said"; return 1; }
}
silent() { local said; said=$("$@" 2>&1); [ -z "$said" ] || { echo "$said"; return 1; }; }
# within SECONDS COMMAND...: again and again until it succeeds
within() {
	local end=$((SECONDS + $1)); shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || { "$@"; return; }
		sleep 0.2
	done
}
# stays SECONDS COMMAND...: succeeds each time
stays() {
	local end=$((SECONDS + $1)); shift
	while [ $SECONDS -lt $end ]; do "$@" || return 1; sleep 0.5; done
}
same() { [ "$1" = "$2" ] || { echo "$1 is not $2"; return 1; }; }

# namespace [NAME [LABEL...]]
namespace() {
	local name=${1:-$NS}; shift || true
	k delete namespace "$name" --ignore-not-found --wait --timeout=120s >/dev/null 2>&1
	k create namespace "$name" >/dev/null && k label namespace "$name" mesh-test="$NS" "$@" >/dev/null
	within 20 k -n "$name" get serviceaccount default
}
AMBIENT=istio.io/dataplane-mode=ambient
enrol() { k label --overwrite namespace "${1:-$NS}" $AMBIENT >/dev/null; }
leave() { k label namespace "${1:-$NS}" istio.io/dataplane-mode- >/dev/null; }

# pod NAME NODE ARGUMENTS [EXTRA-SPEC [METADATA [CONTAINER]]]: a pod of the test image; the last three are YAML flow entries.
# N=namespace says where. The account has the pod's name.
pod() {
	local name=$1 node=$2 arguments=$3 spec=${4:-} meta=${5:-} container=${6:-} namespace=${N:-$NS}
	k apply -f - >/dev/null <<-Y
	apiVersion: v1
	kind: ServiceAccount
	metadata: {name: $name, namespace: $namespace}
	---
	apiVersion: v1
	kind: Pod
	metadata: {name: $name, namespace: $namespace${meta:+, $meta}}
	spec: {serviceAccountName: $name, nodeSelector: {kubernetes.io/hostname: $node}, terminationGracePeriodSeconds: 1, restartPolicy: ${RESTART:-Always}${spec:+, $spec},
	  containers: [{name: app, image: "$APP", args: $arguments, env: [{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]${container:+, $container}}]}
	Y
}
READY='readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1, failureThreshold: 2}'
server() { pod "$1" "$2" "${4:-[serve]}" "" "labels: {app: $1${3:+, $3}}" "$READY"; }
client() { pod "$1" "$2" '[sleep, "100000"]' "" "labels: {app: $1${3:+, $3}}"; }
# service NAME [EXTRA]: ports 80 (http) and 9000 (tcp) of the pods with label app=NAME
service() {
	k apply -f - >/dev/null <<-Y
	apiVersion: v1
	kind: Service
	metadata: {name: $1, namespace: ${N:-$NS}}
	spec: {selector: {app: $1}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]${2:+, $2}}
	Y
}
ready() { local p; for p; do k -n "${N:-$NS}" wait --for=condition=Ready "pod/$p" --timeout="${PATIENCE:-60}s" || return 1; done; }
ip4() { k -n "${N:-$NS}" get pod "$1" -o jsonpath='{.status.podIPs[*].ip}' | tr ' ' '\n' | grep -v : | head -n1; }
ip6() { k -n "${N:-$NS}" get pod "$1" -o jsonpath='{.status.podIPs[*].ip}' | tr ' ' '\n' | grep : | head -n1; }
in_pod() { local p=$1; shift; k -n "${N:-$NS}" exec "$p" -c app -- /testapp "$@"; }
# asks POD URL [N]: new connections, answered 200 each
asks() { in_pod "$1" get -n "${3:-1}" "$2"; }
redirection() { k -n "${N:-$NS}" get pod "$1" -o jsonpath='{.metadata.annotations.ambient\.istio\.io/redirection}'; }
enrolled() { local p; for p; do [ "$(redirection "$p")" = enabled ] || { echo "$p: '$(redirection "$p")'"; return 1; }; done; }
apart() { local p; for p; do [ -z "$(redirection "$p")" ] || { echo "$p: $(redirection "$p")"; return 1; }; done; }
last() { k -n "${N:-$NS}" logs "$1" --tail="${2:-1}"; }
# totals POD: what its `load` counted; failures POD: how many failed
totals() { k -n "${N:-$NS}" logs "$1" | grep TOTAL | tail -n1; }
failures() { totals "$1" | sed 's/.*FAILED //'; }
# turned POD ADDRESS open|refused: what its `load` last saw; turned_at: when, in milliseconds of the clock
turned() { k -n "${N:-$NS}" logs "$1" | grep "CHANGE $2 " | tail -n1 | grep " $3 at "; }
turned_at() { turned "$@" | sed 's/.* at //'; }
phase() { k -n "${N:-$NS}" get pod "$1" -o jsonpath='{.status.phase}'; }

# Only with our own cluster.
captures=()
trap '[ ${#captures[@]} = 0 ] || kill "${captures[@]}" 2>/dev/null' EXIT
capture() { # NODE...: opening SYNs on every link of it, until `captured`
	local n
	[ "$OWN" = 1 ] || return 0
	for n; do
		"$here/cluster" capture "$n" "$WORK/$n.pcap" 2>"$WORK/$n.tcpdump" & captures+=($!)
		within 10 grep -q listening "$WORK/$n.tcpdump"
	done
}
# Ends the captures and prints how many connections were opened in clear from pod to pod, the mesh's own pods aside. $1: further
# addresses that are not of the mesh.
clear_count() {
	local p except
	sleep 0.5   # what is on its way to tcpdump's buffer
	for p in "${captures[@]}"; do kill "$p" 2>/dev/null; wait "$p" 2>/dev/null; done
	captures=()
	except=$(for n in kube-system "$SYSTEM"; do k -n $n get pods -o jsonpath='{range .items[*]}{range .status.podIPs[*]}{.ip},{end}{end}'; done)${1:-}
	cluster count-clear "$WORK"/*.pcap --except "$except"
}
none_clear() { local n; n=$(clear_count "${1:-}") ; [ "$n" = 0 ] || { echo "$n connections in clear"; return 1; }; }
# node_of POD; ztunnel NODE; agent NODE: names of pods
ztunnel() { k -n "$SYSTEM" get pods -l app=ztunnel --field-selector spec.nodeName="$1",status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
agent() { k -n "$SYSTEM" get pods -l app=stillmesh-cni --field-selector spec.nodeName="$1",status.phase=Running -o jsonpath='{.items[0].metadata.name}'; }
# pod_ns POD COMMAND...: in the network namespace of a running pod, with the node's programs
pod_ns() {
	local p=$1 n id pid; shift
	n=$(k -n "${N:-$NS}" get pod "$p" -o jsonpath='{.spec.nodeName}')
	id=$(k -n "${N:-$NS}" get pod "$p" -o jsonpath='{.status.containerStatuses[0].containerID}')
	pid=$(cluster exec "$n" ctr -n k8s.io task ls | awk -v id="${id#*//}" '$1 == id { print $2 }')
	[ -n "$pid" ] || { echo "$p: no process"; return 1; }
	cluster exec "$n" nsenter -t "$pid" -n -- "$@"
}
mesh_ready() {
	k -n "$SYSTEM" rollout status deployment/stillmesh-controller --timeout="${1:-120}s" &&
		k -n "$SYSTEM" rollout status daemonset/stillmesh-cni --timeout="${1:-120}s" &&
		k -n "$SYSTEM" rollout status daemonset/ztunnel --timeout="${1:-120}s"
}

# The Gateway API's own definitions, which users install themselves.
gateway_api() {
	local module file files=()
	module=$("$here/gateway-api") || return 1
	for file in "$module"/config/crd/standard/*{gateways,gatewayclasses,routes,referencegrants}.yaml; do files+=(-f "$file"); done
	k apply --server-side --force-conflicts "${files[@]}" >/dev/null &&
		k wait --for=condition=Established crd --all --timeout=60s
}

# Logs of the pods concerned, after a failed scenario.
evidence() {
	local p
	k -n "$NS" get pods -o wide 2>&1 | sed 's/^/     | /'
	k -n "$NS" get events --sort-by=.lastTimestamp 2>/dev/null | grep -v Normal | tail -n 8 | sed 's/^/     | /'
	for p in $(k -n "$SYSTEM" get pods -o name 2>/dev/null); do
		echo "     | --- $p"
		k -n "$SYSTEM" logs "$p" --all-containers --tail="${TAIL:-12}" 2>&1 | cut -c1-300 | sed 's/^/     | /'
	done
}
