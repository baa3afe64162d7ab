# A waypoint from one command: the namespace's HTTP goes through it, routes decide within a second, and neither its own rolling
# restart nor that of what is behind it costs a request.
need "the Gateway API's kinds are there" gateway_api
namespace "$NS" $AMBIENT
server web1 "$NODE1" "version: v1, tier: web" '[serve, -linger, 3s]'; server web2 "$NODE2" "version: v2, tier: web" '[serve, -linger, 3s]'
client shop "$NODE1"
service web1; service web2
k apply -f - >/dev/null <<-Y
apiVersion: v1
kind: Service
metadata: {name: web, namespace: $NS}
spec: {selector: {tier: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]}
Y
need "pods start" ready web1 web2 shop
need "and join" within 30 enrolled web1 web2 shop

mesh() { "$STILLMESH" "$@"; }
check "without a waypoint none is listed" says '^No waypoints found.$' mesh waypoint list -n "$NS"
k apply -f - >/dev/null <<-Y
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-shop, namespace: $NS}
spec: {selector: {matchLabels: {tier: web}}, action: ALLOW, rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/shop"]}}]}]}
Y
check "a policy that would refuse the waypoint stands in the way" says "$NS/only-shop would refuse all that comes through the waypoint" \
	not mesh waypoint apply -n "$NS" --enroll-namespace
check "then nothing was made" says '^No waypoints found.$' mesh waypoint list -n "$NS"
k -n "$NS" delete authorizationpolicy only-shop >/dev/null
need "a waypoint is applied, bound and ready" says 'is ready!' mesh waypoint apply -n "$NS" --enroll-namespace --wait
check "it is listed" says '^waypoint +default +service +True' mesh waypoint list -n "$NS"
check "its conditions are told" says '^waypoint +True +Programmed +Programmed' mesh waypoint status -n "$NS"
by_waypoint() { says "By=spiffe://cluster.local/ns/$NS/sa/waypoint" in_pod shop get "http://web.$NS/"; }
check "HTTP goes through it" within 20 by_waypoint
check "so do plain bytes" within 20 says 'said hello' in_pod shop tcp "web.$NS:9000" hello
check "the service says what it is bound to" within 10 says 'True WaypointAccepted' k -n "$NS" get service web \
	-o jsonpath='{range .status.conditions[?(@.type=="istio.io/WaypointBound")]}{.status} {.reason}{end}'

route() { # RULES: one HTTPRoute for Service web
	k apply -f - <<-Y
	apiVersion: gateway.networking.k8s.io/v1
	kind: HTTPRoute
	metadata: {name: web, namespace: $NS}
	spec:
	  parentRefs: [{kind: Service, group: "", name: web, port: 80}]
	  rules: [$1]
	Y
	written=$(now_ms)
}
route '{matches: [{headers: [{name: version, value: v2}]}], backendRefs: [{name: web2, port: 80}]},
	{backendRefs: [{name: web1, port: 80}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-route, value: one}]}}]}' >/dev/null
check "a route is in force" within 10 says 'X-Route: one' in_pod shop get -i "http://web.$NS/"
note "$(($(now_ms) - written)) ms, of it an exec's"
check "requests go where it says" says '"pod":"web2"' in_pod shop get -H version:v2 "http://web.$NS/"
only() { local n; n=$(in_pod shop get -n 20 "http://web.$NS/" | grep -c "\"pod\":\"$1\""); same "$n" 20; }
check "and only there" only web1
check "its status says so" within 10 says '^Accepted=True ResolvedRefs=True ' k -n "$NS" get httproute web \
	-o jsonpath='{range .status.parents[0].conditions[*]}{.type}={.status} {end}'
route '{backendRefs: [{name: web1, port: 80}, {name: nobody, port: 80}]}' >/dev/null
check "a backend that is not there is in its status" within 10 says 'ResolvedRefs=False BackendNotFound' k -n "$NS" get httproute web \
	-o jsonpath='{range .status.parents[0].conditions[?(@.type=="ResolvedRefs")]}{.type}={.status} {.reason}{end}'
k -n "$NS" delete httproute web >/dev/null

subset() { # NAME: all requests for Service web go to this subset
	k apply -f - <<-Y
	apiVersion: networking.istio.io/v1
	kind: DestinationRule
	metadata: {name: web, namespace: $NS}
	spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
	---
	apiVersion: networking.istio.io/v1
	kind: VirtualService
	metadata: {name: web, namespace: $NS}
	spec: {hosts: [web], http: [{route: [{destination: {host: web, subset: $1}}]}]}
	Y
}
subset v2 >/dev/null
check "a subset is its pods" within 10 only web2
subset v1 >/dev/null
check "and another one others" within 10 only web1
check "the DestinationRule's status says where it holds" within 10 says "True Accepted bound to $NS/waypoint" k -n "$NS" get destinationrule web \
	-o jsonpath='{range .status.conditions[?(@.type=="WaypointAccepted")]}{.status} {.reason} {.message}{end}'
nameless() { k -n "$NS" patch destinationrule web --type merge -p '{"spec": {"host": ""}}'; }
check "one without a host is not taken" says 'spec.host: no host' not nameless
k -n "$NS" delete destinationrule,virtualservice web >/dev/null

# Nothing is lost while everything is replaced.
k -n "$NS" delete pod web1 web2 --wait=false >/dev/null
k apply -f - >/dev/null <<-Y
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: $NS}
spec:
  replicas: 2
  selector: {matchLabels: {app: many}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: many, tier: web}}
    spec: {terminationGracePeriodSeconds: 20, containers: [{name: app, image: "$APP", args: [serve, -linger, 4s], readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}}]}
Y
need "a Deployment is there" k -n "$NS" rollout status deployment/web --timeout=90s
within 30 not k -n "$NS" get pod web1 web2
k -n "$NS" scale deployment/waypoint --replicas=2 >/dev/null
need "the waypoint has two replicas" k -n "$NS" rollout status deployment/waypoint --timeout=90s
pod asker "$NODE1" "[ask, -rate, \"200\", \"http://web.$NS/\"]"
need "200 requests a second" within 30 says 'TOTAL [0-9]{3,}' totals asker
answered() { [ "$(totals asker | sed 's/.*TOTAL //;s/ .*//')" -gt $(($1 + 200)) ]; }
count() { totals asker | sed 's/.*TOTAL //;s/ .*//'; }
k -n "$NS" rollout restart deployment/waypoint >/dev/null
check "the waypoint's rolling restart ends" k -n "$NS" rollout status deployment/waypoint --timeout=180s
n=$(count); within 20 answered "$n"
check "and cost no request" same 0 "$(failures asker)"
k -n "$NS" rollout restart deployment/web >/dev/null
check "the backends' rolling restart ends" k -n "$NS" rollout status deployment/web --timeout=180s
n=$(count); within 20 answered "$n"
check "and cost no request either" same 0 "$(failures asker)"

check "the waypoint is deleted" says "waypoint $NS/waypoint deleted" mesh waypoint delete waypoint -n "$NS"
check "what ran it goes too" within 60 silent k -n "$NS" get deployment,service,serviceaccount -l gateway.networking.k8s.io/gateway-name=waypoint -o name
