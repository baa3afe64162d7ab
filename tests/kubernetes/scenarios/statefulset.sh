# A StatefulSet's pod comes back under its name, in the mesh from its first packet, with its identity.
namespace "$NS" $AMBIENT
k -n "$NS" create serviceaccount web >/dev/null
k apply -f - >/dev/null <<Y
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web, namespace: $NS}
spec:
  replicas: 2
  serviceName: web
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}]
      containers:
      - {name: app, image: "$APP", args: [serve], $READY}
Y
service web "clusterIP: None"
server sink "$NODE2"
check "both replicas start" within 60 ready web-0 web-1
need "server starts" ready sink
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-web, namespace: $NS}
spec: {selector: {matchLabels: {app: sink}}, action: ALLOW, rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/web"]}}]}]}
Y
client stranger "$NODE1"; ready stranger >/dev/null
check "a stranger is refused" within 20 not in_pod stranger get -timeout 2s "http://$(ip4 sink):8080/"
capture "$NODE1" "$NODE2"
former=   # addresses of pods that are gone: DNS gives them out for some seconds more, and they are nobody's then
for i in 1 2 3; do
	old=$(k -n "$NS" get pod web-0 -o jsonpath='{.metadata.uid}')
	former+=",$(ip4 web-0)@$(date +%s),$(ip6 web-0)@$(date +%s)"
	k -n "$NS" delete pod web-0 --grace-period=0 --force --wait=false >/dev/null 2>&1
	other() { [ "$(k -n "$NS" get pod web-0 -o jsonpath='{.metadata.uid}')" != "$old" ] && ready web-0; }
	check "web-0 comes back ($i)" within 60 other
	check "in the mesh, with its identity ($i)" asks web-0 "http://$(ip4 sink):8080/" 5
	check "its name leads to it ($i)" within 20 says '"pod":"web-0"' asks web-1 "http://web-0.web.$NS:8080/"
done
[ "$OWN" = 0 ] || check "nothing was opened in clear to a pod" none_clear "$former"
