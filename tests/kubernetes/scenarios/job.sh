# A Job in the mesh: connects from its first moment, ends, and leaves nothing behind on the node.
namespace "$NS" $AMBIENT
server web "$NODE2"; service web
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: $NS}
spec: {mtls: {mode: STRICT}}
Y
need "server starts" ready web
k apply -f - >/dev/null <<Y
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: $NS}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {app: once}}
    spec:
      nodeSelector: {kubernetes.io/hostname: $NODE1}
      restartPolicy: Never
      containers: [{name: app, image: "$APP", args: [get, -n, "20", "http://web.$NS/"]}]
Y
check "it reaches a STRICT server at once and ends" k -n "$NS" wait --for=condition=Complete job/once --timeout=60s
p=$(k -n "$NS" get pod -l app=once -o jsonpath='{.items[0].metadata.name}')
check "20 of 20 connections" same 20 "$(k -n "$NS" logs "$p" | grep -c '^200')"
if [ "$OWN" = 1 ]; then
	uid=$(k -n "$NS" get pod "$p" -o jsonpath='{.metadata.uid}')
	kept() { cluster exec "$NODE1" sh -c "ls -R /var/lib/stillmesh-cni; cat /var/lib/stillmesh-cni/* 2>/dev/null" | grep -a "$uid"; }
	check "the agent's state on disk has forgotten it" within 30 not kept
	k -n "$NS" delete job once >/dev/null
	check "no network namespace is left" within 30 bash -c "[ \"\$($here/cluster exec $NODE1 ls /var/run/netns | wc -l)\" -le \"\$($here/cluster exec $NODE1 ctr -n k8s.io task ls | grep -c RUNNING)\" ]"
fi
