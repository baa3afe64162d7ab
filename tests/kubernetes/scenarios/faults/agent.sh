# The agent is upgraded, and killed, while pods start: all start, all captured, nothing in clear.
namespace "$NS" $AMBIENT
server web "$NODE1"; service web
need "server starts" ready web
capture "$NODE1" "$NODE2"
k apply -f - >/dev/null <<Y
apiVersion: apps/v1
kind: Deployment
metadata: {name: many, namespace: $NS}
spec:
  replicas: 12
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: app, image: "$APP", args: [load, -every, 200ms, "web.$NS:9000"]}]
Y
k -n "$SYSTEM" rollout restart daemonset/stillmesh-cni >/dev/null
check "12 pods start while the agent is replaced" k -n "$NS" rollout status deployment/many --timeout=180s
check "the agent is replaced" mesh_ready
k -n "$NS" rollout restart deployment/many >/dev/null
for n in "$NODE1" "$NODE2"; do k -n "$SYSTEM" delete pod "$(agent "$n")" --grace-period=0 --force --wait=false >/dev/null 2>&1; done
check "12 pods are replaced while the agent is killed" k -n "$NS" rollout status deployment/many --timeout=180s
k -n "$SYSTEM" rollout restart daemonset/ztunnel >/dev/null
k -n "$NS" rollout restart deployment/many >/dev/null
check "12 pods are replaced while ztunnel is" k -n "$NS" rollout status deployment/many --timeout=180s
check "mesh is well" mesh_ready
all() { same "" "$(k -n "$NS" get pods -l app=many -o jsonpath='{range .items[*]}{.metadata.deletionTimestamp}|{.metadata.annotations.ambient\.istio\.io/redirection} {.metadata.name}{"\n"}{end}' | grep '^|' | grep -v '^|enabled')"; }
check "all are in the mesh" within 30 all
check "nothing was opened in clear" none_clear
sum() { k -n "$NS" logs -l app=many --tail=1 --max-log-requests=30 | grep -vE 'TOTAL [1-9][0-9]* FAILED 0$'; }
note "connections that failed: $(k -n "$NS" logs -l app=many --tail=1 --max-log-requests=30 | sed 's/.*FAILED //' | awk "{ s += \$1 } END { print s + 0 }")"
check "no connection of theirs failed" silent sum
