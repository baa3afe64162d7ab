# The commands that look at a mesh that runs say what is so, and what is planted into it: a NetworkPolicy on port 15008, an agent that
# hangs, a waypoint that is not there or has no pod, a principal that nobody has, names that nobody has.
need "the Gateway API's kinds are there" gateway_api
absent=$NS-absent
namespace "$NS" $AMBIENT
namespace "$NS-out"
namespace "$absent" $AMBIENT istio.io/use-waypoint=nobody
server web1 "$NODE1" "tier: web"; server web2 "$NODE2" "tier: web"; server raw "$NODE2"
client shop "$NODE1"; client other "$NODE1"
N=$NS-out client outside "$NODE1"
N=$absent server web "$NODE2"; N=$absent service web; N=$absent client shop "$NODE1"
service raw ''
k -n "$NS" label service raw istio.io/use-waypoint=none >/dev/null
k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Service
metadata: {name: web, namespace: $NS}
spec: {selector: {tier: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]}
Y
need "pods start" ready web1 web2 raw shop other
need "and join" within 30 enrolled web1 web2 raw shop other
N=$NS-out need "a client outside the mesh starts" ready outside
N=$absent need "as do those whose waypoint is not there" ready web shop

# Of this cluster, whatever mesh runs on the machine itself.
mesh() { "$STILLMESH" "$@" --kubeconfig "$KUBECONFIG" </dev/null; }
# ends CODE PATTERN COMMAND...: with this exit code, and says so
ends() {
	local wanted=$1 pattern=$2 said code; shift 2
	said=$("$@" 2>&1); code=$?
	{ [ $code = "$wanted" ] && grep -qE -- "$pattern" <<<"$said"; } || { echo "wanted exit $wanted and /$pattern/ (exit $code): $said"; return 1; }
}
web=http://web.$NS

need "a waypoint" says 'is ready!' mesh waypoint apply -n "$NS" --enroll-namespace --wait
k apply -f - >/dev/null <<Y
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: $NS}
spec:
  parentRefs: [{kind: Service, group: "", name: web, port: 80}]
  rules:
  - {matches: [{path: {type: PathPrefix, value: /old}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}}}]}
  - {backendRefs: [{name: web, port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: $NS}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/shop"]}}], to: [{operation: {methods: [GET], notPaths: ["/closed*"]}}]}]
Y
closed() { says '^403 ' in_pod shop get "$web/closed"; }
check "its policy is in force" within 20 closed
check "waypoint list" says "^$NS +waypoint +default +service +True" mesh waypoint list -A
check "waypoint status" says '^waypoint +True +Programmed' mesh waypoint status -n "$NS"
check "one that is not there" ends 1 'no such waypoint' mesh waypoint status nobody -n "$NS"
check "version: one for all, waypoints too" says '^data plane version: [0-9.]+ \([0-9]+ proxies\)$' mesh version
check "status" within 20 says "^$NS +ambient +5 +0 +0 " mesh status
status_list() { [ "$(mesh proxy-status | grep -cE "$1 .*(2|5) \(")" = "$2" ]; }
check "ps: every tunnel" within 20 status_list "^ztunnel-[a-z0-9]+\\.$SYSTEM" "$(k get nodes --no-headers | wc -l)"
check "ps: who has what" within 20 says "^waypoint-.*\\.$NS .* SYNCED +SYNCED +SYNCED +SYNCED +SYNCED" mesh ps -v 1 "gateway/waypoint.$NS"
check "ps: a name that nobody has" ends 1 'nobody named "nobody"' mesh ps nobody

pc() { local what=$1; shift; mesh pc "$what" "gateway/waypoint.$NS" "$@"; }
check "pc listener" says " 9000 +TCP +web\\.$NS\\.svc" pc listener
check "pc route" says "^HTTPRoute $NS/web .*/old/\\* +redirect 302 to /new" pc route
check "pc cluster" says "^web\\.$NS\\..* 9000 .*TCP" pc cluster
check "pc endpoint" says "8080 +HEALTHY +OK .*$NS/web2 +HBONE" pc endpoint --fqdn "web.$NS" --port 80
check "pc policy" says "^$NS +readers +Allow +web\\.$NS\\." pc policy
check "pc secret" says "^spiffe://cluster.local/ns/$NS/sa/waypoint +Leaf +Available +true" pc secret
check "pc rootca-compare" says 'trust the same roots' mesh pc rootca-compare "gateway/waypoint.$NS" "gateway/waypoint.$NS"
check "pc: a tunnel is none" ends 1 'stillmesh zc all' mesh pc all "$(ztunnel "$NODE1").$SYSTEM"
check "pc: a name that nobody has" ends 1 "\"gateway/nobody.$NS\"; there are waypoint-" mesh pc all "gateway/nobody.$NS"
check "pc log: a word that is no level" ends 1 'a level \(off, error, ' mesh pc log "gateway/waypoint.$NS" --level bogus
check "zc log: likewise" ends 1 'a level \(off, error, ' mesh zc log --node "$NODE1" --level bogus
check "zc workload" says "^$NS +raw .*$NODE2 +None +HBONE" mesh zc workload
check "zc service" says "^$NS +web .* waypoint +2/2" mesh zc service --service-namespace "$NS"
check "zc policy" says "^$NS +stillmesh_waypoint_only_web +Deny" mesh zc policy
check "zc certificate" says "^spiffe://cluster.local/ns/$NS/sa/raw +Leaf +Available +true" mesh zc certificate --node "$NODE2"
check "zc: a namespace without a tunnel" ends 1 "no ztunnel runs in namespace $NS" mesh zc service -n "$NS"

# What is refused, and why.
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: raw, namespace: $NS}
spec:
  selector: {matchLabels: {app: raw}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/shopp"]}}]}]
Y
raw_refused() { not in_pod shop get -timeout 3s "http://raw.$NS/"; }
need "a policy asks for a principal that nobody has" within 20 raw_refused
check "why: the policy, what it wants, what was seen" within 10 says "nearest: rule 0 of $NS/raw wants principal .*/sa/shopp, seen is .*/sa/shop\$" \
	mesh why "$NS/shop" "$NS/raw"
check "why: a request, at the waypoint" within 10 says "nearest: rule 0 of $NS/readers wants path not /closed\\*, seen is /closed" \
	mesh why "shop.$NS" "web.$NS.svc.cluster.local:80" --path /closed
check "why: somebody who is not there" ends 1 'there is no pod, deployment, service named "shopp"' mesh why "$NS/shopp" "$NS/web"
check "why: an id that nobody knows" ends 1 'nothing is recorded under' mesh why 4bf92f3577b34da6
check "analyze: what runs" says "^Warning \\[SM0109\\] \\(AuthorizationPolicy $NS/raw\\) .*/sa/shopp\" is no client" mesh analyze -n "$NS"
check "simulate: as it is" ends 1 "NO_ALLOW_MATCHED: .*$NS/raw" mesh simulate --live "$NS/shop" "$NS/raw:80"
check "simulate: a request that passes" ends 0 "taken by HTTPRoute $NS/web, rule 1" mesh simulate --live "$NS/shop" "$NS/web:80" --path /items
check "simulate: it wants to know of what" ends 2 '--live' mesh simulate "$NS/shop" "$NS/raw:80"
cat > "$WORK/mended.yaml" <<Y
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: raw, namespace: $NS}
spec:
  selector: {matchLabels: {app: raw}}
  action: ALLOW
  rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/shop"]}}]}]
Y
check "policy diff: what a change would mean" ends 1 "4 change, 0 to refused, 4 to allowed" mesh policy diff --live "$WORK/mended.yaml"
k -n "$NS" apply -f "$WORK/mended.yaml" >/dev/null
mended() { in_pod shop get "http://raw.$NS/"; }
check "which is then so" within 20 mended
check "and means nothing any more" ends 0 ' 0 change' mesh policy diff --live "$WORK/mended.yaml"

# Who speaks to whom.
check "flows" within 10 says "cluster.local/ns/$NS/sa/shop +web\\.$NS\\..* GET /closed +refused: NO_ALLOW_MATCHED by $NS/readers .* waypoint" mesh flows "$NS"
k -n "$NS" delete authorizationpolicy raw >/dev/null
clear_passes() { N=$NS-out in_pod outside get -timeout 3s "http://raw.$NS/"; }
need "a client in clear text is let in" within 20 clear_passes
check "flows: a namespace that is not there" ends 1 'there is no namespace "nobody"' mesh flows nobody
check "top: likewise" ends 1 'there is no namespace "nobody"' mesh top nobody
check "check strict names it" within 10 ends 1 "✘ $NS/raw:8080 from pod $NS-out/outside in clear text" mesh check strict "$NS"
check "check strict: pods outside the mesh" ends 2 'nobody has seen' mesh check strict "$NS-out"
check "check strict: a namespace that is not there" ends 2 'there is no pod of namespace nobody' mesh check strict nobody
pod asker "$NODE1" "[ask, -rate, \"50\", \"$web/\"]" '' '' ''
need "somebody asks and is refused" ready asker
check "top" within 20 says "^$NS/web +[1-9][0-9.]* +([0-9.]+%|-) +[1-9][0-9.]* " mesh top "$NS" --interval 1s
check "tap" says "$NS/asker.* NO_ALLOW_MATCHED|asker.*403" mesh tap --from "$NS/asker" --refused --for 3s
k -n "$NS" delete pod asker --wait=false >/dev/null

# Orders.
check "bypass: a pod that is not there" ends 1 'there is no pod "nobody" in namespace' mesh bypass "$NS/nobody" --reason "a test"
check "quarantine: likewise" ends 1 'there is no pod "nobody" in namespace' mesh quarantine "$NS/nobody" --reason "a test" --yes
check "bypass" says '1/1 pods out' mesh bypass "$NS/other" --for 5m --reason "a test"
check "bypass --list" says "^$NS .* other +Active +1/1 nodes, 1/1 pods out .* a test" mesh bypass --list
check "check tells it" says 'Bypass .* keeps it out for a while' mesh check
check "bypass --end" says 'it is over' mesh bypass "$NS/other" --end
check "quarantine" says '1/1 pods cut off' mesh quarantine "$NS/other" --for 5m --reason "a drill" --yes
check "quarantine --end" says 'it is over' mesh quarantine "$NS/other" --end

# What is planted.
check "check: a waypoint that is not there, and what to do" says "Namespace $absent: .*there is no Gateway $absent/nobody" mesh check
check "analyze: likewise" ends 79 "^Error \\[SM0105\\] \\(Namespace $absent\\)" mesh analyze -n "$absent"
check "simulate: likewise" says "there is no Gateway $absent/nobody" mesh simulate --live "$absent/shop" "$absent/web:80"
k apply -f - >/dev/null <<Y
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: $NS}
spec:
  podSelector: {matchLabels: {tier: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: shop}}}], ports: [{port: 8080}]}]
Y
blocked="✘ NetworkPolicy $NS/web .*$NS/shop may reach $NS/web. at 8080 and not at 15008; waypoint $NS/waypoint may not"
check "check: a NetworkPolicy that blocks tunnels" ends 1 "$blocked" mesh check
check "analyze: likewise, with a waypoint's part" ends 79 'gateway-name: waypoint' mesh analyze -n "$NS"
patched() { mesh check | sed -n 's/^      //p' > "$WORK/patch.yaml"; k apply -f "$WORK/patch.yaml"; }
check "its patch is one" says 'networkpolicy.*/web-hbone-in created' patched
check "and mends it" not says 'NetworkPolicy .* filters' mesh check
k -n "$NS" delete networkpolicy web web-hbone-in >/dev/null

k -n "$NS" scale deployment/waypoint --replicas=0 >/dev/null
unavailable() { not in_pod shop get -timeout 3s "$web/" && says 'WAYPOINT_UNAVAILABLE' mesh why "$NS/shop" "$NS/web"; }
check "why: a waypoint that has no pod" within 40 unavailable
check "check: likewise" within 20 ends 1 "✘ waypoint $NS/waypoint has no pod that is ready" mesh check
k -n "$NS" scale deployment/waypoint --replicas=1 >/dev/null
need "it comes back" k -n "$NS" rollout status deployment/waypoint --timeout=90s
waypoints() { [ "$(k -n "$NS" get pods -l gateway.networking.k8s.io/gateway-name=waypoint --no-headers | wc -l)" = "$1" ]; }
need "alone" within 60 waypoints 1

# Clocks that are wrong. A kubelet tells its time in the node's Lease, and takes back within ten seconds what somebody else has written.
if [ "$OWN" = 1 ]; then
	lease() {
		local at; at=$(date -u -d "$1 seconds" +%Y-%m-%dT%H:%M:%S.000000Z)
		k -n kube-node-lease patch lease "$NODE2" --type merge -p "{\"spec\": {\"renewTime\": \"$at\"}}" >/dev/null
	}
	told() { lease "$1" && ends "$2" "$3" mesh check; }
	check "check: a node's clock is ahead" within 20 told +300 1 "✘ the clock of node $NODE2 is (29[0-9]|300) s ahead of the API server's"
	check "check: a node that is silent, or behind" within 20 told -300 0 "! node $NODE2 last told the time 30[0-9] s ago"
	check "and its kubelet puts that right" within 30 says '✔ the clocks of [0-9]+ nodes agree' mesh check
fi
# By this machine's clock, if it were another one: `check` of a command that is dynamically linked, under libfaketime.
if [ -n "${DYNAMIC:-}" ]; then
	faketime=${STILLMESH_CACHE:-$HOME/.cache/stillmesh}/faketime
	fetched() {
		[ ! -e "$faketime/usr" ] || return 0
		rm -rf "$faketime" && mkdir -p "$faketime" && cd "$faketime" || return
		apt-get -q download libfaketime || { apt-get -qq update && apt-get -q download libfaketime; } || return
		dpkg -x libfaketime_*.deb new && mv new/usr .
	}
	check "libfaketime can be had" fetched
	library=$(find "$faketime/usr" -name libfaketime.so.1)
	by_clock() { LD_PRELOAD=$library FAKETIME=$1 DONT_FAKE_MONOTONIC=1 "$DYNAMIC" check --kubeconfig "$KUBECONFIG" </dev/null; }
	check "check: this machine's clock is ahead" ends 0 "! this machine's clock is 28[78][0-9][0-9] s ahead of the API server's" by_clock +28800
	check "and certificates are judged by the API server's" says 'certificates of workloads are valid; of the oldest [0-9] %' by_clock +28800
	check "check: it is so far behind that nobody is trusted" ends 1 "certificate not valid yet.*by this machine's clock it is .*: set it by NTP" by_clock -315360000
else
	log "not tried: this machine's clock is wrong (DYNAMIC=FILE: the same command, dynamically linked)"
fi

# Puts an archive together, of which nothing is missing.
check "bug-report --dry-run" says "^pods/$SYSTEM/$(ztunnel "$NODE1")/config_dump.json" mesh bug-report --dry-run
check "bug-report: a namespace that is not there is told" ends 3 'include nobody: there is no such namespace' mesh bug-report --include nobody -o "$WORK/none.tar.gz"
check "bug-report" ends 0 ' files, [0-9]+ bytes' mesh bug-report --include "$NS" -o "$WORK/report.tar.gz"
holds() { tar -tzf "$WORK/report.tar.gz" | grep -qE "$1"; }
check "it has objects" holds "objects/$NS/HTTPRoute.yaml"
check "and what tunnels decided" holds "pods/$SYSTEM/ztunnel-.*/decisions.json"
check "and no Secret" not holds 'Secret'

# The agent of one node hangs: it is told before its kubelet knows.
if [ "$OWN" = 1 ]; then
	agent=$(agent "$NODE2")
	container=$(cluster exec "$NODE2" ctr -n k8s.io containers ls -q "labels.\"io.kubernetes.pod.namespace\"==$SYSTEM,labels.\"io.kubernetes.pod.name\"==$agent,labels.\"io.cri-containerd.kind\"==container")
	hang() { cluster exec "$NODE2" ctr -n k8s.io task kill -s "$1" "$container"; }
	restore() { hang SIGCONT >/dev/null 2>&1; }
	need "an agent is stopped" hang SIGSTOP
	check "check names it and its node" ends 1 "✘ ($agent on node $NODE2 does not answer|node $NODE2 has no node agent)" mesh check
	# Its kubelet may have ended it meanwhile.
	restore
fi
check "nothing is wrong at the end" within 40 mesh check
