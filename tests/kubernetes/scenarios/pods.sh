# Who is in: new pods of an enrolled namespace from their first packet, but not those that say none; single pods that say ambient.
namespace "$NS" $AMBIENT
namespace "$NS-out"
server web "$NODE2"; service web
need "a new pod in an enrolled namespace starts" ready web
check "it was captured when it became ready" enrolled web
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: $NS}
spec: {mtls: {mode: STRICT}}
Y
client out "$NODE1" "istio.io/dataplane-mode: none"
N=$NS-out client in "$NODE1" "istio.io/dataplane-mode: ambient"
need "both kinds of exceptions start" ready out
N=$NS-out need "also in the other namespace" ready in
check "none keeps a pod out" stays 3 apart out
check "it is refused by a STRICT server" within 10 not in_pod out get -timeout 2s "http://web.$NS/"
in_asks() { N=$NS-out asks in "http://web.$NS/" 5; }
check "ambient takes a single pod in" in_asks
capture "$NODE1" "$NODE2"
for i in 1 2 3 4 5 6; do n=$NODE1; [ $((i % 2)) = 0 ] && n=$NODE2; pod early$i "$n" "[load, \"web.$NS:9000\"]"; done
check "six pods that connect from their first moment start" ready early1 early2 early3 early4 early5 early6
sums() { local i; for i in 1 2 3 4 5 6; do says 'TOTAL [1-9][0-9]* FAILED 0$' totals early$i || return 1; done; }
check "none of their connections failed" within 10 sums
[ "$OWN" = 0 ] || check "none was in clear" none_clear "$(ip4 out),$(ip6 out)"
k -n "$NS" label --overwrite pod out istio.io/dataplane-mode=ambient >/dev/null
check "a pod that changes its mind joins" within 20 enrolled out
check "and is let in" within 10 asks out "http://web.$NS/"
k -n "$NS" label --overwrite pod out istio.io/dataplane-mode=none >/dev/null
check "and leaves" within 20 apart out
