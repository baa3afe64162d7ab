//! `istio.security.Authorization`: policies. A policy is never read as if a part of it were absent.
