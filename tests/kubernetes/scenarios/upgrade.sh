# A rollout of each part while clients open connections: none fails.
namespace "$NS" $AMBIENT
server web1 "$NODE1" "tier: web"; server web2 "$NODE2" "tier: web"
k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Service
metadata: {name: web, namespace: $NS}
spec: {selector: {tier: web}, ports: [{name: tcp, port: 9000}]}
Y
need "servers start" ready web1 web2
a1=$(ip4 web1):9000 a2=$(ip4 web2):9000
pod load1 "$NODE1" "[load, \"$a1\", \"$a2\", \"web.$NS:9000\"]"
pod load2 "$NODE2" "[load, \"$a1\", \"$a2\", \"web.$NS:9000\"]"
need "clients start" ready load1 load2
need "they connect" within 20 says 'TOTAL [1-9]' totals load1
clean() { local p; for p in load1 load2; do says 'FAILED 0$' totals $p || { k -n "$NS" logs $p | grep FAILED | grep -v TOTAL | head -n 5; return 1; }; done; }
check "no connection fails before" clean
part() { # NAME HELM-ARGUMENT...
	local name=$1; shift
	check "$name is rolled out" "$INSTALL" --reuse-values "$@"
	sleep 2   # the clients' next totals
	note "$(totals load1 | grep -o 'TOTAL.*'), $(totals load2 | grep -o 'TOTAL.*')"
	check "no connection failed meanwhile" clean
}
part ztunnel --set ztunnel.podAnnotations.round=a
part "the agent" --set cni.podAnnotations.round=a
part "the controller" --set controller.podAnnotations.round=a
if [ "$OWN" = 1 ]; then part "all at once, by another image," --set image.tag=test2; fi
capture "$NODE1" "$NODE2"; sleep 2
[ "$OWN" = 0 ] || check "no connection afterwards is in clear" none_clear
check "pods are still in the mesh" enrolled web1 web2 load1 load2
