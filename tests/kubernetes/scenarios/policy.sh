# A policy is in force on both nodes within a second of being written, and says so in its status.
namespace "$NS" $AMBIENT
server web1 "$NODE1" "tier: web"; server web2 "$NODE2" "tier: web"
need "servers start" ready web1 web2
a1=$(ip4 web1):9000 a2=$(ip4 web2):9000
pod good "$NODE1" "[load, \"$a1\", \"$a2\"]"
pod bad "$NODE2" "[load, \"$a1\", \"$a2\"]"
need "clients start" ready good bad
both() { turned "$1" "$a1" "$2" && turned "$1" "$a2" "$2"; }
need "all is open before" within 20 both bad open

policy() { # NAME ACTION PRINCIPAL
	k apply -f - <<-Y
	apiVersion: security.istio.io/v1
	kind: AuthorizationPolicy
	metadata: {name: $1, namespace: $NS}
	spec: {selector: {matchLabels: {tier: web}}, action: $2, rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/$3"]}}]}]}
	Y
	written=$(now_ms)
}
# check, with how long after `written` each node turned: a figure, not a promise of a machine that does other things too.
turns() { # TEXT POD STATE
	check "$1" within 20 both "$2" "$3" && log "$(($(turned_at "$2" "$a1" "$3") - written)) ms on $NODE1, $(($(turned_at "$2" "$a2" "$3") - written)) ms on $NODE2 after kubectl returned"
}
policy no-bad DENY bad >/dev/null
turns "DENY is in force on both nodes" bad refused
check "the other client goes on" both good open
accepted() { k -n "$NS" get authorizationpolicy "$1" -o jsonpath='{range .status.conditions[?(@.type=="ZtunnelAccepted")]}{.status} {.observedGeneration}{end}'; }
check "its status says that ztunnel accepted this generation" within 20 says '^True 1$' accepted no-bad
k -n "$NS" delete authorizationpolicy no-bad >/dev/null; written=$(now_ms)
turns "taken away, the client is let in" bad open
policy only-good ALLOW good >/dev/null
turns "ALLOW of another refuses on both nodes" bad refused
check "the allowed client goes on" both good open
check "the allowed client never failed" same 0 "$(failures good)"
