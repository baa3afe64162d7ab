# A bad policy is refused before it is stored, in words that help; what the mesh cannot check never stands in the way.
namespace "$NS"
policy() { printf 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: %s}\nspec: %s\n' "$1" "$NS" "$2" | k apply -f -; }
bad='{rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]}'
hook() { k get validatingwebhookconfiguration stillmesh-validator -o jsonpath='{.webhooks[0].clientConfig.caBundle}'; }
need "the webhook is registered with its root" within 30 says . hook
check "a bad policy is refused, naming the place, what is wrong and what is accepted" within 20 \
	says 'spec.rules\[0\].from\[0\].source.ipBlocks\[0\]: "nonsense" is not an address; an IP address or a range' policy bad "$bad"
check "in a dry run too" says 'is not an address' k create --dry-run=server -f - <<-Y
	{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: dry, namespace: $NS}, spec: $bad}
Y
check "the schema refuses what it can tell" says 'needs a provider' policy bad '{action: CUSTOM, rules: [{}]}'
check "what nodes do not enforce is a warning" says 'Warning: .*AUDIT' policy audit '{action: AUDIT, rules: [{}]}'
check "a good one is stored without a word" not says 'Warning' policy good '{rules: [{}]}'
replicas=$(k -n "$SYSTEM" get deployment stillmesh-controller -o jsonpath='{.spec.replicas}')
restore() { k -n "$SYSTEM" scale deployment stillmesh-controller --replicas="$replicas" >/dev/null; k -n "$SYSTEM" rollout status deployment stillmesh-controller --timeout=120s >/dev/null; }
k -n "$SYSTEM" scale deployment stillmesh-controller --replicas=0 >/dev/null
k -n "$SYSTEM" wait --for=delete pod -l app=stillmesh-controller --timeout=60s >/dev/null 2>&1
check "without a controller policies can be written" policy late "$bad"
check "and pods started" k -n "$NS" run idle --image="$APP" --image-pull-policy=IfNotPresent --restart=Never
restore
told() { k -n "$NS" get authorizationpolicy late -o jsonpath='{.status.conditions[0].status}: {.status.conditions[0].message}'; }
check "what got in unchecked says that it is refused, and why" within 30 says 'False: .*nonsense.* is not an address' told
check "it can be deleted" k -n "$NS" delete authorizationpolicy late
