//! Generated messages, and nothing else. Field numbers come from the `.proto` files beside `src/`.
#![allow(
    missing_docs,
    clippy::all,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "generated"
)]

include!(concat!(env!("OUT_DIR"), "/proto.rs"));
