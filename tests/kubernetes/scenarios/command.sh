# The command alone puts the mesh in, looks at it, upgrades it and takes it out again; nothing is left.
# needs nodes
# needs the command
"$top/deploy/helm" uninstall stillmesh -n "$SYSTEM" --wait --timeout 120s >/dev/null 2>&1
k delete namespace "$SYSTEM" --ignore-not-found --wait --timeout=120s >/dev/null 2>&1
k delete crd -l app.kubernetes.io/part-of=stillmesh --ignore-not-found >/dev/null 2>&1
mesh() { "$STILLMESH" "$@" </dev/null; }
restore() { mesh uninstall -y --purge --force >/dev/null 2>&1; }
namespace "$NS" $AMBIENT
server web "$NODE2"; client shop "$NODE1"; service web
need "pods start" ready web shop

check "the cluster is fit" mesh check --pre
check "a dry run says what would be, and does nothing" says 'created +DaemonSet '"$SYSTEM"'/ztunnel' mesh install --dry-run --set "image=$IMAGE"
check "nothing is there after it" not k get namespace "$SYSTEM"
need "install" mesh install --set "image=$IMAGE" --timeout 180s
check "running pods are captured" within 30 enrolled web shop
check "they connect" within 30 asks shop "http://web.$NS/" 3
check "nothing is wrong" within 30 mesh check
check "a second run changes nothing" says ' 0 created, 0 changed, 0 removed' mesh install
check "status is one screen" says "$NODE1 +ready +ready" mesh status
check "versions" says 'data plane version: .* \(2 proxies\)' mesh version
check "zc workload" says "$NS +web .*$NODE2 +None +HBONE" mesh zc workload
check "zc service" says "$NS +web .* 1/1" mesh zc service
check "zc certificate" says "$NODE2 +spiffe://cluster.local/ns/$NS/sa/web +Leaf +Available +true" mesh zc certificate
in_pod shop hold "$(ip4 web):9000" >/dev/null 2>&1 & holder=$!
check "zc connections" within 20 says "shop.$NS +Outbound .*HBONE" mesh zc connections --node "$NODE1"
kill $holder 2>/dev/null
check "zc log" says 'current log level is' mesh zc log --node "$NODE1"
check "the output has no control characters" not grep -q "$(printf '\033')" <(mesh check; mesh status)
check "upgrade, part by part" mesh upgrade --set image.tag=test2 --set image.repository=localhost/stillmesh
check "they connect afterwards" within 30 asks shop "http://web.$NS/" 3

k create namespace istio-system >/dev/null 2>&1
k -n istio-system create deployment istiod --image="$APP" --replicas=0 >/dev/null
check "not beside an istiod" says 'Deployment istio-system/istiod is another control plane' not mesh install
k delete namespace istio-system --wait --timeout=60s >/dev/null
check "an object that somebody else has changed is not taken over" says 'spec.replicas' \
	eval 'k -n "$SYSTEM" scale deployment stillmesh-controller --replicas=3 >/dev/null; not mesh install'
check "but with --force" mesh install --force

before=$(k -n "$NS" get pods -o jsonpath='{.items[*].metadata.uid}')
check "uninstall asks, and does nothing where nobody answers" says 'say -y' not mesh uninstall
timeout -s INT 1 "$STILLMESH" uninstall -y </dev/null >/dev/null 2>&1
check "a second run goes on where the first was interrupted" mesh uninstall -y --timeout 120s
check "the same pods, outside the mesh" same "$before" "$(k -n "$NS" get pods -o jsonpath='{.items[*].metadata.uid}')"
check "they are not marked" apart web shop
check "they connect without it" within 30 asks shop "http://web.$NS/" 3
none() { silent k get "$@" -A -o name --ignore-not-found; }
check "no namespace is left" not k get namespace "$SYSTEM"
check "no root certificate is left" none configmaps --field-selector metadata.name=istio-ca-root-cert
check "nothing that is labelled is left" none clusterroles,clusterrolebindings,roles,rolebindings,validatingwebhookconfigurations,validatingadmissionpolicies,leases,secrets -l app.kubernetes.io/part-of=stillmesh
check "definitions are kept" k get crd authorizationpolicies.security.istio.io
for n in "$NODE1" "$NODE2"; do
	check "$n: no plugin, no configuration" silent cluster exec "$n" sh -c 'ls /opt/cni/bin | grep stillmesh; grep -l stillmesh -r /etc/cni/net.d'
done
check "a purge takes them too" mesh uninstall -y --purge
check "no definition is left" none crd -l app.kubernetes.io/part-of=stillmesh
check "and then there is nothing to do" says 'nothing of Stillmesh' mesh uninstall -y --purge
