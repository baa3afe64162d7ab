# A Bypass takes pods out at once, STRICT peers go on answering them and nobody else, and they come back; who may, and in whose name.
namespace "$NS" $AMBIENT
namespace "$NS-strict" $AMBIENT
namespace "$NS-out"
client shop "$NODE1"; server own "$NODE1"; N=$NS-strict server web "$NODE2"; N=$NS-strict service web; N=$NS-out client outside "$NODE1"
need "pods start" ready shop own
N=$NS-strict need "the server starts" ready web
N=$NS-out need "a client outside the mesh starts" ready outside
need "they are captured" within 20 enrolled shop own
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: $NS-strict}
spec: {mtls: {mode: STRICT}}
Y
url=http://web.$NS-strict/ mine=http://$(ip4 own):8080/
refused() { N=$NS-out not in_pod outside get -timeout 3s "$1"; }
need "a client outside the mesh is refused" within 20 refused "$url"
pod caller "$NODE1" "[load, \"web.$NS-strict:9000\"]"
need "connections are made all the time" ready caller
# Of this cluster, whatever mesh runs on the machine itself.
mesh() { "$STILLMESH" "$@" --kubeconfig "$KUBECONFIG"; }
order() { k -n "$NS" get bypasses -o jsonpath="{range .items[*]}$1{end}"; }
capture "$NODE1" "$NODE2"
check "a Bypass takes the namespace out, node by node" says "✔ $NODE1: 3 pods out in [0-9]+ ms" mesh bypass "$NS" --for 10m --reason "a test"
check "the pods are not captured" apart shop own caller
check "the status says who, until when, how many" says '^Active 3 3 .+ 20..-' order '{.status.phase} {.status.pods} {.status.done} {.spec.requestedBy} {.status.until}'
check "how long it took is told" says "^[0-9]+$" order "{.status.nodes[0].tookMs}"
check "a STRICT peer answers" asks shop "$url" 10
check "and still refuses others" refused "$url"
outside_asks() { N=$NS-out asks outside "$1"; }
check "the pods are reached by everybody" outside_asks "$mine"
if [ "$OWN" = 1 ]; then
	direct() { local n; n=$(clear_count 2>/dev/null); [ "$n" -gt 0 ] || { echo "$n"; return 1; }; }
	check "traffic is plain" direct
fi
client late "$NODE1"
need "a pod starts meanwhile" ready late
check "without capture" apart late
check "an Event tells" within 20 says 'Started|Done' k -n "$NS" get events --field-selector involvedObject.kind=Bypass
check "so does the log" within 20 says 'audit.*a test' k -n "$SYSTEM" logs "$(agent "$NODE1")"
check "who asks is who writes" says 'spec.requestedBy says who asks' k apply -f - <<Y
apiVersion: stillmesh.io/v1alpha1
kind: Bypass
metadata: {name: forged, namespace: $NS}
spec: {reason: a test, requestedBy: somebody-else}
Y
k -n "$NS" create serviceaccount jo >/dev/null
as="--as=system:serviceaccount:$NS:jo"
may() { k auth can-i create bypasses.stillmesh.io "$as" -n "$1"; }
check "without a role nobody may" says no may "$NS"
k -n "$NS" create rolebinding jo --clusterrole=stillmesh-bypass --serviceaccount="$NS:jo" >/dev/null
check "with the role, in the namespace that it is bound in" says yes may "$NS"
check "and nowhere else" says no may "$NS-strict"
check "it is ended before its time" says 'back in the mesh' mesh bypass "$NS" --end
check "all are captured again, the late one too" within 20 enrolled shop own caller late
check "and answered" asks shop "$url" 10
check "a short one ends by itself" mesh bypass "$NS" --for 10s --reason "a test"
check "and all come back" within 60 enrolled shop own caller late
# Twice they came back: peers that are STRICT cut what is open in clear text then, and the caller has one connection at a time.
check "no other connection of the caller failed meanwhile" test "$(failures caller)" -le 2

# A Quarantine cuts the namespace off: what is open ends, nothing new passes either way, probes do.
orders() { k -n "$NS" get quarantines -o jsonpath="{range .items[*]}$1{end}"; }
cut_off() { local p; for p in "$@"; do says '"quarantine":' k -n "$NS" get pod "$p" -o jsonpath='{.metadata.annotations.stillmesh\.io/quarantine}' || return 1; done; }
N=$NS-strict client peer "$NODE2"
N=$NS-strict need "a client of theirs starts" ready peer
own_refused() { N=$NS-strict not in_pod peer get -timeout 3s "$mine"; }
own_asks() { N=$NS-strict asks peer "$mine" 5; }
sent_refused() { not in_pod shop get -timeout 3s "$url"; }
check "their client reaches the pods" within 20 own_asks
unsure() { not mesh quarantine "$NS" --for 10m --reason "a drill" 2>&1; }
check "what would be cut is listed, and nothing is done" says 'nothing has been done' unsure
check "nothing was done" asks shop "$url" 5
check "a Quarantine cuts the namespace off, node by node" says "✔ $NODE1: [0-9]+ pods cut off in [0-9]+ ms" mesh quarantine "$NS" --for 10m --reason "a drill" --yes
check "the status says who, until when, how many" says '^Active 4 4 .+ 20..-' orders '{.status.phase} {.status.pods} {.status.done} {.spec.requestedBy} {.status.until}'
# What the other end's tunnel closes first is not among them, and the caller's are short: none is a number, too.
check "it is told how many open connections were cut" within 20 says '^[0-9]+$' orders '{.status.connections}'
check "each pod says so" cut_off shop own caller late
check "nothing is sent" sent_refused
check "nothing is received" own_refused
check "not in clear text either" not outside_asks "$mine"
N=$NS-strict check "others go on" within 20 asks peer "$url" 5
server later "$NODE1"
need "a pod starts meanwhile, and its probes pass" ready later
later_refused() { not in_pod later get -timeout 3s "$url"; }
check "it is cut off from its first connection" later_refused
check "the pods stay ready" ready shop own
check "why tells who and why" within 20 says 'QUARANTINED|a drill' mesh why "$NS/shop" "$NS-strict/web"
check "an Event tells" within 20 says 'Started|Done' k -n "$NS" get events --field-selector involvedObject.kind=Quarantine
check "so does the log" within 20 says 'audit.*a drill' k -n "$SYSTEM" logs "$(agent "$NODE1")"
check "one whose duration cannot be read is refused by the API server" says 'duration' k apply -f - <<Y
apiVersion: stillmesh.io/v1alpha1
kind: Quarantine
metadata: {name: unread, namespace: $NS}
spec: {reason: a test, duration: soon, requestedBy: $(k auth whoami -o jsonpath='{.status.userInfo.username}')}
Y
may() { k auth can-i create quarantines.stillmesh.io "$as" -n "$1"; }
check "the role for Bypasses is none for Quarantines" says no may "$NS"
k -n "$NS" create rolebinding jo-too --clusterrole=stillmesh-quarantine --serviceaccount="$NS:jo" >/dev/null
check "its own role is" says yes may "$NS"
check "it is ended before its time" says 'connected again' mesh quarantine "$NS" --end
check "what the pods send is answered again" within 20 asks shop "$url" 5
check "they are reached again" within 20 own_asks
check "a short one ends by itself" mesh quarantine "$NS/shop" --for 10s --reason "a drill" --yes
check "and the pod is connected again" within 60 asks shop "$url" 5
k delete namespace "$NS-strict" "$NS-out" --wait=false >/dev/null
