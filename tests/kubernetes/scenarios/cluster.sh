# needs no mesh
# The cluster itself, before anything is said about the mesh: both families across nodes, DNS, drops on a link, and that what goes
# in clear is counted.
namespace "$NS"
server web "$NODE2"; client shop "$NODE1"; client near "$NODE2"; service web "ipFamilyPolicy: PreferDualStack"
need "pods start" ready web shop near
capture "$NODE1" "$NODE2"
check "pod to pod across nodes, the source address kept" says "\"remote\":\"$(ip4 shop):" asks shop "http://$(ip4 web):8080/"
check "Service by name" within 20 asks shop "http://web/" 5
if [ -n "$(ip6 web)" ]; then
	check "IPv6 pod to pod across nodes" says "\"remote\":\"\[$(ip6 shop)\]:" asks shop "http://[$(ip6 web)]:8080/"
	check "IPv6 Service" asks shop "http://[$(k -n "$NS" get service web -o jsonpath='{.spec.clusterIPs[1]}')]/"
fi
check "bytes come back as sent" in_pod shop bulk "$(ip4 web):9000" 20
if [ "$OWN" = 1 ]; then
	# 1 + 5 + 1 + 1 + 1 from shop
	count=$(clear_count 2>"$WORK/seen")
	check "connections in clear are counted" same 9 "$count" || cat "$WORK/seen"
	check "and can be left out by address" same 0 "$(cluster count-clear "$WORK"/n*.pcap --except "$(ip4 shop),$(ip6 shop)")"
	cluster deny "$NS/web" 8080
	check "a drop on the pod's link holds across nodes" not in_pod shop get -timeout 1s "http://$(ip4 web):8080/"
	check "and on its node" not in_pod near get -timeout 1s "http://$(ip4 web):8080/"
	check "for its port only" in_pod near tcp "$(ip4 web):9000" hello
	cluster allow "$NS/web"
	check "and goes away" asks shop "http://$(ip4 web):8080/"
fi
