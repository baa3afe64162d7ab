# The scenarios in the order in which `run` runs them. The last takes the mesh away.
ORDER=(api cluster label policy strict probes headless statefulset job containers hostport ipv6 pods unlabel upgrade admission rbac
	faults/api faults/leader faults/secrets faults/conf faults/agent faults/reboot faults/address faults/churn uninstall)
