# needs nodes: damages the CNI configuration.
# The plugin or its entry disappears, and the primary CNI rewrites its file, while pods start: repaired, and none starts uncaptured.
namespace "$NS" $AMBIENT
server web "$NODE1"; service web
need "server starts" ready web
chained() { cluster exec "$NODE2" sh -c 'grep -l stillmesh /etc/cni/net.d/*.conflist'; }
need "the plugin is chained" within 20 chained
conf=$(chained)
binary() { cluster exec "$NODE2" test -x /opt/cni/bin/stillmesh-cni; }
capture cp "$NODE2"
starts() { # PREFIX: two more pods that connect at once
	local i
	for i in 1 2; do pod "$1$i" "$NODE2" "[load, -every, 100ms, \"web.$NS:9000\"]"; done
	ready "${1}1" "${1}2" && within 10 enrolled "${1}1" "${1}2"
}
cluster exec "$NODE2" rm /opt/cni/bin/stillmesh-cni
check "pods start after the plugin's binary was removed" starts binary
check "it is back" within 20 binary
cluster rewrite-conflist "$NODE2"
check "pods start after the primary CNI rewrote its file" starts rewrite
check "the plugin is chained again" within 20 chained
for i in 1 2 3 4 5; do cluster rewrite-conflist "$NODE2"; sleep 0.2; done
check "and after it did so five times in a second" starts often
check "chained" within 20 chained
cluster exec "$NODE2" sh -c "echo '{' > $conf.broken; mv $conf.broken $conf"
sleep 1; cluster rewrite-conflist "$NODE2"
check "and after the file was garbage for a second" starts garbage
check "chained, once" says '^1$' cluster exec "$NODE2" sh -c "grep -o '\"type\": *\"stillmesh-cni\"' /etc/cni/net.d/*.conflist | wc -l"
check "nothing was opened in clear" none_clear
all() { local p; for p in {binary,rewrite,often,garbage}{1,2}; do says 'TOTAL [1-9][0-9]* FAILED 0$' totals $p || return 1; done; }
check "all of them connect, always" within 20 all
