# needs nodes: counts what is left on one.
# 200 pods start and are deleted on one node, as fast as the kubelet can: nothing leaks, nothing is in clear.
namespace "$NS" $AMBIENT
server web "$NODE1"; service web
need "server starts" ready web
t=$(ztunnel "$NODE2") g=$(agent "$NODE2")
process() { # POD: pid on the node
	local id; id=$(k -n "$SYSTEM" get pod "$1" -o jsonpath='{.status.containerStatuses[0].containerID}')
	cluster exec "$NODE2" ctr -n k8s.io task ls | awk -v id="${id#*//}" '$1 == id { print $2 }'
}
tp=$(process "$t") gp=$(process "$g")
figures() { # namespaces, state files; open files, sockets, threads and RSS of ztunnel and agent
	local p
	echo "netns $(cluster exec "$NODE2" ls /var/run/netns | wc -l)"
	echo "state $(cluster exec "$NODE2" sh -c 'find /var/lib/stillmesh-cni -type f | wc -l')"
	for p in "ztunnel $tp" "agent $gp"; do
		echo "${p% *}-files $(cluster exec "$NODE2" sh -c "ls /proc/${p#* }/fd | wc -l")"
		echo "${p% *}-threads $(cluster exec "$NODE2" sh -c "ls /proc/${p#* }/task | wc -l")"
		echo "${p% *}-kb $(cluster exec "$NODE2" awk '/VmRSS/ { print $2 }' "/proc/${p#* }/status")"
	done
}
round() { # PODS
	k apply -f - <<-Y
	apiVersion: apps/v1
	kind: Deployment
	metadata: {name: many, namespace: $NS}
	spec:
	  replicas: $1
	  selector: {matchLabels: {app: many}}
	  template:
	    metadata: {labels: {app: many}}
	    spec:
	      nodeSelector: {kubernetes.io/hostname: $NODE2}
	      terminationGracePeriodSeconds: 0
	      containers: [{name: app, image: "$APP", args: [load, -every, 1s, "web.$NS:9000"], resources: {requests: {cpu: 1m}}}]
	Y
	k -n "$NS" rollout status deployment/many --timeout=300s || return 1
	all() { [ "$(k -n "$NS" get pods -l app=many -o jsonpath='{range .items[*]}{.metadata.annotations.ambient\.istio\.io/redirection}{"\n"}{end}' | grep -c enabled)" = "$1" ]; }
	within 60 all "$1"
}
clear_away() { k -n "$NS" delete deployment many --wait >/dev/null; within 180 silent k -n "$NS" get pods -l app=many -o name; }
check "a first ten start" round 10
check "and end" clear_away
sleep 5
figures > "$WORK/before"
capture cp
began=$SECONDS
for i in 1 2 3 4; do
	check "50 pods start, all captured ($i)" round 50
	check "and end ($i)" clear_away
done
note "200 pods in $((SECONDS - began)) s"
check "nothing was opened in clear between the nodes" none_clear
leaks() {
	figures > "$WORK/after"
	join "$WORK/before" "$WORK/after" | awk '
		$1 ~ /-kb$/ ? $3 > $2 * 1.5 + 10240 : $1 ~ /threads/ ? $3 > $2 + 8 : $3 > $2 + 2 { print $1, $2, "->", $3; bad = 1 }
		END { exit bad }'
}
check "nothing is left of them" within 60 leaks
note "$(join "$WORK/before" "$WORK/after" | awk '{ printf "%s %s -> %s; ", $1, $2, $3 }')"
check "neither process was restarted" same "$tp $gp" "$(process "$t") $(process "$g")"
