// Package conformance runs the Gateway API's own conformance suite against the cluster that KUBECONFIG names. All settings
// are the suite's flags; `run` has the usual ones.
package conformance

import (
	"os"
	"testing"

	suite "sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	if os.Getenv("KUBECONFIG") == "" {
		t.Fatal("KUBECONFIG names no cluster: tests/conformance/run does")
	}
	suite.RunConformance(t)
}
