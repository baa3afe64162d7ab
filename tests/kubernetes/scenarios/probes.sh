# Every kind of kubelet probe reaches a captured pod, also under STRICT, and still finds out when the app is unwell.
namespace "$NS" $AMBIENT
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: $NS}
spec: {mtls: {mode: STRICT}}
Y
fast="periodSeconds: 1, timeoutSeconds: 2, failureThreshold: 3"
pod http "$NODE1" '[serve]' "" "labels: {app: http}" "ports: [{name: web, containerPort: 8080}], startupProbe: {httpGet: {path: /ready, port: web}, $fast}, readinessProbe: {httpGet: {path: /ready, port: web}, $fast}, livenessProbe: {httpGet: {path: /, port: 8080}, $fast}"
pod tcp "$NODE2" '[serve]' "" "labels: {app: tcp}" "startupProbe: {tcpSocket: {port: 9000}, $fast}, readinessProbe: {tcpSocket: {port: 9000}, $fast}, livenessProbe: {tcpSocket: {port: 8080}, $fast}"
pod exec "$NODE2" '[serve]' "" "labels: {app: exec}" "readinessProbe: {exec: {command: [/testapp, get, 'http://127.0.0.1:8080/ready']}, $fast}, livenessProbe: {exec: {command: [/testapp, get, 'http://127.0.0.1:8080/']}, $fast}"
check "http, tcp and exec probes pass in new pods" ready http tcp exec
check "all are in the mesh" within 20 enrolled http tcp exec
all_well() { same "True True True" "$(k -n "$NS" get pods http tcp exec -o jsonpath='{.items[*].status.conditions[?(@.type=="Ready")].status}')"; }
check "they go on passing" stays 10 all_well
check "nothing was restarted" same "0 0 0" "$(k -n "$NS" get pods -o jsonpath='{.items[*].status.containerStatuses[0].restartCount}')"
in_pod http touch /tmp/unready
pod closed "$NODE1" '[serve]' "" "labels: {app: closed}" "readinessProbe: {tcpSocket: {port: 9}, $fast}"
unlistened() { [ "$(k -n "$NS" get pod closed -o jsonpath='{.status.phase} {.status.conditions[?(@.type=="Ready")].status}')" = "Running False" ]; }
check "a pod where nobody listens on the probe's port runs" within 30 unlistened
check "and does not get ready" stays 5 unlistened
check "an unwell app is found out" within 30 says False k -n "$NS" get pod http -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}'
in_pod http rm /tmp/unready
check "and its recovery" ready http
forwarded() {
	kubectl -n "$NS" port-forward pod/http :8080 > "$WORK/forward" 2>&1 & local p=$!
	within 10 grep -q Forwarding "$WORK/forward"
	curl -sf -m 5 "http://127.0.0.1:$(grep -m1 -o '127.0.0.1:[0-9]*' "$WORK/forward" | cut -d: -f2)/"; local code=$?
	kill $p; wait $p 2>/dev/null
	return $code
}
check "kubectl port-forward reaches it" forwarded
