//! Picks an endpoint of a service (contract 4.5, load balancing).
