# A policy's status says on how many nodes it is in force, names a node that lags, and claims nothing that a connection disproves.
namespace "$NS" $AMBIENT
server web1 "$NODE1" "tier: web"; server web2 "$NODE2" "tier: web"
need "servers start" ready web1 web2
a1=$(ip4 web1):9000 a2=$(ip4 web2):9000
pod bad "$NODE1" "[load, \"$a1\", \"$a2\"]"
need "a client starts" ready bad
both() { turned bad "$a1" "$1" && turned bad "$a2" "$1"; }
need "all is open before" within 20 both open

policy() { # ACTION
	k apply -f - <<-Y
	apiVersion: security.istio.io/v1
	kind: AuthorizationPolicy
	metadata: {name: no-bad, namespace: $NS}
	spec: {selector: {matchLabels: {tier: web}}, action: $1, rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/bad"]}}]}]}
	Y
}
in_force() { k -n "$NS" get authorizationpolicy no-bad -o jsonpath='{range .status.conditions[?(@.type=="stillmesh.io/InForce")]}{.status} {.observedGeneration} {.message}{end}'; }
policy DENY >/dev/null
check "the status says that it is in force on both nodes" within 20 says '^True 1 in force on 2 of 2 nodes, p99 [0-9]+ ms' in_force
check "kubectl can wait for it" k -n "$NS" wait authorizationpolicy/no-bad --for=condition=stillmesh.io/InForce --timeout=20s
check "then both nodes refuse" within 20 both refused

# The tunnel of one node stands still.
if [ "$OWN" = 1 ]; then
	tunnel=$(k -n "$SYSTEM" get pod -l app=ztunnel --field-selector "spec.nodeName=$NODE2" -o jsonpath='{.items[0].metadata.name}')
	container=$(cluster exec "$NODE2" ctr -n k8s.io containers ls -q "labels.\"io.kubernetes.pod.namespace\"==$SYSTEM,labels.\"io.kubernetes.pod.name\"==$tunnel,labels.\"io.cri-containerd.kind\"==container")
	tunnel() { cluster exec "$NODE2" ctr -n k8s.io task kill -s "$1" "$container"; }
	restore() { tunnel SIGCONT; }
	need "node 2's tunnel is stopped" tunnel SIGSTOP
	policy ALLOW >/dev/null
	check "the status names the node that lags" within 20 says "^False 2 in force on 1 of 2 nodes; lagging: $NODE2 \\(not " in_force
	check "the node that has it lets the client in" within 20 turned bad "$a1" open
	check "the other one does not" not turned bad "$a2" open
	need "it goes on" tunnel SIGCONT
	check "the status says that it is in force on both" within 60 says '^True 2 in force on 2 of 2 nodes' in_force
	check "and both let the client in" within 20 both open
fi
# A controller that starts anew knows it by its content, and writes nothing.
version() { k -n "$NS" get authorizationpolicy no-bad -o jsonpath='{.metadata.resourceVersion}'; }
before=$(version)
k -n "$SYSTEM" rollout restart deployment stillmesh-controller >/dev/null
check "the controller is replaced" k -n "$SYSTEM" rollout status deployment stillmesh-controller --timeout=120s
check "it says so as before" stays 15 says '^True . in force on 2 of 2 nodes' in_force
check "without writing it again" same "$before" "$(version)"
