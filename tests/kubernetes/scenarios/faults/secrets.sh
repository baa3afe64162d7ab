# The root ConfigMap and the CA's Secret are deleted or overwritten: both come back as they were, and nobody notices.
namespace "$NS" $AMBIENT
server web "$NODE2"
need "server starts" ready web
pod load "$NODE1" "[load, \"$(ip4 web):9000\"]"
need "client starts" ready load
root() { k -n "$NS" get configmap istio-ca-root-cert -o jsonpath='{.data.root-cert\.pem}'; }
need "the namespace has the root certificate" within 20 says BEGIN root
was=$(root)
restored() { [ "$(root)" = "$was" ]; }
k -n "$NS" delete configmap istio-ca-root-cert >/dev/null
check "a deleted root ConfigMap comes back" within 20 restored
k -n "$NS" create configmap istio-ca-root-cert --from-literal=root-cert.pem=garbage --dry-run=client -o yaml | k replace -f - >/dev/null
check "an overwritten one is put right" within 20 restored
key() { k -n "$SYSTEM" get secret stillmesh-ca -o jsonpath='{.data}' | sha256sum; }
kept=$(key)
kept_again() { [ "$(key)" = "$kept" ]; }
k -n "$SYSTEM" delete secret stillmesh-ca >/dev/null
check "a deleted CA Secret comes back" within 30 k -n "$SYSTEM" get secret stillmesh-ca
check "with the same key" within 10 kept_again
name=$(k -n "$SYSTEM" get secret stillmesh-ca -o json | grep -o '"[a-z-]*\(\.pem\|\.crt\|\.key\)"' | head -n1 | tr -d '"')
saved=$(k -n "$SYSTEM" get secret stillmesh-ca -o yaml)
restore() { k -n "$SYSTEM" get secret stillmesh-ca >/dev/null 2>&1 || k create -f - <<<"$saved" >/dev/null; }
k -n "$SYSTEM" patch secret stillmesh-ca --type merge -p "{\"data\":{\"${name:-ca-key.pem}\":\"Z2FyYmFnZQ==\"}}" >/dev/null
check "an overwritten one is put right" within 30 kept_again
client late "$NODE1"
check "new pods get certificates" ready late
check "and are answered" within 20 in_pod late tcp "$(ip4 web):9000" hello
check "no connection failed meanwhile" same 0 "$(failures load)"
k -n "$SYSTEM" rollout restart deployment/stillmesh-controller >/dev/null
check "controllers start again" k -n "$SYSTEM" rollout status deployment/stillmesh-controller --timeout=120s
check "with the same root" restored
client later "$NODE2"
check "pods get certificates from them" ready later
check "and are answered too" within 20 in_pod later tcp "$(ip4 web):9000" hello
check "no connection failed at all" same 0 "$(failures load)"
