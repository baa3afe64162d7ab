//! `istio.workload.Address`: workloads and services. Unknown fields are ignored: newer control planes add some.
//! Unknown enum values are read as what keeps traffic safe; where no reading is safe the resource is refused.

mod service;
mod workload;

use bytes::Bytes;
use prost::Message as _;
use stillmesh_core::model::{Service, Workload};
use stillmesh_core::snapshot::Change;

use super::{CodecError, FieldError};
use crate::proto::istio::workload as wire;
use crate::proto::istio::workload::address::Type;

/// Reads an Address. Its primary key must be `name`.
pub fn decode(name: &str, bytes: Bytes) -> Result<Change, CodecError> {
    let address = wire::Address::decode(bytes)
        .map_err(|error| FieldError::new("address", format!("not a message: {error}")).of(name))?;
    let change = match address.r#type {
        Some(Type::Workload(workload)) => workload::decode(workload).map(|read| Change::Workload(read.into())),
        Some(Type::Service(service)) => service::decode(service).map(|read| Change::Service(read.into())),
        None => Err(FieldError::new("type", "neither workload nor service")),
    }
    .map_err(|error| error.of(name))?;
    let (_, key) = super::name(&change);
    if key != name {
        return Err(FieldError::new("name", format!("the resource's own key is {key:?}")).of(name));
    }
    Ok(change)
}

/// The wire form of a workload.
pub fn encode_workload(workload: &Workload) -> Vec<u8> {
    wire::Address { r#type: Some(Type::Workload(workload::encode(workload))) }.encode_to_vec()
}

/// The wire form of a service.
pub fn encode_service(service: &Service) -> Vec<u8> {
    wire::Address { r#type: Some(Type::Service(service::encode(service))) }.encode_to_vec()
}
