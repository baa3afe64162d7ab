# A headless Service: clients learn pods' addresses by DNS and connect to them; the mesh carries and checks that too.
namespace "$NS" $AMBIENT
pod web1 "$NODE1" '[serve]' "hostname: web1, subdomain: web" "labels: {app: web}" "$READY"
pod web2 "$NODE2" '[serve]' "hostname: web2, subdomain: web" "labels: {app: web}" "$READY"
service web "clusterIP: None"
client shop "$NODE1"
need "pods start" ready web1 web2 shop
capture "$NODE1" "$NODE2"
check "its name has both addresses" within 20 says "$(ip4 web1).*$(ip4 web2)|$(ip4 web2).*$(ip4 web1)" in_pod shop lookup "web.$NS.svc.cluster.local"
check "its name is answered" asks shop "http://web.$NS:8080/" 10
check "each pod's name is answered by that pod" says '"pod":"web2"' asks shop "http://web2.web.$NS:8080/"
check "also on the client's node" says '"pod":"web1"' asks shop "http://web1.web.$NS:8080/"
[ "$OWN" = 0 ] || check "nothing was opened in clear" none_clear
