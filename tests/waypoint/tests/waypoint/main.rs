//! What clients see of a waypoint, and what its endpoints see.

mod filters;
mod hostile;
mod http;
mod lifecycle;
mod protocols;
mod retries;
mod routes;
mod ways;
