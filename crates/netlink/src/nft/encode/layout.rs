//! How values lie in memory, and where fields come from.

use std::net::IpAddr;

use super::super::consts::expr;
use super::super::expr::{Field, TCP, UDP, Value};
use super::super::model::DataType;
use super::{Problem, REGISTER_BYTES};

pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
const NAME_BYTES: usize = 16;

/// How a value is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    U8,
    Be16,
    Host16,
    Host32,
    Ipv4,
    Ipv6,
    Name,
}

impl Layout {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Be16 | Self::Host16 => 2,
            Self::Host32 | Self::Ipv4 => 4,
            Self::Ipv6 | Self::Name => 16,
        }
    }

    pub(super) fn registers(self) -> usize {
        self.bytes().div_ceil(REGISTER_BYTES)
    }

    pub(super) fn encode(self, value: &Value) -> Result<Vec<u8>, Problem> {
        let too_large = |_| format!("{value:?} is too large for its field");
        match (self, value) {
            (Self::U8, Value::Number(number)) => Ok(vec![u8::try_from(*number).map_err(too_large)?]),
            (Self::Be16, Value::Number(number)) => {
                Ok(u16::try_from(*number).map_err(too_large)?.to_be_bytes().to_vec())
            }
            (Self::Host16, Value::Number(number)) => {
                Ok(u16::try_from(*number).map_err(too_large)?.to_ne_bytes().to_vec())
            }
            (Self::Host32, Value::Number(number)) => Ok(number.to_ne_bytes().to_vec()),
            (Self::Ipv4, Value::Ip(IpAddr::V4(address))) => Ok(address.octets().to_vec()),
            (Self::Ipv6, Value::Ip(IpAddr::V6(address))) => Ok(address.octets().to_vec()),
            (Self::Name, Value::Name(name)) if name.len() < NAME_BYTES && !name.contains('\0') => {
                let mut bytes = name.clone().into_bytes();
                bytes.resize(NAME_BYTES, 0);
                Ok(bytes)
            }
            (Self::Name, Value::Name(name)) => Err(format!("{name:?} is no interface name")),
            _ => Err(format!("{value:?} is not of the kind that the field has")),
        }
    }
}

impl From<DataType> for Layout {
    fn from(kind: DataType) -> Self {
        match kind {
            DataType::Ipv4 => Self::Ipv4,
            DataType::Ipv6 => Self::Ipv6,
            DataType::Port => Self::Be16,
            DataType::Protocol => Self::U8,
            DataType::Mark | DataType::Number => Self::Host32,
            DataType::Interface => Self::Name,
        }
    }
}

impl DataType {
    /// The number by which the `nft` program knows it when it lists the set.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Number => 4,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Interface => 41,
        }
    }
}

/// Where a field comes from, how long it is, and what must be known before it may be read.
pub(super) struct Source {
    pub(super) layout: Layout,
    pub(super) origin: Origin,
}

pub(super) enum Origin {
    Meta(u32),
    Ct(u32),
    Network { version: u8, offset: u32 },
    Transport { protocol: Option<u8>, offset: u32 },
    DestinationType,
    Socket(u32),
}

impl Field {
    pub(super) fn source(self) -> Source {
        let meta = |layout, key| Source { layout, origin: Origin::Meta(key) };
        let ct = |key| Source { layout: Layout::Host32, origin: Origin::Ct(key) };
        let ip = |offset| Source { layout: Layout::Ipv4, origin: Origin::Network { version: NFPROTO_IPV4, offset } };
        let ip6 = |offset| Source { layout: Layout::Ipv6, origin: Origin::Network { version: NFPROTO_IPV6, offset } };
        let transport = |layout, protocol, offset| Source { layout, origin: Origin::Transport { protocol, offset } };
        match self {
            Self::MetaMark => meta(Layout::Host32, expr::META_MARK),
            Self::L4Proto => meta(Layout::U8, expr::META_L4PROTO),
            Self::NfProto => meta(Layout::U8, expr::META_NFPROTO),
            Self::IifName => meta(Layout::Name, expr::META_IIFNAME),
            Self::OifName => meta(Layout::Name, expr::META_OIFNAME),
            Self::SkUid => meta(Layout::Host32, expr::META_SKUID),
            Self::IpSaddr => ip(12),
            Self::IpDaddr => ip(16),
            Self::Ip6Saddr => ip6(8),
            Self::Ip6Daddr => ip6(24),
            Self::TcpSport => transport(Layout::Be16, Some(TCP), 0),
            Self::TcpDport => transport(Layout::Be16, Some(TCP), 2),
            Self::TcpFlags => transport(Layout::U8, Some(TCP), 13),
            Self::UdpSport => transport(Layout::Be16, Some(UDP), 0),
            Self::UdpDport => transport(Layout::Be16, Some(UDP), 2),
            Self::ThSport => transport(Layout::Be16, None, 0),
            Self::ThDport => transport(Layout::Be16, None, 2),
            Self::CtState => ct(expr::CT_STATE),
            Self::CtMark => ct(expr::CT_MARK),
            Self::CtStatus => ct(expr::CT_STATUS),
            Self::SocketTransparent => Source { layout: Layout::U8, origin: Origin::Socket(expr::SOCKET_TRANSPARENT) },
            Self::FibDaddrType => Source { layout: Layout::Host32, origin: Origin::DestinationType },
        }
    }
}
