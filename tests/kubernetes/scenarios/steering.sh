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
check "a short one ends by itself" mesh bypass "$NS" --for 3s --reason "a test"
check "and all come back" within 30 enrolled shop own caller late
check "no connection of the caller failed meanwhile" same 0 "$(failures caller)"
k delete namespace "$NS-strict" "$NS-out" --wait=false >/dev/null
