# Init containers, sidecars that the kubelet knows, and containers added by kubectl debug are captured as the pod is.
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
apiVersion: v1
kind: Pod
metadata: {name: many, namespace: $NS}
spec:
  nodeSelector: {kubernetes.io/hostname: $NODE1}
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: "$APP", args: [get, -n, "5", "http://web.$NS/"]}
  - {name: beside, image: "$APP", restartPolicy: Always, args: [load, "web.$NS:9000"]}
  containers:
  - {name: app, image: "$APP", args: [sleep, "100000"]}
Y
check "a pod whose init container needs a STRICT server starts" ready many
check "the init container was answered" same 5 "$(k -n "$NS" logs many -c first | grep -c '^200')"
check "its sidecar is answered" within 20 says 'TOTAL [1-9][0-9]* FAILED 0$' k -n "$NS" logs many -c beside --tail=1
k -n "$NS" debug many --image="$APP" --container=late --image-pull-policy=IfNotPresent --profile=general -- /testapp get -n 5 "http://web.$NS/" >/dev/null 2>&1
check "an ephemeral container is answered" within 30 says '^200' k -n "$NS" logs many -c late
