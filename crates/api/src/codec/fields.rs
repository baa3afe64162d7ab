//! Fields that several resources share: addresses, ports, gateways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use bytes::Bytes;
use ipnet::IpNet;
use stillmesh_core::model::{
    Gateway, GatewayDestination, NetworkAddress, NetworkCidr, PortMapping, ServiceKey, ServicePort, Str,
};

use super::{FieldError, texts};
use crate::proto::istio::workload as wire;
use crate::proto::istio::workload::gateway_address::Destination;

/// Reads each of some, and keeps no room for more.
pub(super) fn each<T, U>(
    all: impl ExactSizeIterator<Item = T>,
    read: impl Fn(T) -> Result<U, FieldError>,
) -> Result<Vec<U>, FieldError> {
    let mut each = Vec::with_capacity(all.len());
    for one in all {
        each.push(read(one)?);
    }
    Ok(each)
}

/// 4 or 16 bytes. An IPv4 address that came as IPv6 is read as what it is, so that lookups find it.
pub(super) fn ip(field: &str, bytes: &[u8]) -> Result<IpAddr, FieldError> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(four).into());
    }
    let sixteen = <[u8; 16]>::try_from(bytes)
        .map_err(|_| FieldError::new(field, format!("an address of {} bytes: 4 or 16 are accepted", bytes.len())))?;
    Ok(IpAddr::from(Ipv6Addr::from(sixteen)).to_canonical())
}

pub(super) fn ip_bytes(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(four) => Bytes::copy_from_slice(&four.octets()),
        IpAddr::V6(sixteen) => Bytes::copy_from_slice(&sixteen.octets()),
    }
}

/// A range; its host bits do not count.
pub(super) fn cidr(field: &str, bytes: &[u8], length: u32) -> Result<IpNet, FieldError> {
    let full = match bytes.len() {
        4 => 32,
        _ => 128,
    };
    let mut address = ip(field, bytes)?;
    let too_long = || FieldError::new(field, format!("a prefix length of {length}: 0 to {full} are accepted"));
    let mut length = u8::try_from(length).ok().filter(|length| *length <= full).ok_or_else(too_long)?;
    if full == 128 && address.is_ipv4() {
        // An IPv4 range that came as IPv6; one that covers more than IPv4 stays IPv6.
        match length.checked_sub(96) {
            Some(shorter) => length = shorter,
            None => {
                if let Ok(sixteen) = <[u8; 16]>::try_from(bytes) {
                    address = Ipv6Addr::from(sixteen).into();
                }
            }
        }
    }
    IpNet::new(address, length).map(|net| net.trunc()).map_err(|_| too_long())
}

/// 0 to 65535.
pub(super) fn port_or_zero(field: &str, port: u32) -> Result<u16, FieldError> {
    u16::try_from(port).map_err(|_| FieldError::new(field, format!("port {port}: 0 to 65535 are accepted")))
}

/// 1 to 65535.
pub(super) fn port(field: &str, port: u32) -> Result<NonZeroU16, FieldError> {
    u16::try_from(port)
        .ok()
        .and_then(NonZeroU16::new)
        .ok_or_else(|| FieldError::new(field, format!("port {port}: 1 to 65535 are accepted")))
}

/// What may stand in an identity: empty, or a Kubernetes name.
pub(super) fn identity_part(field: &str, text: &str) -> Result<Str, FieldError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if text.len() > 253 || !text.bytes().all(legal) {
        let shown: String = text.chars().take(64).collect();
        return Err(FieldError::new(
            field,
            format!("{shown:?}: at most 253 of a-z, A-Z, 0-9, '.', '-', '_' are accepted"),
        ));
    }
    Ok(texts::shared(text))
}

pub(super) fn service_key(field: &str, namespace: &str, hostname: &str) -> Result<ServiceKey, FieldError> {
    let text = format!("{namespace}/{hostname}");
    ServiceKey::parse(&text)
        .map(|key| texts::service_key(&key))
        .ok_or_else(|| FieldError::new(field, format!("{text:?}: <namespace>/<hostname> is accepted")))
}

pub(super) fn mapping(field: &str, wire: &wire::Port) -> Result<PortMapping, FieldError> {
    Ok(PortMapping {
        service_port: port(&format!("{field}.service_port"), wire.service_port)?.get(),
        target_port: port_or_zero(&format!("{field}.target_port"), wire.target_port)?,
    })
}

pub(super) fn mapping_wire(mapping: PortMapping, app_protocol: i32) -> wire::Port {
    wire::Port { service_port: mapping.service_port.into(), target_port: mapping.target_port.into(), app_protocol }
}

pub(super) fn service_port(field: &str, wire: &wire::Port) -> Result<ServicePort, FieldError> {
    Ok(ServicePort { mapping: mapping(field, wire)?, app_protocol: wire.app_protocol })
}

pub(super) fn gateway(field: &str, wire: &wire::GatewayAddress) -> Result<Gateway, FieldError> {
    let destination = match &wire.destination {
        Some(Destination::Hostname(name)) => {
            GatewayDestination::Hostname(service_key(&format!("{field}.hostname"), &name.namespace, &name.hostname)?)
        }
        Some(Destination::Address(address)) => GatewayDestination::Address(NetworkAddress::new(
            texts::shared(&address.network),
            ip(&format!("{field}.address"), &address.address)?,
        )),
        None => return Err(FieldError::new(format!("{field}.destination"), "hostname or address is needed")),
    };
    Ok(Gateway { destination, hbone_mtls_port: port(&format!("{field}.hbone_mtls_port"), wire.hbone_mtls_port)? })
}

pub(super) fn gateway_wire(gateway: &Gateway) -> wire::GatewayAddress {
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(key) => Destination::Hostname(wire::NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.hostname.to_string(),
        }),
        GatewayDestination::Address(address) => Destination::Address(address_wire(address)),
    };
    wire::GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.hbone_mtls_port.get().into() }
}

pub(super) fn address_wire(address: &NetworkAddress) -> wire::NetworkAddress {
    wire::NetworkAddress { network: address.network.to_string(), address: ip_bytes(address.address), length: None }
}

pub(super) fn cidr_wire(range: &NetworkCidr) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: range.network.to_string(),
        address: ip_bytes(range.cidr.addr()),
        length: Some(range.cidr.prefix_len().into()),
    }
}
