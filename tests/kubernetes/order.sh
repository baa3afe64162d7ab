# The scenarios in the order in which `run` runs them. The last two take the mesh away: one by Helm, one by the command, which also brings it.
ORDER=(api cluster label policy receipts strict probes headless statefulset job containers hostport ipv6 pods unlabel steering upgrade skew admission rbac waypoint commands conformance
	faults/api faults/leader faults/secrets faults/conf faults/agent faults/reboot faults/address faults/churn uninstall command)
