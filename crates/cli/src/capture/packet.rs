//! Reads TCP segments out of Ethernet frames: pure, for whatever bytes a wire carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One TCP segment of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    /// Sender.
    pub(crate) source: SocketAddr,
    /// Receiver.
    pub(crate) destination: SocketAddr,
    /// The application's bytes; empty for bare acknowledgements.
    pub(crate) payload: &'a [u8],
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const TCP: u8 = 6;

/// The TCP segment in an Ethernet II frame, or `None` for anything else and for frames cut short.
///
/// Extension headers of IPv6 and later fragments are not followed: neither occurs between the nodes of one machine.
pub(crate) fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let (ethertype, packet) = (be16(frame, 12)?, frame.get(14..)?);
    match ethertype {
        ETHERTYPE_IPV4 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(be16(packet, 2)?);
            let fragment = be16(packet, 6)? & 0x1fff;
            let four = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            let (source, destination) = (four(12)?.into(), four(16)?.into());
            let body = packet.get(header..total.min(packet.len()))?;
            (*packet.get(9)? == TCP && fragment == 0).then(|| tcp(source, destination, body))?
        }
        ETHERTYPE_IPV6 => {
            let length = usize::from(be16(packet, 4)?);
            let sixteen = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
            let (source, destination) = (sixteen(8)?.into(), sixteen(24)?.into());
            let body = packet.get(40..(40 + length).min(packet.len()))?;
            (*packet.get(6)? == TCP).then(|| tcp(source, destination, body))?
        }
        _ => None,
    }
}

fn tcp(source: IpAddr, destination: IpAddr, body: &[u8]) -> Option<Segment<'_>> {
    let header = usize::from(body.get(12)? >> 4) * 4;
    Some(Segment {
        source: SocketAddr::new(source, be16(body, 0)?),
        destination: SocketAddr::new(destination, be16(body, 2)?),
        payload: body.get(header..)?,
    })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame_v4(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x30, 0x39, 0x00, 0x50]); // 12345 -> 80
        frame.extend([0; 8]);
        frame.extend([0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn an_ipv4_segment_is_read_without_ethernet_padding() {
        let mut frame = frame_v4(b"hi");
        frame.extend([0; 4]);
        let segment = segment(&frame).unwrap();
        assert_eq!(segment.source, "10.0.0.1:12345".parse().unwrap());
        assert_eq!(segment.destination, "10.0.0.2:80".parse().unwrap());
        assert_eq!(segment.payload, b"hi");
    }

    #[test]
    fn an_ipv6_segment_is_read() {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 23, 6, 64]);
        frame.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend([0x3a, 0x98, 0x00, 0x50]);
        frame.extend([0; 8]);
        frame.extend([0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        frame.extend(b"abc");
        let segment = segment(&frame).unwrap();
        assert_eq!(segment.source, "[fd00::1]:15000".parse().unwrap());
        assert_eq!(segment.payload, b"abc");
    }

    #[test]
    fn udp_is_no_segment() {
        let mut frame = frame_v4(b"x");
        frame[14 + 9] = 17;
        assert_eq!(segment(&frame), None);
    }

    proptest! {
        #[test]
        fn no_frame_panics(frame in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = segment(&frame);
        }

        #[test]
        fn no_cut_of_a_frame_panics(cut in 0_usize..60) {
            let frame = frame_v4(b"abcdef");
            let _ = segment(frame.get(..cut).unwrap_or(&frame));
        }
    }
}
