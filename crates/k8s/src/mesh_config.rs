//! The mesh's own configuration: ConfigMap `istio`, key `mesh`, in the root namespace (design: trust domain and such).
