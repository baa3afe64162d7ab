# Leaving drains: what the tunnel carries goes on until it ends, new connections go directly, and nothing stays in the pods.
namespace "$NS" $AMBIENT
server web "$NODE2"; client shop "$NODE1"; service web
need "pods start" ready web shop
pod holder "$NODE1" "[hold, \"web.$NS:9000\"]"
pod caller "$NODE1" "[load, \"web.$NS:9000\"]"
need "clients start" ready holder caller
need "a connection is open through the tunnel" within 20 says 'held 10' last holder
capture "$NODE1" "$NODE2"
leave
check "pods leave" within 30 apart web shop holder caller
on() { local n; n=$(last holder | sed 's/.*held //'); within 20 bash -c "[ \"\$(kubectl -n $NS logs holder --tail=1 | sed 's/.*held //')\" -gt $n ]"; }
check "the open connection goes on" on
check "a new connection is answered" asks shop "http://web.$NS/" 10
if [ "$OWN" = 1 ]; then
	direct() { local n; n=$(clear_count 2>/dev/null); [ "$n" -gt 0 ] || { echo "$n"; return 1; }; }
	check "directly" direct
fi
check "no connection of the caller failed meanwhile" same 0 "$(failures caller)"
check "the open one never broke" same 0 "$(k -n "$NS" get pod holder -o jsonpath='{.status.containerStatuses[0].restartCount}')"
if [ "$OWN" = 1 ]; then
	bare() { silent pod_ns "$1" nft list ruleset && not says fwmark pod_ns "$1" ip rule && not says 1500 pod_ns "$1" ss -Hltn; }
	check "no rule, route or listener stays in a pod without old connections" within 90 bare shop
	k -n "$NS" delete pod holder --wait --timeout=30s >/dev/null
	check "nor in the server, once the last of them has ended" within 90 bare web
fi
