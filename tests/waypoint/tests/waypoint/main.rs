//! What clients see of a waypoint, and what its endpoints see.

mod filters;
mod http;
mod lifecycle;
mod retries;
mod routes;
mod ways;
