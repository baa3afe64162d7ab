# Running pods join the mesh when their namespace is labelled: nothing restarts, no open connection breaks, and from then on
# what goes between the nodes is the mesh's alone.
namespace
server web "$NODE2"; client shop "$NODE1"; service web
need "pods start outside the mesh" ready web shop
# One connection for its whole life: only once somebody answers.
need "the Service answers" within 20 in_pod shop tcp "web.$NS:9000" hello
RESTART=Never pod holder "$NODE1" "[hold, \"web.$NS:9000\"]"
need "a connection is open before the label" within 20 says 'held 10' last holder
before=$(k -n "$NS" get pods -o jsonpath='{range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}{"\n"}{end}')

wire() { # WORD: says it from node to node, and whether it stood on the wire
	"$here/cluster" capture cp "$WORK/wire" tcp 2>"$WORK/wire.err" & local tap=$!
	within 10 grep -q listening "$WORK/wire.err" && in_pod shop tcp "web.$NS:9000" "$1" && sleep 0.5
	kill $tap; wait $tap 2>/dev/null
	grep -qa "$1" "$WORK/wire"
}
[ "$OWN" = 0 ] || check "a word can be read between the nodes" wire in-the-clear

enrol
check "running pods join" within 30 enrolled web shop holder
check "they are the same pods, not restarted" same "$before" "$(k -n "$NS" get pods -o jsonpath='{range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}{"\n"}{end}')"
capture "$NODE1" "$NODE2"
check "the Service answers" within 10 asks shop "http://web.$NS/" 10
check "the server sees the client's own address" says "\"remote\":\"$(ip4 shop):" asks shop "http://$(ip4 web):8080/"
check "20 MB come back as they were sent" in_pod shop bulk "web.$NS:9000" 20
if [ "$OWN" = 1 ]; then
	[ "$NODE1" = n1 ] && check "the tunnel's port is used" within 20 bash -c 'tcpdump -nn -r "$WORK/n1.pcap" 2>/dev/null | grep -q "\.15008: "'
	check "no connection was opened in clear" none_clear
	check "a word cannot be read between the nodes" not wire now-hidden
fi
lines() { last holder | sed 's/.*held //'; }
n=$(lines)
check "the connection from before goes on" within 10 bash -c "[ \"\$(kubectl -n $NS logs holder --tail=1 | sed 's/.*held //')\" -gt $n ]"
check "it never broke" same Running "$(phase holder)"
check "each pod has a receipt" says stillmesh.io/receipt k -n "$NS" get pod web shop -o jsonpath='{range .items[*]}{.metadata.annotations}{"\n"}{end}'
