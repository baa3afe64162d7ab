# The same over IPv6: Service, pod address, policy, and nothing in clear.
namespace "$NS" $AMBIENT
server web "$NODE2"; client shop "$NODE1"; client other "$NODE1"
need "pods start" ready web shop other
if [ -z "$(ip6 web)" ]; then log "pods have no IPv6 addresses here"; finish; fi
service web "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]"
vip=$(k -n "$NS" get service web -o jsonpath='{.spec.clusterIPs[0]}')
capture "$NODE1" "$NODE2"
check "an IPv6 Service address answers" within 20 asks shop "http://[$vip]/" 10
check "a pod's IPv6 address answers, and sees the client's own" says "\"remote\":\"\[$(ip6 shop)\]:" asks shop "http://[$(ip6 web)]:8080/"
check "the name has addresses of both families" says "$vip" in_pod shop lookup "web.$NS.svc.cluster.local"
check "20 MB over IPv6" in_pod shop bulk "[$vip]:9000" 20
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-other, namespace: $NS}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/other"]}}]}]}
Y
check "a denied identity is refused over IPv6" within 20 not in_pod other get -timeout 2s "http://[$vip]/"
check "another is not" asks shop "http://[$vip]/"
[ "$OWN" = 0 ] || check "nothing was opened in clear" none_clear
