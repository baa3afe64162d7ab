//! A rule's expressions, and set elements, as bytes.
//!
//! The attributes are written as the kernel lists them (all of them, in its order, nests without flag), so that a rule
//! can be compared with what the kernel has byte by byte.

use std::net::IpAddr;

use super::consts::{data, expr, rule, verdict};
use super::expr::{Compare, Expr, Field, Key, MarkSource, NatTarget, Reject, TCP, Value, Verdict};
use super::model::{DataType, Element, Family, Rule, Set, SetValue};
use crate::wire::Message;
use layout::{Layout, NFPROTO_IPV4, NFPROTO_IPV6, Origin, Source};

mod layout;

/// What cannot be encoded.
pub(super) type Problem = String;

/// A register's size; larger values take consecutive ones.
const REGISTER_BYTES: usize = 4;
/// Where keys start, and how many registers they may take.
const KEY_AT: usize = 0;
const KEY_REGISTERS: usize = 8;
/// Where a map's value goes.
const VALUE_AT: usize = 8;

/// Encodes a rule's expressions one after the other, keeping in mind what earlier ones have made sure of.
pub(super) struct Encoder {
    family: Family,
    out: Message,
    /// The IP version that packets here are known to have.
    version: Option<u8>,
    /// The transport protocol that packets here are known to have.
    protocol: Option<u8>,
}

/// The list of a rule's expressions, without the attribute around it.
pub(super) fn expressions(family: Family, rule: &Rule) -> Result<Message, Problem> {
    let version = match family {
        Family::Inet => None,
        Family::Ip => Some(NFPROTO_IPV4),
        Family::Ip6 => Some(NFPROTO_IPV6),
    };
    let mut encoder = Encoder { family, out: Message::fragment(), version, protocol: None };
    for expr in &rule.exprs {
        encoder.expr(expr)?;
    }
    Ok(encoder.out)
}

impl Encoder {
    fn expr(&mut self, expr: &Expr) -> Result<(), Problem> {
        match expr {
            Expr::Match { field, mask, compare, value } => self.matching(*field, mask.as_ref(), *compare, value)?,
            Expr::Range { field, from, to, negated } => {
                let layout = self.load(*field)?;
                let (from, to) = (layout.encode(from)?, layout.encode(to)?);
                self.add("range", |out| {
                    out.be32(expr::RANGE_SREG, register(KEY_AT));
                    out.be32(expr::RANGE_OP, if *negated { expr::OP_NE } else { expr::OP_EQ });
                    out.nested(expr::RANGE_FROM, |out| out.attribute(data::VALUE, &from));
                    out.nested(expr::RANGE_TO, |out| out.attribute(data::VALUE, &to));
                });
            }
            Expr::InSet { fields, set, negated } => {
                self.load_all(fields)?;
                self.lookup(set, None, *negated);
            }
            Expr::VerdictMap { key, map } => {
                self.load_key(key)?;
                self.lookup(map, Some(verdict::REGISTER), false);
            }
            Expr::SetMetaMark { source } => {
                self.mark(*source, Field::MetaMark, Field::CtMark)?;
                self.add("meta", |out| {
                    out.be32(expr::META_KEY, expr::META_MARK);
                    out.be32(expr::META_SREG, register(KEY_AT));
                });
            }
            Expr::SetCtMark { source } => {
                self.mark(*source, Field::CtMark, Field::MetaMark)?;
                self.set_ct(expr::CT_MARK);
            }
            Expr::SetCtZone(zone) => {
                let zone = Layout::Host16.encode(&Value::from(*zone))?;
                self.immediate(KEY_AT, &zone);
                self.set_ct(expr::CT_ZONE);
            }
            Expr::Notrack => self.add("notrack", |_| {}),
            Expr::Counter => self.add("counter", |out| {
                out.be64(expr::COUNTER_BYTES, 0);
                out.be64(expr::COUNTER_PACKETS, 0);
            }),
            Expr::Verdict(verdict) => self.add("immediate", |out| {
                out.be32(expr::IMMEDIATE_DREG, verdict::REGISTER);
                out.nested(expr::IMMEDIATE_DATA, |out| write_verdict(out, verdict));
            }),
            Expr::Redirect { port } => {
                self.immediate(KEY_AT, &port.to_be_bytes());
                self.add("redir", |out| {
                    out.be32(expr::REDIR_PROTO_MIN, register(KEY_AT));
                    out.be32(expr::REDIR_PROTO_MAX, register(KEY_AT));
                    out.be32(expr::REDIR_FLAGS, expr::RANGE_PORTS);
                });
            }
            Expr::Dnat(target) => self.dnat(target)?,
            Expr::Snat(ip) => self.snat(*ip)?,
            Expr::Masquerade => self.add("masq", |_| {}),
            Expr::Reject(reject) => self.reject(*reject)?,
        }
        Ok(())
    }

    fn add(&mut self, name: &str, write: impl FnOnce(&mut Message)) {
        let mut inside = Message::fragment();
        write(&mut inside);
        self.out.nested(rule::LIST_ELEMENT, |out| {
            out.text(rule::EXPR_NAME, name);
            if !inside.as_bytes().is_empty() {
                out.nested(rule::EXPR_DATA, |out| out.append(&inside));
            }
        });
    }

    fn matching(&mut self, field: Field, mask: Option<&Value>, compare: Compare, value: &Value) -> Result<(), Problem> {
        let layout = self.load(field)?;
        let bytes = layout.encode(value)?;
        if let Some(mask) = mask {
            let mask = layout.encode(mask)?;
            if bytes.iter().zip(&mask).any(|(byte, mask)| byte & !mask != 0) {
                return Err(format!("{value:?} has bits that its mask has not: it could never match"));
            }
            self.bitwise(&mask, &vec![0; mask.len()]);
        }
        self.compare(compare, &bytes);
        if let (Compare::Eq, None, [byte]) = (compare, mask, bytes.as_slice()) {
            match field {
                Field::L4Proto => self.protocol = Some(*byte),
                Field::NfProto => self.version = Some(*byte),
                _ => {}
            }
        }
        Ok(())
    }

    fn compare(&mut self, compare: Compare, bytes: &[u8]) {
        let op = match compare {
            Compare::Eq => expr::OP_EQ,
            Compare::Ne => expr::OP_NE,
        };
        self.add("cmp", |out| {
            out.be32(expr::CMP_SREG, register(KEY_AT));
            out.be32(expr::CMP_OP, op);
            out.nested(expr::CMP_DATA, |out| out.attribute(data::VALUE, bytes));
        });
    }

    fn bitwise(&mut self, mask: &[u8], xor: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        self.add("bitwise", |out| {
            out.be32(expr::BITWISE_SREG, register(KEY_AT));
            out.be32(expr::BITWISE_DREG, register(KEY_AT));
            out.be32(expr::BITWISE_LEN, length);
            out.be32(expr::BITWISE_OP, 0);
            out.nested(expr::BITWISE_MASK, |out| out.attribute(data::VALUE, mask));
            out.nested(expr::BITWISE_XOR, |out| out.attribute(data::VALUE, xor));
        });
    }

    fn immediate(&mut self, at: usize, bytes: &[u8]) {
        self.add("immediate", |out| {
            out.be32(expr::IMMEDIATE_DREG, register(at));
            out.nested(expr::IMMEDIATE_DATA, |out| out.attribute(data::VALUE, bytes));
        });
    }

    /// Makes sure of what a field presupposes.
    fn presuppose(&mut self, field: Field) -> Result<(), Problem> {
        match field.source().origin {
            Origin::Network { version, .. } if self.version != Some(version) => {
                if self.version.is_some() {
                    return Err(format!("{field:?} is of the other IP version than the rule's packets"));
                }
                self.require_version(version)
            }
            Origin::Transport { protocol: Some(protocol), .. } if self.protocol != Some(protocol) => {
                if self.protocol.is_some() {
                    return Err(format!("{field:?} is of another protocol than the rule's packets"));
                }
                self.matching(Field::L4Proto, None, Compare::Eq, &protocol.into())
            }
            _ => Ok(()),
        }
    }

    fn require_version(&mut self, version: u8) -> Result<(), Problem> {
        if self.version == Some(version) {
            return Ok(());
        }
        self.matching(Field::NfProto, None, Compare::Eq, &version.into())
    }

    /// Loads one field into the key's registers.
    fn load(&mut self, field: Field) -> Result<Layout, Problem> {
        self.presuppose(field)?;
        self.fetch(field, KEY_AT);
        Ok(field.source().layout)
    }

    /// Loads fields one after the other into the key's registers.
    fn load_all(&mut self, fields: &[Field]) -> Result<(), Problem> {
        // First all that is presupposed: making sure of it uses the same registers.
        for field in fields {
            self.presuppose(*field)?;
        }
        let mut at = KEY_AT;
        for field in fields {
            self.fetch(*field, at);
            at += field.source().layout.registers();
        }
        if at > KEY_AT + KEY_REGISTERS {
            return Err("the fields together are longer than a key may be".to_owned());
        }
        Ok(())
    }

    fn load_key(&mut self, key: &Key) -> Result<(), Problem> {
        let (modulus, kind) = match key {
            Key::Fields(fields) => return self.load_all(fields),
            Key::Random { modulus } => (*modulus, expr::NUMGEN_RANDOM),
            Key::RoundRobin { modulus } => (*modulus, expr::NUMGEN_INCREMENT),
        };
        if modulus == 0 {
            return Err("a modulus of 0".to_owned());
        }
        self.add("numgen", |out| {
            out.be32(expr::NUMGEN_DREG, register(KEY_AT));
            out.be32(expr::NUMGEN_MODULUS, modulus);
            out.be32(expr::NUMGEN_TYPE, kind);
            out.be32(expr::NUMGEN_OFFSET, 0);
        });
        Ok(())
    }

    fn fetch(&mut self, field: Field, at: usize) {
        let Source { layout, origin } = field.source();
        let length = u32::try_from(layout.bytes()).unwrap_or_default();
        let mut payload = |base, offset| {
            self.add("payload", |out| {
                out.be32(expr::PAYLOAD_DREG, register(at));
                out.be32(expr::PAYLOAD_BASE, base);
                out.be32(expr::PAYLOAD_OFFSET, offset);
                out.be32(expr::PAYLOAD_LEN, length);
            });
        };
        match origin {
            Origin::Network { offset, .. } => payload(expr::PAYLOAD_NETWORK, offset),
            Origin::Transport { offset, .. } => payload(expr::PAYLOAD_TRANSPORT, offset),
            Origin::Meta(key) => self.add("meta", |out| {
                out.be32(expr::META_KEY, key);
                out.be32(expr::META_DREG, register(at));
            }),
            Origin::Ct(key) => self.add("ct", |out| {
                out.be32(expr::CT_DREG, register(at));
                out.be32(expr::CT_KEY, key);
            }),
            Origin::Socket(key) => self.add("socket", |out| {
                out.be32(expr::SOCKET_KEY, key);
                out.be32(expr::SOCKET_DREG, register(at));
            }),
            Origin::DestinationType => self.add("fib", |out| {
                out.be32(expr::FIB_DREG, register(at));
                out.be32(expr::FIB_RESULT, expr::FIB_ADDRTYPE);
                out.be32(expr::FIB_FLAGS, expr::FIB_DADDR);
            }),
        }
    }

    /// Puts a mark's new value into the key's register.
    fn mark(&mut self, source: MarkSource, own: Field, other: Field) -> Result<(), Problem> {
        match source {
            MarkSource::OtherMark => self.fetch(other, KEY_AT),
            MarkSource::Bits { value, mask } if value & !mask != 0 => {
                return Err(format!("mark {value:#x} has bits that its mask {mask:#x} has not"));
            }
            MarkSource::Bits { value, mask: u32::MAX } => self.immediate(KEY_AT, &value.to_ne_bytes()),
            MarkSource::Bits { value, mask } => {
                self.fetch(own, KEY_AT);
                self.bitwise(&(!mask).to_ne_bytes(), &value.to_ne_bytes());
            }
        }
        Ok(())
    }

    fn set_ct(&mut self, key: u32) {
        self.add("ct", |out| {
            out.be32(expr::CT_SREG, register(KEY_AT));
            out.be32(expr::CT_KEY, key);
        });
    }

    fn lookup(&mut self, set: &str, into: Option<u32>, negated: bool) {
        self.add("lookup", |out| {
            out.text(expr::LOOKUP_SET, set);
            out.be32(expr::LOOKUP_SREG, register(KEY_AT));
            if let Some(into) = into {
                out.be32(expr::LOOKUP_DREG, into);
            }
            out.be32(expr::LOOKUP_FLAGS, if negated { expr::LOOKUP_INVERT } else { 0 });
        });
    }

    fn dnat(&mut self, target: &NatTarget) -> Result<(), Problem> {
        let (version, address_at, port_at) = match target {
            NatTarget::Address { ip, port } => {
                let (version, layout) = self.address(*ip)?;
                let port_at = KEY_AT + layout.registers();
                if let Some(port) = port {
                    self.immediate(port_at, &port.to_be_bytes());
                }
                (version, KEY_AT, port.map(|_| port_at))
            }
            NatTarget::Map { key, map, ipv6 } => {
                let (version, layout) = if *ipv6 { (NFPROTO_IPV6, Layout::Ipv6) } else { (NFPROTO_IPV4, Layout::Ipv4) };
                self.require_version(version)?;
                self.load_key(key)?;
                self.lookup(map, Some(register(VALUE_AT)), false);
                (version, VALUE_AT, Some(VALUE_AT + layout.registers()))
            }
        };
        self.nat(expr::NAT_DNAT, version, address_at, port_at);
        Ok(())
    }

    fn snat(&mut self, ip: IpAddr) -> Result<(), Problem> {
        let (version, _) = self.address(ip)?;
        self.nat(expr::NAT_SNAT, version, KEY_AT, None);
        Ok(())
    }

    /// Puts an address into the key's registers, in rules of its version.
    fn address(&mut self, ip: IpAddr) -> Result<(u8, Layout), Problem> {
        let (version, layout) = if ip.is_ipv4() { (NFPROTO_IPV4, Layout::Ipv4) } else { (NFPROTO_IPV6, Layout::Ipv6) };
        self.require_version(version)?;
        self.immediate(KEY_AT, &layout.encode(&Value::Ip(ip))?);
        Ok((version, layout))
    }

    /// Translates to the address, and perhaps port, in these registers.
    fn nat(&mut self, kind: u32, version: u8, address_at: usize, port_at: Option<usize>) {
        let ports = if port_at.is_some() { expr::RANGE_PORTS } else { 0 };
        self.add("nat", |out| {
            out.be32(expr::NAT_TYPE, kind);
            out.be32(expr::NAT_FAMILY, version.into());
            out.be32(expr::NAT_ADDR_MIN, register(address_at));
            out.be32(expr::NAT_ADDR_MAX, register(address_at));
            if let Some(port_at) = port_at {
                out.be32(expr::NAT_PROTO_MIN, register(port_at));
                out.be32(expr::NAT_PROTO_MAX, register(port_at));
            }
            out.be32(expr::NAT_FLAGS, expr::RANGE_IPS | ports);
        });
    }

    fn reject(&mut self, reject: Reject) -> Result<(), Problem> {
        // The codes of RFC 792, of RFC 4443, and the kernel's own for either.
        let (kind, code) = match (reject, self.family) {
            (Reject::TcpReset, _) => {
                if self.protocol != Some(TCP) {
                    self.matching(Field::L4Proto, None, Compare::Eq, &TCP.into())?;
                }
                (expr::REJECT_TCP_RESET, None)
            }
            (Reject::PortUnreachable, Family::Inet) => (expr::REJECT_ICMPX, Some(1)),
            (Reject::PortUnreachable, Family::Ip) => (expr::REJECT_ICMP, Some(3)),
            (Reject::PortUnreachable, Family::Ip6) => (expr::REJECT_ICMP, Some(4)),
            (Reject::AdminProhibited, Family::Inet) => (expr::REJECT_ICMPX, Some(3)),
            (Reject::AdminProhibited, Family::Ip) => (expr::REJECT_ICMP, Some(13)),
            (Reject::AdminProhibited, Family::Ip6) => (expr::REJECT_ICMP, Some(1)),
        };
        self.add("reject", |out| {
            out.be32(expr::REJECT_TYPE, kind);
            if let Some(code) = code {
                out.u8(expr::REJECT_CODE, code);
            }
        });
        Ok(())
    }
}

/// A register's number: the kernel knows those that start a group of 16 bytes by another one.
fn register(index: usize) -> u32 {
    let index = u32::try_from(index).unwrap_or_default();
    if index.is_multiple_of(4) { 1 + index / 4 } else { 8 + index }
}

fn write_verdict(out: &mut Message, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (verdict::ACCEPT, None),
        Verdict::Drop => (verdict::DROP, None),
        Verdict::Return => (verdict::RETURN, None),
        Verdict::Jump(chain) => (verdict::JUMP, Some(chain)),
        Verdict::Goto(chain) => (verdict::GOTO, Some(chain)),
    };
    out.nested(data::VERDICT, |out| {
        out.be32(data::VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            out.text(data::VERDICT_CHAIN, chain);
        }
    });
}

/// Number and length of a set's key or value. Parts of a concatenation are padded to whole registers.
pub(super) fn set_type(parts: &[DataType]) -> Result<(u32, u32), Problem> {
    let length = match parts {
        [] => return Err("a key or value without parts".to_owned()),
        [one] => Layout::from(*one).bytes(),
        many => many.iter().map(|part| Layout::from(*part).registers() * REGISTER_BYTES).sum(),
    };
    if length > KEY_REGISTERS * REGISTER_BYTES {
        return Err("a key or value longer than 32 bytes".to_owned());
    }
    let number = parts.iter().fold(0u32, |number, part| number << 6 | part.number());
    Ok((number, u32::try_from(length).unwrap_or_default()))
}

fn concatenated(parts: &[DataType], values: &[Value]) -> Result<Vec<u8>, Problem> {
    if parts.len() != values.len() {
        return Err(format!("{} values for {} parts", values.len(), parts.len()));
    }
    let mut bytes = Vec::new();
    for (part, value) in parts.iter().zip(values) {
        bytes.extend(Layout::from(*part).encode(value)?);
        if parts.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(REGISTER_BYTES), 0);
        }
    }
    Ok(bytes)
}

/// Bytes of an element's key and of its value.
pub(super) fn element(set: &Set, element: &Element) -> Result<(Vec<u8>, Option<Message>), Problem> {
    let key = concatenated(&set.key, &element.key)?;
    let mut value = Message::fragment();
    match (&set.value, &element.verdict) {
        (None, None) if element.value.is_empty() => return Ok((key, None)),
        (Some(SetValue::Data(parts)), None) => value.attribute(data::VALUE, &concatenated(parts, &element.value)?),
        (Some(SetValue::Verdict), Some(verdict)) if element.value.is_empty() => write_verdict(&mut value, verdict),
        _ => return Err("an element of another kind than its set".to_owned()),
    }
    Ok((key, Some(value)))
}

#[cfg(test)]
mod tests;
