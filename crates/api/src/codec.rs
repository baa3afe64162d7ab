//! Wire to model and back. Bad input is refused here, once, with an error that names the resource and the field.

pub mod address;
pub mod authorization;
