//! `istio.workload.Address`: workloads and services. Unknown fields are ignored: newer control planes add some.
