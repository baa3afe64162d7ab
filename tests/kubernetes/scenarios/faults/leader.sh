# Controllers die at any moment, and one sleeps while it leads: exactly one leads afterwards, policies take effect, the root of
# trust stays.
namespace "$NS" $AMBIENT
server web "$NODE2"
need "server starts" ready web
pod load "$NODE1" "[load, \"$(ip4 web):9000\"]"
need "client starts" ready load
root() { k -n "$NS" get configmap istio-ca-root-cert -o jsonpath='{.data.root-cert\.pem}'; }
need "the namespace has the root certificate" within 20 root
was=$(root)
leader() { k -n "$SYSTEM" get lease -o jsonpath='{range .items[*]}{.spec.holderIdentity}{"\n"}{end}' | grep . | head -n1 | sed 's/_.*//'; }
need "one controller leads" says stillmesh-controller leader
policy() { printf 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: %s}\nspec: {selector: {matchLabels: {app: web}}}\n' "$NS" | k "$@" -f -; }
a=$(ip4 web):9000
for i in 1 2 3 4 5; do
	p=$(k -n "$SYSTEM" get pods -l app=stillmesh-controller -o name | sort -R | head -n1)
	policy apply >/dev/null 2>&1
	k -n "$SYSTEM" delete "$p" --grace-period=0 --force --wait=false >/dev/null 2>&1
	check "a policy written as a controller dies takes effect ($i)" within 40 turned load "$a" refused
	policy delete >/dev/null 2>&1
	check "and so does its removal ($i)" within 40 turned load "$a" open
done
check "all controllers come back" mesh_ready
old=$(leader)
k -n "$SYSTEM" delete pod "$old" --grace-period=0 --force >/dev/null 2>&1
other() { local l; l=$(leader); [ -n "$l" ] && [ "$l" != "$old" ]; }
check "another one leads after the leader died" within 40 other
check "the root of trust is the same" same "$was" "$(root)"
if [ "$OWN" = 1 ]; then
	mesh_ready >/dev/null
	old=$(leader)
	n=$(k -n "$SYSTEM" get pod "$old" -o jsonpath='{.spec.nodeName}')
	id=$(k -n "$SYSTEM" get pod "$old" -o jsonpath='{.status.containerStatuses[0].containerID}')
	pid=$(cluster exec "$n" ctr -n k8s.io task ls | awk -v id="${id#*//}" '$1 == id { print $2 }')
	restore() { cluster exec "$n" kill -CONT "$pid" 2>/dev/null; }
	cluster exec "$n" kill -STOP "$pid"
	check "another one leads while the leader sleeps" within 60 other
	new=$(leader)
	cluster exec "$n" kill -CONT "$pid"
	keeps() { same "$new" "$(leader)"; }
	check "it goes on leading when the other wakes" stays 10 keeps
	k -n "$NS" delete configmap istio-ca-root-cert >/dev/null
	check "what the leader keeps is still kept" within 20 same "$was" "$(root)"
fi
check "mesh is well" mesh_ready
check "clients connect" within 20 turned load "$a" open
