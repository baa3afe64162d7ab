//! What clients see of a waypoint, and what its endpoints see.

mod authentication;
mod authorization;
mod clients;
mod decisions;
mod destinations;
mod filters;
mod hostile;
mod http;
mod lifecycle;
mod open;
mod protocols;
mod retries;
mod routes;
mod smuggling;
mod streams;
mod told;
mod traces;
mod versions;
mod ways;
