# A pod's address goes to another pod, and a pod comes back at once under the same name as somebody else: no identity is ever wrong.
namespace "$NS" $AMBIENT
server web "$NODE1"
need "server starts" ready web
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-alice, namespace: $NS}
spec: {selector: {matchLabels: {app: web}}, action: ALLOW, rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/alice"]}}]}]}
Y
a=$(ip4 web):9000
client alice "$NODE2"
need "the allowed client starts" ready alice
check "it is let in" within 20 in_pod alice tcp "$a" hello
if [ "$OWN" = 1 ]; then
	address=$(ip4 alice)
	has() { ready "$1" && same "$address" "$(ip4 "$1")"; }
	for i in 1 2 3; do
		k -n "$NS" delete pod alice --grace-period=0 --force >/dev/null 2>&1
		within 30 not cluster exec "$NODE2" test -e "/var/lib/cni/networks/lab/$address"
		# The allocator goes on from the last address given out: make that the one before.
		cluster exec "$NODE2" sh -c "printf ${address%.*}.$((${address##*.} - 1)) > /var/lib/cni/networks/lab/last_reserved_ip.0"
		pod mallory "$NODE2" "[load, \"$a\"]"
		check "another pod gets its address ($i)" has mallory
		check "and is refused from its first connection on ($i)" within 10 says 'TOTAL [1-9]' totals mallory
		check "always ($i)" not turned mallory "$a" open
		k -n "$NS" delete pod mallory --grace-period=0 --force >/dev/null 2>&1
		within 30 not cluster exec "$NODE2" test -e "/var/lib/cni/networks/lab/$address"
		cluster exec "$NODE2" sh -c "printf ${address%.*}.$((${address##*.} - 1)) > /var/lib/cni/networks/lab/last_reserved_ip.0"
		client alice "$NODE2"
		check "the first gets it again ($i)" has alice
		check "and is let in ($i)" within 10 in_pod alice tcp "$a" hello
	done
fi
# The same name, another account.
as() { k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: twin, namespace: $NS}
spec: {serviceAccountName: $1, nodeSelector: {kubernetes.io/hostname: $NODE2}, terminationGracePeriodSeconds: 0, containers: [{name: app, image: "$APP", args: [load, "$a"]}]}
Y
}
k -n "$NS" create serviceaccount mallory >/dev/null 2>&1
for i in 1 2 3; do
	as alice; ready twin >/dev/null
	check "as one account it is let in ($i)" within 20 turned twin "$a" open
	k -n "$NS" delete pod twin --grace-period=0 --force >/dev/null 2>&1
	as mallory; ready twin >/dev/null
	check "as the other it connects ($i)" within 20 says 'TOTAL [1-9]' totals twin
	check "and is always refused ($i)" not turned twin "$a" open
	k -n "$NS" delete pod twin --grace-period=0 --force >/dev/null 2>&1
done
