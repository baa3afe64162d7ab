# needs nodes: reboots one.
# A node goes down hard and comes back under its name, its primary CNI writing its own configuration: its pods are in the mesh again
# before they say a word.
namespace "$NS" $AMBIENT
server web "$NODE1"; service web
server far "$NODE2"; service far
pod caller "$NODE2" "[load, \"web.$NS:9000\"]"
need "pods start" ready web far caller
pod load "$NODE1" "[load, \"far.$NS:9000\", \"web.$NS:9000\"]"
need "client starts" ready load
capture cp "$NODE1"
check "the node is killed and restarted" cluster reboot-node "$NODE2"
back() { k wait --for=condition=Ready "node/$NODE2" --timeout=5s && [ "$(k -n "$NS" get pod caller -o jsonpath='{.status.containerStatuses[0].restartCount}')" -gt 0 ]; }
check "it is ready again, its pods restarted" within 120 back
PATIENCE=120 check "its pods are ready" ready far caller
check "the mesh's pods are too" mesh_ready
check "and in the mesh" within 30 enrolled far caller
talks() { in_pod load tcp "far.$NS:9000" hello && in_pod caller tcp "web.$NS:9000" hello; }
check "they are reached, and reach others" within 30 talks
check "nothing was opened in clear between the nodes" none_clear
check "the plugin is chained" cluster exec "$NODE2" sh -c 'grep -l stillmesh /etc/cni/net.d/*.conflist'
