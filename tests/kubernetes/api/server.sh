# An API server of one's own: kube-apiserver and etcd as processes on loopback, with all state in a temporary directory.
# To be sourced. KUBE: the binary that holds both; tests/kubernetes/cluster build makes it where it is not given.
# Gives: work (the directory), pids (what is ended at exit, by id), api_start [FLAG...] (flags of kube-apiserver; then
# KUBECONFIG is exported), api_run NAME COMMAND... (one more process, with its log in the directory).
# shellcheck shell=bash
server=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${KUBE:-}" ]; then
	"$server/../cluster" build
	KUBE=$("$server/../cluster" bin)/kube
fi
work=$(mktemp -d)
pids=()
api_end() {
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	wait
	rm -rf "$work"
}
trap api_end EXIT
trap 'exit 130' INT TERM

api_run() {
	local name=$1
	shift
	"$@" >"$work/$name.log" 2>&1 &
	pids+=($!)
}

api_start() {
	local client peer api token
	# Ports that nobody has now.
	read -r client peer api < <(python3 -c '
import socket
held = [socket.socket() for _ in range(3)]
for one in held: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))')
	api_run etcd "$KUBE" etcd --name api --data-dir "$work/etcd" --unsafe-no-fsync --log-level warn \
		--listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
		--listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
		--initial-cluster "api=http://127.0.0.1:$peer"
	openssl genrsa -out "$work/sa.key" 2048 2>/dev/null
	token=$(openssl rand -hex 16)
	echo "$token,admin,admin,system:masters" >"$work/tokens"
	api_run api "$KUBE" kube-apiserver --etcd-servers "http://127.0.0.1:$client" --bind-address 127.0.0.1 \
		--advertise-address 127.0.0.1 --secure-port "$api" --cert-dir "$work/certs" --service-cluster-ip-range 10.96.0.0/16 \
		--service-account-key-file "$work/sa.key" --service-account-signing-key-file "$work/sa.key" \
		--service-account-issuer https://kubernetes.default.svc --token-auth-file "$work/tokens" \
		--authorization-mode RBAC --disable-admission-plugins ServiceAccount --endpoint-reconciler-type none "$@"
	api_ready() { curl -sk --max-time 2 -H "Authorization: Bearer $token" "https://127.0.0.1:$api/readyz" | grep -qx ok; }
	for _ in $(seq 120); do
		! api_ready || break
		kill -0 "${pids[@]}" || { tail -n 5 "$work"/*.log >&2; return 1; }
		sleep 1
	done
	api_ready || { echo "the API server does not come up" >&2; tail -n 5 "$work/api.log" >&2; return 1; }
	export KUBECONFIG=$work/kubeconfig
	cat >"$KUBECONFIG" <<C
apiVersion: v1
kind: Config
current-context: api
clusters: [{name: api, cluster: {server: "https://127.0.0.1:$api", certificate-authority-data: $(base64 -w0 "$work/certs/apiserver.crt")}}]
users: [{name: api, user: {token: $token}}]
contexts: [{name: api, context: {cluster: api, user: api}}]
C
}
