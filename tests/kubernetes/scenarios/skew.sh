# Parts of this version and of the one before work together, both ways: controller new and nodes old, and the reverse.
# needs PREVIOUS_IMAGE
namespace "$NS" $AMBIENT
server web "$NODE2"; client shop "$NODE1"; client other "$NODE1"; service web
need "pods start" ready web shop other
image() { # IMAGE deployment/NAME|daemonset/NAME...
	local image=$1 part; shift
	for part; do k -n "$SYSTEM" set image "$part" "*=$image" >/dev/null || return 1; done
	for part; do k -n "$SYSTEM" rollout status "$part" --timeout=180s || return 1; done
}
nodes="daemonset/stillmesh-cni daemonset/ztunnel" controller=deployment/stillmesh-controller
restore() { image "$IMAGE" $controller $nodes >/dev/null 2>&1; }
policy() { # ACCOUNT
	k apply -f - >/dev/null <<-Y
	apiVersion: security.istio.io/v1
	kind: AuthorizationPolicy
	metadata: {name: web, namespace: $NS}
	spec: {selector: {matchLabels: {app: web}}, action: ALLOW, rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/$1"]}}]}]}
	Y
}
together() { # TEXT
	local late
	check "$1: pods are in the mesh" within 60 enrolled web shop other
	k -n "$NS" delete authorizationpolicy --all >/dev/null
	check "$1: they connect" within 30 asks shop "http://web.$NS/" 3
	policy shop
	check "$1: a policy admits whom it names" within 20 asks shop "http://web.$NS/" 3
	check "$1: and nobody else" within 20 not asks other "http://web.$NS/"
	policy other
	check "$1: its change is in force" within 20 not asks shop "http://web.$NS/"
	late=late-$((SECONDS))
	client "$late" "$NODE2"
	check "$1: a new pod starts in the mesh" ready "$late"
	check "$1: and is captured" within 30 enrolled "$late"
}
check "the controller is of the version before" image "$PREVIOUS_IMAGE" $controller
together "old controller, new nodes"
check "the nodes are of the version before, the controller of this one" image "$PREVIOUS_IMAGE" $nodes
check "the controller is new" image "$IMAGE" $controller
together "new controller, old nodes"
check "all of this version" image "$IMAGE" $nodes
together "all new"
