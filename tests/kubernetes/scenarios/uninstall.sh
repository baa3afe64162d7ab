# After `helm uninstall` nothing of the mesh works on anybody, and the pods that were in it go on without it. What the controller made
# at run time stays, since Helm does not know it: the CA's Secret, so that a mesh that comes back has its root, and the roots in every
# namespace. The agents' rights go before the agents do, so that what they said of a pod stays in its annotation until it ends or a mesh
# comes back. `stillmesh uninstall` takes those along.
namespace "$NS" $AMBIENT
server web "$NODE2"; client shop "$NODE1"; service web
need "pods start in the mesh" ready web shop
check "they are captured" enrolled web shop
before=$(k -n "$NS" get pods -o jsonpath='{.items[*].metadata.uid} {.items[*].status.containerStatuses[0].restartCount}')
check "helm uninstall" "$top/deploy/helm" uninstall stillmesh -n "$SYSTEM" --wait --timeout 120s
gone() { [ -z "$(k -n "$SYSTEM" get pods -o name)" ]; }
check "all pods of the mesh end" within 60 gone
check "the pods go on without it" within 30 asks shop "http://web.$NS/" 5
check "the same pods" same "$before" "$(k -n "$NS" get pods -o jsonpath='{.items[*].metadata.uid} {.items[*].status.containerStatuses[0].restartCount}')"
none() { silent k get "$@" -A -o name --ignore-not-found; }
check "no webhook is left" none validatingwebhookconfigurations,mutatingwebhookconfigurations
check "no role of the mesh is left" none clusterroles,clusterrolebindings,roles,rolebindings -l app.kubernetes.io/part-of=stillmesh
only() { same "$1" "$(k -n "$SYSTEM" "${@:2}")"; }
check "nothing labelled but the CA is left in its namespace" only secret/stillmesh-ca get all,configmaps,secrets,leases,pdb,networkpolicies -l app.kubernetes.io/part-of=stillmesh -o name
if [ "$OWN" = 1 ]; then
	for n in "$NODE1" "$NODE2"; do
		check "$n: no plugin, no configuration, no sockets, no state" silent cluster exec "$n" sh -c \
			'ls -d /opt/cni/bin/*stillmesh* 2>/dev/null; find /var/run/ztunnel/ /var/run/stillmesh-cni/ /var/lib/stillmesh-cni/ -mindepth 1; grep -l stillmesh -r /etc/cni/net.d 2>/dev/null; ls /etc/cni/net.d | grep -v "^10-lab.conflist$"'
		check "$n: no rule of the mesh on the node" not says stillmesh cluster exec "$n" nft list tables
	done
	for p in web shop; do
		check "$p: no rule is left in the pod" within 90 silent pod_ns $p nft list ruleset
		check "$p: no routing rule, no listener" not says 'fwmark|:1500' pod_ns $p sh -c 'ip rule; ss -Hltn'
	done
fi
k -n "$NS" delete pod shop --wait --timeout=60s >/dev/null
client shop "$NODE1"
check "new pods start without it" ready shop
