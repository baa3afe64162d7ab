# needs no mesh
# needs nodes: it starts an API server of its own.
# The controller against a real API server alone: rights as in the chart, leadership, tokens, statuses, the CA, the webhook.
check "tests/kubernetes/api" env -u KUBECONFIG KUBE="$(cluster bin)/kube" "$here/api/run"
