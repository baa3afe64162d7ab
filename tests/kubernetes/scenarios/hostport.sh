# hostPort and NodePort lead to a captured pod, as anybody outside the mesh; STRICT refuses them.
namespace "$NS" $AMBIENT
namespace "$NS-out"
pod web "$NODE2" '[serve]' "" "labels: {app: web}" "ports: [{containerPort: 8080, hostPort: 18080}], $READY"
service web "type: NodePort"
N=$NS-out client outside "$NODE1"
need "server with a hostPort starts" ready web
N=$NS-out need "client starts" ready outside
host=$(k get node "$NODE2" -o jsonpath='{.status.addresses[?(@.type=="InternalIP")].address}' | cut -d' ' -f1)
port=$(k -n "$NS" get service web -o jsonpath='{.spec.ports[0].nodePort}')
out() { N=$NS-out in_pod outside get -timeout 3s "$@"; }
check "the hostPort answers" within 20 out "http://$host:18080/"
check "the NodePort answers" within 20 out "http://$host:$port/"
check "the pod is in the mesh" enrolled web
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: $NS}
spec: {mtls: {mode: STRICT}}
Y
check "STRICT refuses the hostPort" within 20 not out "http://$host:18080/"
check "STRICT refuses the NodePort" not out "http://$host:$port/"
