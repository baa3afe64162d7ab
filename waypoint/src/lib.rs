//! The waypoint: ztunnels send it what is bound to it, over HBONE; it carries that to endpoints, request by request where
//! it is HTTP.
//!
//! A connection is read in the same five words as in ztunnel: capture → lookup → decide → tunnel → deliver. [`capture`]
//! takes CONNECTs, core decides what each is for, [`path`] carries it, [`upstream`] is the way to endpoints. The rest:
//! [`record`] (one log line and one count per request), [`told`] (what users ask to be told), [`config`], [`admin`], [`app`] (start and end).
#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod admin;
pub mod app;
pub mod authenticate;
pub mod capture;
pub mod clients;
pub mod config;
mod explain;
pub mod path;
pub mod record;
pub mod told;
pub mod upstream;
pub mod waypoint;

pub use app::{Listeners, main, run, serve};
pub use config::Config;
pub use waypoint::Waypoint;
