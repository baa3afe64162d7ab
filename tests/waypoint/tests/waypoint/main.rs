//! What clients see of a waypoint, and what its endpoints see.

mod http;
mod lifecycle;
mod routes;
mod ways;
