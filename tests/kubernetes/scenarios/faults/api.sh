# needs nodes: takes the API server away.
# The API server is away for two minutes: what is open goes on, pods that start meanwhile are captured, and afterwards all is as before.
namespace "$NS" $AMBIENT
server web "$NODE2"; client shop "$NODE1"; service web
need "pods start" ready web shop
pod load "$NODE1" "[load, \"web.$NS:9000\"]"
need "clients start" ready load
need "they connect" within 20 says 'TOTAL [1-9]' totals load
restore() { cluster start cp kube-apiserver; within 60 k get --raw /readyz; }
sandbox() { cluster exec "$NODE2" ctr -n k8s.io containers ls -q "labels.\"io.kubernetes.pod.namespace\"==$NS,labels.\"io.kubernetes.pod.name\"==$1,labels.\"io.cri-containerd.kind\"==$2"; }
running() { cluster exec "$NODE2" ctr -n k8s.io task ls | awk '$3 == "RUNNING" { print $1 }' | grep -Fx "$(sandbox "$1" "$2")"; }
capture cp "$NODE2"
old=$(sandbox web sandbox)
began=$SECONDS
cluster stop cp kube-apiserver
check "the API server is away" not k get --raw /readyz
# A pod that starts while the API is away: its sandbox ends, the kubelet makes another one, the plugin is asked.
cluster exec "$NODE2" ctr -n k8s.io task kill -s KILL "$old"
again() { local new; new=$(running web sandbox | grep -v "$old"); [ -n "$new" ] && running web container; }
check "a pod of the mesh starts meanwhile" within 90 again
while [ $((SECONDS - began)) -lt "${AWAY:-120}" ]; do sleep 1; done
cluster start cp kube-apiserver
check "the API server is back after $((SECONDS - began)) s" within 60 k get --raw /readyz
check "the pod that started meanwhile is ready" ready web
check "and in the mesh" within 30 enrolled web
check "and answers in the mesh" within 20 in_pod shop tcp "web.$NS:9000" hello
check "nothing was opened in clear all the time" none_clear
check "nodes are ready again" k wait --for=condition=Ready node --all --timeout=120s
client late "$NODE1"
PATIENCE=120 check "new pods start" ready late
check "mesh is well" mesh_ready
policy() {
	k apply -f - <<-Y
	apiVersion: security.istio.io/v1
	kind: AuthorizationPolicy
	metadata: {name: nobody, namespace: $NS}
	spec: {selector: {matchLabels: {app: web}}}
	Y
}
policy >/dev/null
check "policies take effect" within 20 not in_pod late tcp "web.$NS:9000" hello
