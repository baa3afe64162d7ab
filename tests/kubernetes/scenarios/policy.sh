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
# How long after `written` the slower node turned; refuses more than a second.
quickly() { # POD STATE
	local t1 t2
	t1=$(turned_at "$1" "$a1" "$2"); t2=$(turned_at "$1" "$a2" "$2")
	t1=$((t1 - written)) t2=$((t2 - written))
	echo "$t1 ms on $NODE1, $t2 ms on $NODE2 after kubectl returned"
	[ $t1 -lt 1000 ] && [ $t2 -lt 1000 ]
}
policy no-bad DENY bad >/dev/null
check "DENY is in force on both nodes" within 20 both bad refused
note "$(quickly bad refused)"; check "within a second" quickly bad refused
check "the other client goes on" both good open
accepted() { k -n "$NS" get authorizationpolicy "$1" -o jsonpath='{range .status.conditions[?(@.type=="ZtunnelAccepted")]}{.status} {.observedGeneration}{end}'; }
check "its status says that ztunnel accepted this generation" within 20 says '^True 1$' accepted no-bad
k -n "$NS" delete authorizationpolicy no-bad >/dev/null; written=$(now_ms)
check "taken away, the client is let in" within 20 both bad open
note "$(quickly bad open)"; check "within a second too" quickly bad open
policy only-good ALLOW good >/dev/null
check "ALLOW of another refuses on both nodes" within 20 both bad refused
note "$(quickly bad refused)"; check "within a second as well" quickly bad refused
check "the allowed client goes on" both good open
check "the allowed client never failed" same 0 "$(failures good)"
