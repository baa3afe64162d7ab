# STRICT: only the mesh comes in; the kubelet still does.
namespace "$NS" $AMBIENT
namespace "$NS-out"
server web "$NODE2"; client inside "$NODE1"; service web
N=$NS-out client outside "$NODE1"; N=$NS-out client neighbour "$NODE2"
need "pods start" ready web inside
N=$NS-out need "clients outside the mesh start" ready outside neighbour
outside_asks() { N=$NS-out asks "$@"; }
url=http://web.$NS/ direct=http://$(ip4 web):8080/
check "without the policy a client outside the mesh comes in" outside_asks outside "$url"
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: $NS}
spec: {mtls: {mode: STRICT}}
Y
refused() { N=$NS-out not in_pod "$1" get -timeout 3s "$2"; }
check "with it, a client outside the mesh is refused at the Service" within 20 refused outside "$url"
check "and at the pod's address" refused outside "$direct"
check "and from the same node" refused neighbour "$direct"
check "a client in the mesh comes in" asks inside "$url" 10
check "probes still pass" stays 5 says True k -n "$NS" get pod web -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}'
k -n "$NS" delete peerauthentication strict >/dev/null
check "without it all come in again" within 20 outside_asks outside "$url"
